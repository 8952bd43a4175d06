// Block-diagonal product, exact GELU gate, block-diagonal product, for a tile of tokens. Included by blockdiag_glu.cpp
// inside namespace m2::<isa>, after convert.inl.
//
// Lanes are tokens. A panel holds the channels of 2 W tokens as [channel][token]; weights are read where they lie, one at
// a time, and multiplied with a panel, so that nothing of them is packed, and the result of the first product, again
// [channel][token], is the panel of the second. Hidden channels exist kGluHidden at a time, in L1.

// Phi(-a), Phi the distribution function of the standard normal, for a >= 0; 0 above 6. Both polynomials are weighted
// minimax fits: log2 of Phi(-a) on 0 <= a <= 6, weighted with Phi(-a), and 2^f on |f| <= 1/2. Within 8.1e-8.
template <int W>
M2_INLINE Vec<float, W> normal_tail(Vec<float, W> a) {
  using F = Vec<float, W>;
  using I = Vec<int32_t, W>;
  constexpr float kTail[] = {-1.0f, -1.1511057615280151f, -0.45920491218566895f, -0.052505023777484894f,
                             0.007075466215610504f, -0.0001458651531720534f, -0.00018255009490530938f,
                             3.86213869205676e-05f, -2.7721143851522356e-06f};
  constexpr float kExp2[] = {1.0f, 0.6931471824645996f, 0.24022646248340607f, 0.05550328642129898f,
                             0.009618489071726799f, 0.0013399932067841291f, 0.0001534578768769279f};
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it leaves the nearest whole number in the lowest bits
  F y = F{} + kTail[8];
#pragma GCC unroll 8
  for (int i = 7; i >= 0; --i) y = y * a + kTail[i];
  const F shifted = y + kRound, f = y - (shifted - kRound);
  F p = F{} + kExp2[6];
#pragma GCC unroll 8
  for (int i = 5; i >= 0; --i) p = p * f + kExp2[i];
  return (F)(((I)p + ((I)shifted << 23)) & ~(a > 6.0f));  // not a number stays what it is
}
template <int W>
M2_INLINE Vec<float, W> magnitude(Vec<float, W> x) {
  return (Vec<float, W>)((Vec<int32_t, W>)x & 0x7fffffff);
}

// x Phi(x).
template <int W>
M2_INLINE Vec<float, W> gelu(Vec<float, W> x) {
  const Vec<float, W> tail = normal_tail<W>(magnitude<W>(x));
  return x * (x < 0.0f ? tail : 1.0f - tail);
}
template <int W>
M2_INLINE Vec<double, W> gelu(Vec<double, W> x) {
  for (int i = 0; i < W; ++i) x[i] *= 0.5 * __builtin_erfc(-x[i] * 0.70710678118654752440);
  return x;
}

// gelu(x) and its derivative Phi(x) + x phi(x). With a = |x| that is u = Phi(-a) s(a) below 0 and 1 - u above, where
// s(a) = 1 - a phi(a) / Phi(-a) is smooth: a polynomial, minimax for u with the Phi of above. Within 1.5e-7.
template <class T, int W>
struct GeluAndSlope {
  Vec<T, W> value, slope;
};
template <int W>
M2_INLINE GeluAndSlope<float, W> gelu_and_slope(Vec<float, W> x) {
  using F = Vec<float, W>;
  constexpr float kSlope[] = {1.0f, -0.7978876829147339f, -0.6365662813186646f, -0.10929252952337265f,
                              0.01982230320572853f, -0.000695898022968322f, -0.0006669021677225828f,
                              0.00016523276281077415f, -1.3302966181072406e-05f};
  const F a = magnitude<W>(x), tail = normal_tail<W>(a), inside = a > 6.0f ? F{} + 6.0f : a;
  F s = F{} + kSlope[8];
#pragma GCC unroll 8
  for (int i = 7; i >= 0; --i) s = s * inside + kSlope[i];
  const F u = tail * s;
  return {x * (x < 0.0f ? tail : 1.0f - tail), x < 0.0f ? u : 1.0f - u};
}
template <int W>
M2_INLINE GeluAndSlope<double, W> gelu_and_slope(Vec<double, W> x) {
  GeluAndSlope<double, W> result;
  for (int i = 0; i < W; ++i) {
    const double phi = 0.39894228040143267794 * __builtin_exp(-0.5 * x[i] * x[i]);
    const double below = 0.5 * __builtin_erfc(-x[i] * 0.70710678118654752440);
    result.value[i] = x[i] * below;
    result.slope[i] = below + (phi > 0 ? x[i] * phi : 0);
  }
  return result;
}

template <class T, int W>
struct Glu {
  static constexpr int kPanel = 2 * W;
  static constexpr int kRows = kVectorRegisters == 32 ? 12 : 6;  // rows of weights whose sums stay in registers
  static_assert(kGluTokens % kPanel == 0);
  using V = Vec<T, W>;

  // ---- panels ----

  // `count` channels of `tokens` tokens as panels, the last one filled up with zeros.
  template <class S>
  static void pack(const S* x, int64_t stride, int64_t tokens, int64_t count, T* panels) {
    for (int64_t t = 0; t < tokens; t += W) {
      T* out = panels + t / kPanel * kPanel * count + t % kPanel;
      const int64_t rows = tokens - t < W ? tokens - t : W;
      int64_t c = 0;
      for (; c + W <= count; c += W) {
        V v[W] = {};
        for (int i = 0; i < rows; ++i) v[i] = load_as<T, W>(x + (t + i) * stride + c);
        transpose<T, W>(v);
        for (int i = 0; i < W; ++i) store<T, W>(out + (c + i) * kPanel, v[i]);
      }
      for (; c < count; ++c)
        for (int i = 0; i < W; ++i) out[c * kPanel + i] = i < rows ? T(to_float(x[(t + i) * stride + c])) : T(0);
    }
    if (tokens % kPanel && tokens % kPanel <= W)
      for (int64_t c = 0; c < count; ++c) store<T, W>(panels + (tokens / kPanel * count + c) * kPanel + W, V{});
  }

  template <class S>
  static void unpack(const T* panels, int64_t tokens, int64_t count, S* y, int64_t stride) {
    for (int64_t t = 0; t < tokens; t += W) {
      const T* in = panels + t / kPanel * kPanel * count + t % kPanel;
      const int64_t rows = tokens - t < W ? tokens - t : W;
      int64_t c = 0;
      for (; c + W <= count; c += W) {
        V v[W];
        for (int i = 0; i < W; ++i) v[i] = load<T, W>(in + (c + i) * kPanel);
        transpose<T, W>(v);
        for (int i = 0; i < rows; ++i) store_as<T, W>(y + (t + i) * stride + c, v[i]);
      }
      for (; c < count; ++c)
        for (int i = 0; i < rows; ++i) y[(t + i) * stride + c] = from_float<S>(in[c * kPanel + i]);
    }
  }

  // ---- products ----

  // put(row, sums of the first W tokens, of the others) for R rows of weights times a panel.
  template <int R, class Put>
  M2_INLINE static void rows(const T* w, int64_t stride, const T* panel, int64_t depth, Put put) {
    V sum[R][2] = {};
    for (int64_t k = 0; k < depth; ++k) {
      const V first = load<T, W>(panel + k * kPanel), second = load<T, W>(panel + k * kPanel + W);
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) {
        const T a = w[r * stride + k];
        sum[r][0] += a * first, sum[r][1] += a * second;
      }
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) put(r, sum[r][0], sum[r][1]);
  }
  template <class Put>
  M2_INLINE static void product(const T* w, int64_t stride, int64_t count, const T* panel, int64_t depth, Put put) {
    int64_t r = 0;
    const auto shifted = [&](int i, V a, V b) { put(r + i, a, b); };
    for (; r + kRows <= count; r += kRows) rows<kRows>(w + r * stride, stride, panel, depth, shifted);
    for (; r + 4 <= count; r += 4) rows<4>(w + r * stride, stride, panel, depth, shifted);
    for (; r < count; ++r) rows<1>(w + r * stride, stride, panel, depth, shifted);
  }

  // ---- weights ----

  // `count` rows of `depth` weights in T: where they lie, or converted to `memory`.
  struct Weights {
    const T* data;
    int64_t stride;
  };
  template <class S>
  static Weights weights(const S* w, int64_t stride, int64_t count, int64_t depth, T* memory) {
    if constexpr (__is_same(S, T)) return {w, stride};
    for (int64_t r = 0; r < count; ++r) {
      int64_t k = 0;
      for (; k + W <= depth; k += W) store<T, W>(memory + r * depth + k, load_as<T, W>(w + r * stride + k));
      for (; k < depth; ++k) memory[r * depth + k] = T(to_float(w[r * stride + k]));
    }
    return {memory, depth};
  }

  // Ask for the `part`-th of `parts` of the weights that are needed next: they come from L3.
  template <class S>
  M2_INLINE static void fetch(const S* w, int64_t stride, int64_t count, int64_t depth, int64_t part, int64_t parts) {
    constexpr int64_t line = 64 / int64_t(sizeof(S));
    for (int64_t r = part * count / parts; r < (part + 1) * count / parts; ++r)
      for (int64_t k = 0; k < depth; k += line) __builtin_prefetch(w + r * stride + k, 0, 2);
  }

  // Of `count` hidden channels, at most kGluHidden: y += w_out * (gelu(w_gate * gates) * (w_value * values)).
  template <class Ahead>
  static void chunk(const GluShape& s, int64_t count, int64_t tokens, const T* gates, const T* values, Weights gate,
                    Weights value, Weights out, T* hidden, T* y, Ahead ahead) {
    for (int64_t t = 0; t < tokens; t += kPanel) {
      ahead(t / kPanel, (tokens + kPanel - 1) / kPanel);
      product(gate.data, gate.stride, count, gates + t * s.in, s.in, [&](int64_t r, V a, V b) {
        store<T, W>(hidden + r * kPanel, gelu<W>(a)), store<T, W>(hidden + r * kPanel + W, gelu<W>(b));
      });
      product(value.data, value.stride, count, values + t * s.in, s.in, [&](int64_t r, V a, V b) {
        T* h = hidden + r * kPanel;
        store<T, W>(h, load<T, W>(h) * a), store<T, W>(h + W, load<T, W>(h + W) * b);
      });
      product(out.data, out.stride, s.out, hidden, count, [&](int64_t r, V a, V b) {
        T* o = y + t * s.out + r * kPanel;
        store<T, W>(o, load<T, W>(o) + a), store<T, W>(o + W, load<T, W>(o + W) + b);
      });
    }
  }

  static void forward(const GluShape& s, Dtype dtype, const GluTile& tile, int64_t block, T* work) {
    T *gates = work, *values = gates + s.in * kGluTokens, *y = values + s.in * kGluTokens;
    T *hidden = y + s.out * kGluTokens, *converted = hidden + kGluHidden * kPanel;
    with_type<T>(dtype, [&]<class S>() {
      const S *x = static_cast<const S*>(tile.x), *w_in = static_cast<const S*>(tile.w_in);
      const S* w_out = static_cast<const S*>(tile.w_out) + block * s.out * s.hidden;
      for (int64_t o = 0; o < s.out; ++o) {  // sums start at the bias
        const V start = V{} + (tile.bias ? T(to_float(static_cast<const S*>(tile.bias)[block * s.out + o])) : T(0));
        for (int64_t t = 0; t < tile.tokens; t += W)
          store<T, W>(y + t / kPanel * kPanel * s.out + o * kPanel + t % kPanel, start);
      }
      // Hidden channel c is made of rows c and inter + c of w_in; stretches over which neither changes its block.
      const int64_t inter = s.blocks_in * s.width / 2;
      for (int64_t c = block * s.hidden, end = c + s.hidden, count; c < end; c += count) {
        const int64_t gate = c, value = inter + c;
        count = least(end - c, least(s.width - gate % s.width, s.width - value % s.width));
        pack(x + gate / s.width * s.in, tile.x_stride, tile.tokens, s.in, gates);
        pack(x + value / s.width * s.in, tile.x_stride, tile.tokens, s.in, values);
        for (int64_t i = 0; i < count; i += kGluHidden) {
          const int64_t n = least(count - i, kGluHidden);
          T *second = converted + n * s.in, *third = second + n * s.in;
          const int64_t next = least(count - i - n, kGluHidden);
          const auto ahead = [&](int64_t part, int64_t parts) {
            if (next <= 0) return;
            fetch(w_in + (gate + i + n) * s.in, s.in, next, s.in, part, parts);
            fetch(w_in + (value + i + n) * s.in, s.in, next, s.in, part, parts);
            fetch(w_out + c - block * s.hidden + i + n, s.hidden, s.out, next, part, parts);
          };
          chunk(s, n, tile.tokens, gates, values, weights(w_in + (gate + i) * s.in, s.in, n, s.in, converted),
                weights(w_in + (value + i) * s.in, s.in, n, s.in, second),
                weights(w_out + c - block * s.hidden + i, s.hidden, s.out, n, third), hidden, y, ahead);
        }
      }
      unpack(y, tile.tokens, s.out, static_cast<S*>(tile.out) + block * s.out, tile.out_stride);
    });
  }
  static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
};
