// Gradients of blockdiag_glu for a tile of tokens and a run of chunks of hidden channels, which are computed again.
// Included by blockdiag_glu.cpp inside namespace m2::<isa>, after blockdiag_glu.inl.
//
// With g = w_gate x, v = w_value x, dh = w_out^T dout and per hidden channel h = gelu(g) v:
//   dv = dh gelu(g), dg = dh v gelu'(g); dx = w_gate^T dg + w_value^T dv;
//   dw_gate = sum over tokens dg x^T, dw_value = sum dv x^T, dw_out = sum dout h^T.
// Lanes are channels. Everything of a token stays in its order, [token][channel], and is read in two ways: one element at a
// time, multiplied with 2 W channels of the weights, or 2 W channels at a time, multiplied with one element of the same
// token. So nothing but the weights is transposed, and they once for all tokens: `pack`.

template <class T, int W>
struct GluBackward {
  static constexpr int kStrip = 2 * W;
  static constexpr int kRows = Glu<T, W>::kRows;  // rows whose sums, a strip each, stay in registers
  static constexpr int64_t kPitch = glu_pitch<T>(kGluChunk);  // from one token to the next in hidden channels
  static_assert(kGluChunk % kStrip == 0 && kGluChunk % kRows == 0 && kGluChunk % (6 * W) == 0);
  using V = Vec<T, W>;

  // ---- weights: of a chunk, strips [depth][2 W] of w_gate^T, w_value^T, w_out, w_gate and w_value, filled up with 0 ----

  template <class S>
  static void strips(const S* w, int64_t stride, int64_t rows, int64_t count, int64_t pitch, T* out) {
    for (int64_t c = 0; c < count; c += kStrip, out += pitch * kStrip)
      for (int64_t r = 0; r < rows; ++r) {
        const S* from = w + r * stride + c;
        T* to = out + r * kStrip;
        if (c + kStrip <= count) store<T, W>(to, load_as<T, W>(from)), store<T, W>(to + W, load_as<T, W>(from + W));
        else
          for (int i = 0; i < kStrip; ++i) to[i] = c + i < count ? T(to_float(from[i])) : T(0);
      }
  }

  struct Packed {
    int64_t gate_t, value_t, out, gate, value;  // where they begin
    explicit Packed(const GluShape& s)
        : gate_t(0), value_t(kGluChunk * s.in), out(2 * value_t), gate(out + kGluChunk * s.out),
          value(gate + kGluChunk * glu_padded(s.in)) {}
  };

  static void pack(const GluShape& s, Dtype dtype, const GluChunk& c, const void* w_in, const void* w_out, T* packed) {
    const Packed at(s);
    with_type<T>(dtype, [&]<class S>() {
      const S *gate = static_cast<const S*>(w_in) + c.gate * s.in, *value = static_cast<const S*>(w_in) + c.value * s.in;
      Glu<T, W>::pack(gate, s.in, c.count, s.in, packed + at.gate_t);
      Glu<T, W>::pack(value, s.in, c.count, s.in, packed + at.value_t);
      const S* out = static_cast<const S*>(w_out) + c.out * s.out * s.hidden + c.column;
      strips(out, s.hidden, s.out, c.count, s.out, packed + at.out);
      strips(gate, s.in, c.count, s.in, kGluChunk, packed + at.gate);
      strips(value, s.in, c.count, s.in, kGluChunk, packed + at.value);
    });
  }

  // ---- products ----

  M2_INLINE static void multiply(const T* a, int64_t row, int64_t step, const T* b, int64_t b_step, int64_t depth,
                                 V (&sum)[kRows][2]) {
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) sum[r][0] = sum[r][1] = V{};
    for (int64_t k = 0; k < depth; ++k, a += step, b += b_step) {
      const V first = load<T, W>(b), second = load<T, W>(b + W);
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r) {
        const T x = a[r * row];
        sum[r][0] += x * first, sum[r][1] += x * second;
      }
    }
  }

  // Tokens times a strip of weights: c[t] = sum over k of a[t][k] b[k], or added to c[t].
  template <bool ADD>
  static void by_token(const T* a, int64_t pitch, int64_t tokens, const T* b, int64_t depth, T* c, int64_t c_pitch) {
    for (int64_t t = 0; t < tokens; t += kRows, a += kRows * pitch, c += kRows * c_pitch) {
      V sum[kRows][2];
      multiply(a, pitch, 1, b, kStrip, depth, sum);
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r) {
        T* to = c + r * c_pitch;
        if constexpr (ADD) sum[r][0] += load<T, W>(to), sum[r][1] += load<T, W>(to + W);
        store<T, W>(to, sum[r][0]), store<T, W>(to + W, sum[r][1]);
      }
    }
  }

  // Sums over tokens: c[row] = sum over t of a[t][row] b[t], or added to c[row], for `rows` rows of a strip.
  static void over_tokens(const T* a, int64_t a_pitch, int64_t rows, const T* b, int64_t b_pitch, int64_t tokens, T* c,
                          bool first) {
    constexpr int64_t line = 64 / int64_t(sizeof(T));
    for (int64_t i = 0; i < rows; i += kRows, c += kRows * kStrip) {
      for (int64_t k = 0; k < kRows * kStrip; k += line) __builtin_prefetch(c + k, 1, 3);
      V sum[kRows][2];
      multiply(a + i, 1, a_pitch, b, b_pitch, tokens, sum);
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r) {
        T* to = c + r * kStrip;
        if (!first) sum[r][0] += load<T, W>(to), sum[r][1] += load<T, W>(to + W);
        store<T, W>(to, sum[r][0]), store<T, W>(to + W, sum[r][1]);
      }
    }
  }

  // Of a strip of hidden channels: g, v, dh become dg, dv, h.
  static void gates(int64_t tokens, T* g, T* v, T* dh) {
    for (int64_t t = 0; t < tokens; ++t, g += kPitch, v += kPitch, dh += kPitch)
      for (int half = 0; half < kStrip; half += W) {
        const auto gate = gelu_and_slope<W>(load<T, W>(g + half));
        const V value = load<T, W>(v + half), d = load<T, W>(dh + half);
        store<T, W>(g + half, d * value * gate.slope);
        store<T, W>(v + half, d * gate.value);
        store<T, W>(dh + half, gate.value * value);
      }
  }

  // ---- a tile ----

  // `tokens` rows of `count` elements, in memory filled up with 0 to whole rows and strips.
  template <class S>
  static void gather(const S* x, int64_t stride, int64_t tokens, int64_t count, T* out) {
    const int64_t pitch = glu_pitch<T>(count), whole = up(count, 6 * W);
    for (int64_t t = 0, end = up(tokens, kRows); t < end; ++t, x += stride, out += pitch) {
      int64_t c = 0;
      if (t < tokens) {
        for (; c + W <= count; c += W) store<T, W>(out + c, load_as<T, W>(x + c));
        for (; c < count; ++c) out[c] = T(to_float(x[c]));
      }
      for (; c < whole; ++c) out[c] = T(0);
    }
  }

  static void backward(const GluShape& s, Dtype dtype, const GluGradTile& tile, int64_t owner, const GluChunk* chunks,
                       int64_t count, const T* packed, T* sums, bool first, T* work) {
    const int64_t owners = glu_owners(s), blocks = s.blocks_in / owners, pitch = glu_pitch<T>(s.in);
    const int64_t room = glu_grad_tokens<T>(s), tokens = up(tile.tokens, kRows), block = room * pitch;
    T *x = work, *dx = x + blocks * block, *dout = dx + blocks * block, *dg = dout + room * glu_pitch<T>(s.out);
    T *dv = dg + room * kPitch, *h = dv + room * kPitch;
    const int64_t padded = glu_padded(s.in), out_pitch = glu_pitch<T>(s.out), out_padded = glu_padded(s.out);
    const Packed at(s);
    with_type<T>(dtype, [&]<class S>() {
      for (int64_t j = 0; j < blocks; ++j) {
        const int64_t from = (owner + j * owners) * s.in;
        gather(static_cast<const S*>(tile.x) + from, tile.x_stride, tile.tokens, s.in, x + j * block);
      }
      for (T* p = dx; p < dout; ++p) *p = T(0);
      for (T* p = dg; p < h + room * kPitch; ++p) *p = T(0);  // rows of sums reach into channels that no strip holds
      int64_t loaded = -1;
      for (int64_t i = 0; i < count; ++i, packed += glu_packed_elements(s), sums += glu_sums_elements(s)) {
        const GluChunk& c = chunks[i];
        const int64_t gate = c.gate / s.width / owners * block, value = c.value / s.width / owners * block;
        if (c.out != loaded)
          gather(static_cast<const S*>(tile.dout) + c.out * s.out, tile.dout_stride, tile.tokens, s.out, dout);
        loaded = c.out;
        for (int64_t r = 0; r < c.count; r += kStrip) {
          by_token<false>(x + gate, pitch, tokens, packed + at.gate_t + r * s.in, s.in, dg + r, kPitch);
          by_token<false>(x + value, pitch, tokens, packed + at.value_t + r * s.in, s.in, dv + r, kPitch);
          by_token<false>(dout, out_pitch, tokens, packed + at.out + r * s.out, s.out, h + r, kPitch);
          gates(tokens, dg + r, dv + r, h + r);
        }
        T *sum_value = sums + padded * kGluChunk, *sum_out = sum_value + padded * kGluChunk;
        for (int64_t k = 0; k < s.in; k += kStrip) {
          const int64_t strip = k * kGluChunk;
          by_token<true>(dg, kPitch, tokens, packed + at.gate + strip, c.count, dx + gate + k, pitch);
          over_tokens(dg, kPitch, c.count, x + gate + k, pitch, tile.tokens, sums + strip, first);
        }
        for (int64_t k = 0; k < s.in; k += kStrip) {
          const int64_t strip = k * kGluChunk;
          by_token<true>(dv, kPitch, tokens, packed + at.value + strip, c.count, dx + value + k, pitch);
          over_tokens(dv, kPitch, c.count, x + value + k, pitch, tile.tokens, sum_value + strip, first);
        }
        for (int64_t r = 0; r < c.count; r += kStrip)
          over_tokens(dout, out_pitch, s.out, h + r, kPitch, tile.tokens, sum_out + r * out_padded, first);
      }
      for (int64_t j = 0; j < blocks; ++j)
        for (int64_t t = 0; t < tile.tokens; ++t)
          put(dx + j * block + t * pitch, s.in, static_cast<S*>(tile.dx) + t * tile.dx_stride + (owner + j * owners) * s.in);
    });
  }

  template <class S>
  M2_INLINE static void put(const T* from, int64_t count, S* to) {
    int64_t c = 0;
    for (; c + W <= count; c += W) store_as<T, W>(to + c, load<T, W>(from + c));
    for (; c < count; ++c) to[c] = from_float<S>(from[c]);
  }

  // ---- the gradients of a chunk's weights: sums of all splits, `split` elements apart, in order ----

  template <class S>
  static void total(const T* sums, int64_t row_pitch, int64_t splits, int64_t split, int64_t rows, int64_t count, S* out,
                    int64_t stride) {
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t c = 0; c < count; c += kStrip) {
        const T* from = sums + c * row_pitch + r * kStrip;
        T strip[kStrip];
        V a = load<T, W>(from), b = load<T, W>(from + W);
        for (int64_t i = 1; i < splits; ++i)
          a += load<T, W>(from + i * split), b += load<T, W>(from + i * split + W);
        store<T, W>(strip, a), store<T, W>(strip + W, b);
        put(strip, count - c < kStrip ? count - c : kStrip, out + r * stride + c);
      }
  }

  static void weights(const GluShape& s, Dtype dtype, const GluChunk& c, const T* sums, int64_t splits, int64_t split,
                      void* dw_in, void* dw_out) {
    with_type<T>(dtype, [&]<class S>() {
      S* in = static_cast<S*>(dw_in);
      const int64_t size = glu_padded(s.in) * kGluChunk;
      total(sums, kGluChunk, splits, split, c.count, s.in, in + c.gate * s.in, s.in);
      total(sums + size, kGluChunk, splits, split, c.count, s.in, in + c.value * s.in, s.in);
      total(sums + 2 * size, glu_padded(s.out), splits, split, s.out, c.count,
            static_cast<S*>(dw_out) + c.out * s.out * s.hidden + c.column, s.hidden);
    });
  }

  M2_INLINE static int64_t up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }
};

template <class T, int W>
constexpr GluKernels<T> glu_row() {
  return {Glu<T, W>::forward, GluBackward<T, W>::pack, GluBackward<T, W>::backward, GluBackward<T, W>::weights};
}
