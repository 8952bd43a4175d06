// The gated MLP in products of pairs of bfloat16 numbers. Included by glu_pairs.cpp inside namespace m2::<isa>, after
// blockdiag_glu.inl, whose order of work it has: lanes are tokens. A panel holds the channels of 32 tokens as [pair of
// channels][token]; a pair of weights is read where it lies, as one number of 32 bits, so nothing of the weights is packed.

struct GluPairs {
  static constexpr int W = 16, kPanel = 2 * W, kRows = 12;
  static_assert(kPairTokens % kPanel == 0);
  using V = Vec<float, W>;
  using Pairs = Vec<uint32_t, W>;

  // sum + a.odd * b.odd + a.even * b.even, in this order, rounded after each (the manual's VDPBF16PS).
  M2_INLINE static V dot(V sum, Pairs a, Pairs b) {
#if defined(__AVX512BF16__)
    return (V)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
#else
    sum += (V)(a & 0xffff0000u) * (V)(b & 0xffff0000u);
    return sum + (V)(a << 16) * (V)(b << 16);
#endif
  }
  static void multiply(const uint32_t* a, const uint32_t* b, float* out) {
    store<float, W>(out, dot(load<float, W>(out), load<uint32_t, W>(a), load<uint32_t, W>(b)));
  }

  // Two rows rounded to bfloat16, as the even and the odd numbers of pairs.
  M2_INLINE static Pairs rounded(V even, V odd) {
#if defined(__AVX512BF16__)
    const __m512i low = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh((__m512)even));
    const __m512i high = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh((__m512)odd));
    return (Pairs)_mm512_or_si512(low, _mm512_slli_epi32(high, 16));
#else
    return __builtin_convertvector(to_bf16_bits<W>(even), Pairs) | __builtin_convertvector(to_bf16_bits<W>(odd), Pairs) << 16;
#endif
  }

  M2_INLINE static uint32_t pair(const bf16* p) {
    uint32_t both;
    __builtin_memcpy(&both, p, sizeof both);
    return both;
  }
  M2_INLINE static Pairs row_of_pairs(const bf16* p) {  // 32 numbers that may lie at any even address
    return (Pairs)load<uint16_t, 2 * W>(&p->bits);
  }

  // 2 `pairs` channels of `tokens` tokens as panels, the last one filled up with zeros.
  static void pack(const bf16* x, int64_t stride, int64_t tokens, int64_t pairs, uint32_t* panels) {
    for (int64_t t = 0; t < tokens; t += W) {
      uint32_t* out = panels + t / kPanel * kPanel * pairs + t % kPanel;
      const int64_t rows = tokens - t < W ? tokens - t : W;
      int64_t c = 0;
      for (; c + W <= pairs; c += W) {
        Pairs v[W] = {};
        for (int i = 0; i < rows; ++i) v[i] = row_of_pairs(x + (t + i) * stride + 2 * c);
        transpose<uint32_t, W>(v);
        for (int i = 0; i < W; ++i) store<uint32_t, W>(out + (c + i) * kPanel, v[i]);
      }
      for (; c < pairs; ++c)
        for (int i = 0; i < W; ++i) out[c * kPanel + i] = i < rows ? pair(x + (t + i) * stride + 2 * c) : 0;
    }
    if (tokens % kPanel && tokens % kPanel <= W)
      for (int64_t c = 0; c < pairs; ++c) store<uint32_t, W>(panels + (tokens / kPanel * pairs + c) * kPanel + W, Pairs{});
  }

  // put(row, sums of the first W tokens, of the others) for R rows of weights times a panel.
  template <int R, class Put>
  M2_INLINE static void rows(const bf16* w, int64_t stride, const uint32_t* panel, int64_t pairs, Put put) {
    V sum[R][2] = {};
    for (int64_t k = 0; k < pairs; ++k) {
      const Pairs first = load<uint32_t, W>(panel + k * kPanel), second = load<uint32_t, W>(panel + k * kPanel + W);
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) {
        const Pairs weights = Pairs{} + pair(w + r * stride + 2 * k);
        sum[r][0] = dot(sum[r][0], weights, first), sum[r][1] = dot(sum[r][1], weights, second);
      }
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) put(r, sum[r][0], sum[r][1]);
  }
  template <class Put>
  M2_INLINE static void product(const bf16* w, int64_t stride, int64_t count, const uint32_t* panel, int64_t pairs, Put put) {
    int64_t r = 0;
    const auto shifted = [&](int i, V a, V b) { put(r + i, a, b); };
    for (; r + kRows <= count; r += kRows) rows<kRows>(w + r * stride, stride, panel, pairs, shifted);
    for (; r + 4 <= count; r += 4) rows<4>(w + r * stride, stride, panel, pairs, shifted);
    for (; r < count; ++r) rows<1>(w + r * stride, stride, panel, pairs, shifted);
  }

  static void forward(const GluShape& s, const GluTile& tile, int64_t block, char* work) {
    const int64_t tokens = tile.tokens, pairs = s.in / 2, inter = s.blocks_in * s.width / 2;
    auto* gates = reinterpret_cast<uint32_t*>(work);
    uint32_t *values = gates + pairs * kPairTokens, *hidden = values + pairs * kPairTokens;
    auto* wide = reinterpret_cast<float*>(hidden + kPairHidden / 2 * kPanel);  // hidden channels before they are rounded
    float* y = wide + kPairHidden * kPanel;
    const auto *x = static_cast<const bf16*>(tile.x), *w_in = static_cast<const bf16*>(tile.w_in);
    const auto* w_out = static_cast<const bf16*>(tile.w_out) + block * s.out * s.hidden;
    for (int64_t o = 0; o < s.out; ++o) {  // sums start at the bias
      const V start = V{} + (tile.bias ? to_float(static_cast<const bf16*>(tile.bias)[block * s.out + o]) : 0.0f);
      for (int64_t t = 0; t < tokens; t += W)
        store<float, W>(y + t / kPanel * kPanel * s.out + o * kPanel + t % kPanel, start);
      if (tokens % kPanel && tokens % kPanel <= W)
        store<float, W>(y + tokens / kPanel * kPanel * s.out + o * kPanel + W, V{});
    }
    // Hidden channel c is made of rows c and inter + c of w_in; stretches over which neither changes its block.
    for (int64_t c = block * s.hidden, end = c + s.hidden, count; c < end; c += count) {
      const int64_t gate = c, value = inter + c;
      count = least(end - c, least(s.width - gate % s.width, s.width - value % s.width));
      pack(x + gate / s.width * s.in, tile.x_stride, tokens, pairs, gates);
      pack(x + value / s.width * s.in, tile.x_stride, tokens, pairs, values);
      for (int64_t i = 0; i < count; i += kPairHidden) {
        const int64_t n = least(count - i, kPairHidden);
        for (int64_t t = 0; t < tokens; t += kPanel) {
          product(w_in + (gate + i) * s.in, s.in, n, gates + t * pairs, pairs, [&](int64_t r, V a, V b) {
            store<float, W>(wide + r * kPanel, gelu<W>(a)), store<float, W>(wide + r * kPanel + W, gelu<W>(b));
          });
          product(w_in + (value + i) * s.in, s.in, n, values + t * pairs, pairs, [&](int64_t r, V a, V b) {
            float* h = wide + r * kPanel;
            store<float, W>(h, load<float, W>(h) * a), store<float, W>(h + W, load<float, W>(h + W) * b);
          });
          for (int64_t k = 0; k < n / 2; ++k)
            for (int half = 0; half < kPanel; half += W)
              store<uint32_t, W>(hidden + k * kPanel + half, rounded(load<float, W>(wide + 2 * k * kPanel + half),
                                                                     load<float, W>(wide + (2 * k + 1) * kPanel + half)));
          product(w_out + c - block * s.hidden + i, s.hidden, s.out, hidden, n / 2, [&](int64_t r, V a, V b) {
            float* o = y + t * s.out + r * kPanel;
            store<float, W>(o, load<float, W>(o) + a), store<float, W>(o + W, load<float, W>(o + W) + b);
          });
        }
      }
    }
    Glu<float, W>::unpack(y, tokens, s.out, static_cast<bf16*>(tile.out) + block * s.out, tile.out_stride);
  }
  static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
};
