// The passes of monarch_mixer over memory, around the long convolutions. Included by the files of a row inside namespace
// m2::<isa>. Lanes are channels; V positions of V channels are turned into rows (positions contiguous) in registers. A pass
// takes W positions of all channels of the tile, a cache line of each, before it goes on: the lines would be gone from
// the caches by the time it came back for other channels.

// Positions asked for ahead. In a tensor with channels last the next position of a channel lies a few KB further, where no
// hardware prefetcher follows; they go to L2, because positions that far apart share a few sets of L1.
constexpr int64_t kAhead = 64;

template <class T, int W>
struct Mixer {
  // A State for every W channels of a tile and one for each channel that is left over; each(f) calls
  // f.operator()<V>(state, first channel) for all of them.
  template <template <int> class State>
  struct Groups {
    int64_t channels;
    State<W> wide[kMixerChannels / W];
    State<1> single[W];

    explicit Groups(const MixerTile<T>& tile) : channels(tile.channels) {}
    template <class F>
    M2_INLINE void each(F f) {
      int64_t c = 0;
      for (int64_t i = 0; c + W <= channels; ++i, c += W) f.template operator()<W>(wide[i], c);
      for (int64_t i = 0; c < channels; ++i, ++c) f.template operator()<1>(single[i], c);
    }
  };
  template <int V>
  struct Nothing {};
  // Call f.operator()<V>(state, first channel, first of V positions) for all channels and positions of a tile.
  template <template <int> class State, class F>
  M2_INLINE static void walk(Groups<State>& groups, int64_t length, F f) {
    for (int64_t block = 0; block < length; block += W)
      groups.each([&]<int V>(State<V>& state, int64_t c) {
        for (int64_t t = block; t < length && t < block + W; t += V) f.template operator()<V>(state, c, t);
      });
  }

  // The short convolution of V channels of one of the three slices of p, walked over from position 0 on: what a position
  // reads is kept for the ones after it. WIDTH taps at most; 0 weights in front make up for fewer.
  template <class S, int V, int WIDTH>
  struct Slice {
    Strided<const S> p;
    Vec<T, V> weight[WIDTH] = {}, bias = {}, window[WIDTH] = {};

    void start(const MixerTile<T>& tile, int slice, int64_t c) {
      p = strided<const S>(tile.p[slice]);
      p.p = p.at(c, 0);
      ShortConv<T, V>::taps(tile.weight[slice], tile.width, c, weight + WIDTH - tile.width);
      if (tile.bias[slice]) bias = load<T, V>(tile.bias[slice] + c);
    }
    // The next position, `t`; afterwards the window holds what its taps see, zeros where nothing exists.
    M2_INLINE Vec<T, V> next(int64_t t, bool exists) {
      __builtin_prefetch(p.at(0, t + kAhead), 0, 2);
#pragma GCC unroll 8
      for (int j = 0; j + 1 < WIDTH; ++j) window[j] = window[j + 1];
      window[WIDTH - 1] = exists ? load_as<T, V>(p.at(0, t)) : Vec<T, V>{};
      Vec<T, V> sum = bias;
#pragma GCC unroll 8
      for (int j = 0; j < WIDTH; ++j) sum += weight[j] * window[j];
      return sum;
    }
  };
  // x1, x2 and v.
  template <class S, int V, int WIDTH>
  struct Slices {
    Slice<S, V, WIDTH> slice[3];
    void start(const MixerTile<T>& tile, int64_t c) {
      for (int i = 0; i < 3; ++i) slice[i].start(tile, i, c);
    }
  };

  // Call f.operator()<S, WIDTH>() for a dtype and a short convolution of `width` taps: the usual one has a loop of its own.
  template <class F>
  static void with_taps(Dtype dtype, int width, F f) {
    with_type<T>(dtype, [&]<class S>() {
      if (width <= 3) f.template operator()<S, 3>();
      else f.template operator()<S, kMaxShortWidth>();
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

  template <class S, int WIDTH>
  struct Forward {
    template <int V>
    using State = Slices<S, V, WIDTH>;

    static void run(const MixerTile<T>& tile, Block dout, T* g, T* x2) {
      const auto dy = strided<const S>(dout);
      Groups<State> groups(tile);
      groups.each([&]<int V>(State<V>& state, int64_t c) { state.start(tile, c); });
      walk(groups, tile.seqlen, [&]<int V>(State<V>& state, int64_t c, int64_t t) {
        Vec<T, V> product[V], gate[V];
        for (int i = 0; i < V; ++i) {
          const int64_t q = t + i;
          const bool exists = kept(tile, q);
          product[i] = gate[i] = Vec<T, V>{};
          if (q >= tile.seqlen) continue;
          const Vec<T, V> first = state.slice[0].next(q, exists), second = state.slice[1].next(q, exists);
          const Vec<T, V> value = state.slice[2].next(q, exists);
          if (!exists) continue;
          product[i] = first * value;
          gate[i] = second;
          if (!dy.p) continue;
          __builtin_prefetch(dy.at(c, q + kAhead), 0, 2);
          gate[i] *= load_as<T, V>(dy.at(c, q));
        }
        store_tile<V>(tile, g, c, t, product);
        store_tile<V>(tile, x2, c, t, gate);
      });
    }
  };
  static void gates(const MixerTile<T>& tile, Block dout, T* g, T* x2) {
    with_taps(tile.p[0].dtype, tile.width, [&]<class S, int WIDTH>() { Forward<S, WIDTH>::run(tile, dout, g, x2); });
    clear_tails(tile, g);
    clear_tails(tile, x2);
  }

  static void gather(const MixerTile<T>& tile, Block x, T* rows) {
    with_type<T>(x.dtype, [&]<class S>() {
      const auto a = strided<const S>(x);
      Groups<Nothing> groups(tile);
      walk(groups, tile.seqlen, [&]<int V>(Nothing<V>&, int64_t c, int64_t t) {
        Vec<T, V> v[V];
        for (int i = 0; i < V; ++i) {
          v[i] = Vec<T, V>{};
          if (!kept(tile, t + i)) continue;
          __builtin_prefetch(a.at(c, t + i + kAhead), 0, 2);
          v[i] = load_as<T, V>(a.at(c, t + i));
        }
        store_tile<V>(tile, rows, c, t, v);
      });
    });
    clear_tails(tile, rows);
  }

  static void scatter_sum(const MixerTile<T>& tile, const T* a, const T* b, Block out) {
    with_type<T>(out.dtype, [&]<class S>() {
      const auto y = strided<S>(out);
      Groups<Nothing> groups(tile);
      walk(groups, tile.seqlen, [&]<int V>(Nothing<V>&, int64_t c, int64_t t) {
        Vec<T, V> v[V];
        for (int i = 0; i < V; ++i) {
          const int64_t n = (c + i) * tile.pitch + t;
          v[i] = b ? load<T, V>(a + n) + load<T, V>(b + n) : load<T, V>(a + n);
        }
        transpose<T, V>(v);
        for (int i = 0; i < V && t + i < tile.seqlen; ++i)
          store_as<T, V>(y.at(c, t + i), kept(tile, t + i) ? v[i] : Vec<T, V>{});
      });
    });
  }

  // What a thread has summed up of the gradients of one group's short convolution, and the gradients of its outputs
  // that the positions before still wait for.
  template <int V, int WIDTH>
  struct ShortGradients {
    Vec<T, V> dweight[3][WIDTH] = {}, dbias[3] = {}, outputs[3][WIDTH - 1 + V] = {};
    double total_weight[3][WIDTH][V] = {}, total_bias[3][V] = {};

    void flush() {
      for (int slice = 0; slice < 3; ++slice) {
        for (int i = 0; i < V; ++i) total_bias[slice][i] += double(dbias[slice][i]);
        for (int j = 0; j < WIDTH; ++j)
          for (int i = 0; i < V; ++i) total_weight[slice][j][i] += double(dweight[slice][j][i]);
        dbias[slice] = Vec<T, V>{};
        for (int j = 0; j < WIDTH; ++j) dweight[slice][j] = Vec<T, V>{};
      }
    }
    void add_to(const MixerGradients<T>& sums, int width, int64_t c) const {
      for (int slice = 0; slice < 3; ++slice)
        for (int i = 0; i < V; ++i) {
          sums.dbias[slice][c + i] += T(total_bias[slice][i]);
          for (int j = 0; j < width; ++j)
            sums.dweight[slice][(c + i) * width + j] += T(total_weight[slice][WIDTH - width + j][i]);
        }
    }
  };

  template <class S, int WIDTH>
  struct Backward {
    static constexpr int past = WIDTH - 1;
    template <int V>
    struct State : Slices<S, V, WIDTH> {
      ShortGradients<V, WIDTH> grads;
    };

    static void run(const MixerTile<T>& tile, Block dout, const T* y, const T* dg, const MixerGradients<T>& sums) {
      const auto dy = strided<const S>(dout);
      Groups<State> groups(tile);
      groups.each([&]<int V>(State<V>& state, int64_t c) { state.start(tile, c); });
      walk(groups, tile.seqlen + past, [&]<int V>(State<V>& state, int64_t c, int64_t t) {
        Vec<T, V> before[V], dproduct[V];
        if (t < tile.seqlen) {
          load_tile<V>(tile, y, c, t, before);
          load_tile<V>(tile, dg, c, t, dproduct);
        }
        auto& grads = state.grads;
        for (int i = 0; i < V; ++i) {
          const int64_t q = t + i;
          for (int slice = 0; slice < 3; ++slice) grads.outputs[slice][past + i] = Vec<T, V>{};
          if (q >= tile.seqlen) continue;
          __builtin_prefetch(dy.at(c, q + kAhead), 0, 2);
          const bool exists = kept(tile, q);
          Vec<T, V> mixed[3];
          for (int slice = 0; slice < 3; ++slice) mixed[slice] = state.slice[slice].next(q, exists);
          if (!exists) continue;
          const Vec<T, V> gradient[3] = {dproduct[i] * mixed[2], before[i] * load_as<T, V>(dy.at(c, q)),
                                         dproduct[i] * mixed[0]};
          for (int slice = 0; slice < 3; ++slice) {
            grads.outputs[slice][past + i] = gradient[slice];
            grads.dbias[slice] += gradient[slice];
#pragma GCC unroll 8
            for (int j = 0; j < WIDTH; ++j) grads.dweight[slice][j] += gradient[slice] * state.slice[slice].window[j];
          }
        }
        for (int slice = 0; slice < 3; ++slice) {
          const auto dp = strided<S>(sums.dp[slice]);
          for (int i = 0; i < V; ++i) {
            const int64_t q = t + i - past;
            if (q < 0 || q >= tile.seqlen) continue;
            Vec<T, V> sum = {};
            if (kept(tile, q))
#pragma GCC unroll 8
              for (int j = 0; j < WIDTH; ++j) sum += state.slice[slice].weight[j] * grads.outputs[slice][past + i - j];
            store_as<T, V>(dp.at(c, q), sum);
          }
          for (int i = 0; i < past; ++i) grads.outputs[slice][i] = grads.outputs[slice][V + i];
        }
        if ((t + V) % kSumBlock == 0) grads.flush();
      });
      groups.each([&]<int V>(State<V>& state, int64_t c) {
        state.grads.flush();
        state.grads.add_to(sums, tile.width, c);
      });
    }
  };
  static void gates_bwd(const MixerTile<T>& tile, Block dout, const T* y, const T* dg, const MixerGradients<T>& sums) {
    with_taps(dout.dtype, tile.width, [&]<class S, int WIDTH>() { Backward<S, WIDTH>::run(tile, dout, y, dg, sums); });
  }
};

template <class T, int W>
constexpr MixerKernels<T> mixer_row() {
  return {Mixer<T, W>::gates, Mixer<T, W>::gather, Mixer<T, W>::scatter_sum, Mixer<T, W>::gates_bwd};
}
