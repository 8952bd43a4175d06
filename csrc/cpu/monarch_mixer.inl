// The passes of monarch_mixer over memory, around the long convolutions. Included by kernels_<isa>.cpp inside namespace
// m2::<isa>. Lanes are channels; V positions of V channels are turned into rows (positions contiguous) in registers.

// Positions fetched ahead. In a tensor with channels last the next position of a channel lies a few KB further, where
// no hardware prefetcher follows.
constexpr int64_t kAhead = 24;

template <class T, int W>
struct Mixer {
  // The short convolution of V channels, from `c` on, of one of the three slices of p.
  template <class S, int V>
  struct Slice {
    Strided<const S> p;
    const bool* mask;
    int64_t c;
    int width;
    Vec<T, V> weight[kMaxShortWidth], bias;

    Slice(const MixerTile<T>& tile, int slice, int64_t c)
        : p(strided<const S>(tile.p[slice])), mask(tile.mask), c(c), width(tile.width), bias{} {
      ShortConv<T, V>::taps(tile.weight[slice], width, c, weight);
      if (tile.bias[slice]) bias = load<T, V>(tile.bias[slice] + c);
    }
    M2_INLINE bool exists(int64_t t) const { return t >= 0 && (!mask || mask[t]); }
    M2_INLINE Vec<T, V> raw(int64_t t) const { return load_as<T, V>(p.at(c, t)); }
    M2_INLINE void prefetch(int64_t t) const { __builtin_prefetch(p.at(c, t)); }
    M2_INLINE Vec<T, V> operator()(int64_t t) const {
      Vec<T, V> sum = bias;
      const int64_t first = t - width + 1;
      for (int j = 0; j < width; ++j)
        if (exists(first + j)) sum += weight[j] * raw(first + j);
      return sum;
    }
  };

  // Call f.operator()<S, V>(c) for the groups of channels of a tile: W at a time, then one at a time.
  template <class F>
  static void for_groups(const MixerTile<T>& tile, Dtype dtype, F f) {
    with_type<T>(dtype, [&]<class S>() {
      int64_t c = 0;
      for (; c + W <= tile.channels; c += W) f.template operator()<S, W>(c);
      for (; c < tile.channels; ++c) f.template operator()<S, 1>(c);
    });
  }
  static bool kept(const MixerTile<T>& tile, int64_t t) { return t < tile.seqlen && (!tile.mask || tile.mask[t]); }

  // V x V elements of rows c .. c + V - 1 from position t on: vectors over positions to vectors over channels, or back.
  template <int V>
  M2_INLINE static void load_tile(const MixerTile<T>& tile, const T* rows, int64_t c, int64_t t, Vec<T, V>* v) {
    for (int i = 0; i < V; ++i) v[i] = load<T, V>(rows + (c + i) * tile.pitch + t);
    transpose<T, V>(v);
  }
  template <int V>
  M2_INLINE static void store_tile(const MixerTile<T>& tile, T* rows, int64_t c, int64_t t, Vec<T, V>* v) {
    transpose<T, V>(v);
    for (int i = 0; i < V; ++i) store<T, V>(rows + (c + i) * tile.pitch + t, v[i]);
  }
  static void clear_tails(const MixerTile<T>& tile, T* rows) {
    for (int64_t c = 0; c < tile.channels; ++c)
      for (int64_t t = tile.seqlen; t < tile.row_size; ++t) rows[c * tile.pitch + t] = T(0);
  }

  static void gates(const MixerTile<T>& tile, Block dout, T* g, T* x2) {
    for_groups(tile, tile.p[0].dtype, [&]<class S, int V>(int64_t c) {
      const Slice<S, V> first(tile, 0, c), second(tile, 1, c), value(tile, 2, c);
      const auto dy = strided<const S>(dout);
      for (int64_t t = 0; t < tile.seqlen; t += V) {
        Vec<T, V> product[V] = {}, gate[V] = {};
        for (int i = 0; i < V; ++i) {
          const int64_t q = t + i;
          if (!kept(tile, q)) continue;
          first.prefetch(q + kAhead), second.prefetch(q + kAhead), value.prefetch(q + kAhead);
          product[i] = first(q) * value(q);
          gate[i] = second(q);
          if (!dy.p) continue;
          __builtin_prefetch(dy.at(c, q + kAhead));
          gate[i] *= load_as<T, V>(dy.at(c, q));
        }
        store_tile<V>(tile, g, c, t, product);
        store_tile<V>(tile, x2, c, t, gate);
      }
    });
    clear_tails(tile, g);
    clear_tails(tile, x2);
  }

  static void gather(const MixerTile<T>& tile, Block x, T* rows) {
    for_groups(tile, x.dtype, [&]<class S, int V>(int64_t c) {
      const auto a = strided<const S>(x);
      for (int64_t t = 0; t < tile.seqlen; t += V) {
        Vec<T, V> v[V] = {};
        for (int i = 0; i < V; ++i) {
          if (!kept(tile, t + i)) continue;
          __builtin_prefetch(a.at(c, t + i + kAhead));
          v[i] = load_as<T, V>(a.at(c, t + i));
        }
        store_tile<V>(tile, rows, c, t, v);
      }
    });
    clear_tails(tile, rows);
  }

  static void scatter_sum(const MixerTile<T>& tile, const T* a, const T* b, Block out) {
    for_groups(tile, out.dtype, [&]<class S, int V>(int64_t c) {
      const auto y = strided<S>(out);
      for (int64_t t = 0; t < tile.seqlen; t += V) {
        Vec<T, V> v[V];
        for (int i = 0; i < V; ++i) {
          const int64_t n = (c + i) * tile.pitch + t;
          v[i] = b ? load<T, V>(a + n) + load<T, V>(b + n) : load<T, V>(a + n);
        }
        transpose<T, V>(v);
        for (int i = 0; i < V && t + i < tile.seqlen; ++i)
          store_as<T, V>(y.at(c, t + i), kept(tile, t + i) ? v[i] : Vec<T, V>{});
      }
    });
  }

  // What a thread has summed up of the gradients of one group's short convolution, and the gradients of its outputs
  // that the positions before still wait for.
  template <int V>
  struct ShortGradients {
    Vec<T, V> dweight[3][kMaxShortWidth] = {}, dbias[3] = {}, outputs[3][kMaxShortWidth - 1 + V] = {};
    double total_weight[3][kMaxShortWidth][V] = {}, total_bias[3][V] = {};

    void flush() {
      for (int slice = 0; slice < 3; ++slice) {
        for (int i = 0; i < V; ++i) total_bias[slice][i] += double(dbias[slice][i]);
        for (int j = 0; j < kMaxShortWidth; ++j)
          for (int i = 0; i < V; ++i) total_weight[slice][j][i] += double(dweight[slice][j][i]);
        dbias[slice] = Vec<T, V>{};
        for (int j = 0; j < kMaxShortWidth; ++j) dweight[slice][j] = Vec<T, V>{};
      }
    }
    void add_to(const MixerGradients<T>& sums, int width, int64_t c) const {
      for (int slice = 0; slice < 3; ++slice)
        for (int i = 0; i < V; ++i) {
          sums.dbias[slice][c + i] += T(total_bias[slice][i]);
          for (int j = 0; j < width; ++j) sums.dweight[slice][(c + i) * width + j] += T(total_weight[slice][j][i]);
        }
    }
  };

  static void gates_bwd(const MixerTile<T>& tile, Block dout, const T* y, const T* dg, const MixerGradients<T>& sums) {
    const int width = tile.width, past = width - 1;
    for_groups(tile, dout.dtype, [&]<class S, int V>(int64_t c) {
      const Slice<S, V> slices[3] = {{tile, 0, c}, {tile, 1, c}, {tile, 2, c}};
      const auto dy = strided<const S>(dout);
      ShortGradients<V> grads;
      for (int64_t t = 0; t < tile.seqlen + past; t += V) {
        Vec<T, V> before[V], dproduct[V];
        if (t < tile.seqlen) {
          load_tile<V>(tile, y, c, t, before);
          load_tile<V>(tile, dg, c, t, dproduct);
        }
        for (int i = 0; i < V; ++i) {
          const int64_t q = t + i;
          for (int slice = 0; slice < 3; ++slice) grads.outputs[slice][past + i] = Vec<T, V>{};
          if (!kept(tile, q)) continue;
          __builtin_prefetch(dy.at(c, q + kAhead));
          const Vec<T, V> gradient[3] = {dproduct[i] * slices[2](q), before[i] * load_as<T, V>(dy.at(c, q)),
                                         dproduct[i] * slices[0](q)};
          for (int slice = 0; slice < 3; ++slice) {
            slices[slice].prefetch(q + kAhead);
            grads.outputs[slice][past + i] = gradient[slice];
            grads.dbias[slice] += gradient[slice];
            for (int j = 0; j < width; ++j)
              if (slices[slice].exists(q - past + j))
                grads.dweight[slice][j] += gradient[slice] * slices[slice].raw(q - past + j);
          }
        }
        for (int slice = 0; slice < 3; ++slice) {
          const auto dp = strided<S>(sums.dp[slice]);
          for (int i = 0; i < V; ++i) {
            const int64_t q = t + i - past;
            if (q < 0 || q >= tile.seqlen) continue;
            Vec<T, V> sum = {};
            if (kept(tile, q))
              for (int j = 0; j < width; ++j) sum += slices[slice].weight[j] * grads.outputs[slice][past + i - j];
            store_as<T, V>(dp.at(c, q), sum);
          }
          for (int i = 0; i < past; ++i) grads.outputs[slice][i] = grads.outputs[slice][V + i];
        }
        if ((t + V) % kSumBlock == 0) grads.flush();
      }
      grads.flush();
      grads.add_to(sums, width, c);
    });
  }
};
