// Convolution of rows with the taps of one channel, as a product with a Toeplitz matrix. Included by toeplitz.cpp inside
// namespace m2::<name>, after convert.inl and tiles.inl.
//
//   out (rows x n) = (u pre) (rows x k) * T,   T[k][n] = h[n - k]
//
// Nothing of T is built. A tile of it holds T[k + 2r][n + j] and T[k + 2r + 1][n + j] side by side in row r: h at lags
// i = n - k + j - 2r and i - 1. With pairs P[i] = (h[i], h[i - 1]) that is the row of 16 pairs from P[n - k - 2r] on: a tile is
// read from P + n - k with a stride of -2 pairs from row to row.
//
// Numbers of 8 bits would not do: data times gate has 16 bits, taps have 24. Both are cut into two, a = high + low, and three
// of the four products are taken: exact but for the last bits of the taps and the product of the low parts, 2^-16 each.

struct Toeplitz {
  static constexpr int W = lanes_of<float>();
  static constexpr int64_t kBlock = 32;  // rows, positions read and positions written of a step: two tiles each
  using V = Vec<float, W>;

  static void pack(int64_t positions, float* taps, uint32_t* pairs) {
    const int64_t count = 2 * positions;
    for (int part = 0; part < 2; ++part) {
      uint32_t before = 0;
      for (int64_t i = 0; i < count; ++i) {
        const bf16 nearest = to_bf16(taps[i]);
        taps[i] -= to_float(nearest);
        pairs[part * count + i] = nearest.bits | before << 16;
        before = nearest.bits;
      }
    }
  }

  // Data times gate as high and low part, zeros up to whole tiles; without a gate the data are the high part.
  static void pack_row(const bf16* u, const bf16* gate, int64_t seqlen, int64_t positions, bf16* high, bf16* low) {
    int64_t i = 0;
    for (; i + W <= seqlen; i += W) split<W>(u + i, gate ? gate + i : nullptr, high + i, low + i);
    for (; i < seqlen; ++i) split<1>(u + i, gate ? gate + i : nullptr, high + i, low + i);
    for (; i < positions; ++i) high[i] = low[i] = {0};
  }
  template <int N>
  M2_INLINE static void split(const bf16* u, const bf16* gate, bf16* high, bf16* low) {
    Vec<float, N> x = load_as<float, N>(u);
    if (gate) x *= load_as<float, N>(gate);
    store_as<float, N>(high, x);
    if (gate) store_as<float, N>(low, x - load_as<float, N>(high));
  }

  // TILES tiles of rows times one step of 32 positions: the sums in tiles 0 to 3.
  template <int TILES>
  M2_INLINE static void add(Tiles& tiles, const uint32_t* pairs) {
    tiles.load<6>(pairs, -8);
    tiles.load<7>(pairs + kTileRows, -8);
    tiles.product<0, 4, 6>();
    tiles.product<1, 4, 7>();
    if constexpr (TILES == 2) {
      tiles.product<2, 5, 6>();
      tiles.product<3, 5, 7>();
    }
  }
  template <int TILES>
  M2_INLINE static void load_rows(Tiles& tiles, const bf16* rows, int64_t pitch) {
    tiles.load<4>(rows, 2 * pitch);
    if constexpr (TILES == 2) tiles.load<5>(rows + kTileRows * pitch, 2 * pitch);
  }

  // sums [16 TILES][32] of the positions from n on.
  template <int TILES>
  static void block(Tiles& tiles, const ToeplitzRows& t, const uint32_t* pairs, const bf16* high, const bf16* low, int64_t n,
                    float* sums) {
    const int64_t positions = toeplitz_positions(t.seqlen), pitch = toeplitz_pitch(positions);
    const int64_t end = t.causal ? n + kBlock : positions;
    tiles.zero<0>(), tiles.zero<1>();
    if constexpr (TILES == 2) tiles.zero<2>(), tiles.zero<3>();
    for (int64_t k = 0; k < end; k += kBlock) {
      const uint32_t *taps = pairs + positions + n - k, *rest = taps + 2 * positions;
      load_rows<TILES>(tiles, high + k, pitch);
      add<TILES>(tiles, rest);
      add<TILES>(tiles, taps);
      if (!t.pregate) continue;
      // The taps are still in their tiles.
      load_rows<TILES>(tiles, low + k, pitch);
      tiles.product<0, 4, 6>();
      tiles.product<1, 4, 7>();
      if constexpr (TILES == 2) {
        tiles.product<2, 5, 6>();
        tiles.product<3, 5, 7>();
      }
    }
    constexpr int64_t stride = kBlock * int64_t(sizeof(float));
    tiles.store<0>(sums, stride);
    tiles.store<1>(sums + kTileRows, stride);
    if constexpr (TILES == 2) {
      tiles.store<2>(sums + kTileRows * kBlock, stride);
      tiles.store<3>(sums + kTileRows * kBlock + kTileRows, stride);
    }
  }

  static void write_row(const float* sums, const bf16* gate, int64_t count, bf16* out) {
    int64_t i = 0;
    for (; i + W <= count; i += W) {
      const V y = load<float, W>(sums + i);
      store_as<float, W>(out + i, gate ? y * load_as<float, W>(gate + i) : y);
    }
    for (; i < count; ++i) out[i] = to_bf16(gate ? sums[i] * to_float(gate[i]) : sums[i]);
  }

  static void convolve(const ToeplitzRows& t, const uint32_t* pairs, void* work) {
    const int64_t positions = toeplitz_positions(t.seqlen), pitch = toeplitz_pitch(positions);
    const int64_t padded = (t.rows + kTileRows - 1) / kTileRows * kTileRows;
    float* sums = static_cast<float*>(work);
    bf16 *high = reinterpret_cast<bf16*>(sums + kToeplitzRows * kBlock), *low = high + kToeplitzRows * pitch;
    const bf16 *u = static_cast<const bf16*>(t.u), *pre = static_cast<const bf16*>(t.pregate);
    const bf16* post = static_cast<const bf16*>(t.postgate);
    for (int64_t r = 0; r < t.rows; ++r)
      pack_row(u + r * t.stride_u, pre ? pre + r * t.stride_pre : nullptr, t.seqlen, positions, high + r * pitch,
               low + r * pitch);
    for (int64_t r = t.rows; r < padded; ++r)  // fill up a tile
      pack_row(nullptr, nullptr, 0, positions, high + r * pitch, low + r * pitch);
    Tiles tiles;
    tiles.configure(whole_tiles());
    for (int64_t n = 0; n < positions; n += kBlock) {
      if (padded > kTileRows) block<2>(tiles, t, pairs, high, low, n, sums);
      else block<1>(tiles, t, pairs, high, low, n, sums);
      const int64_t count = t.seqlen - n < kBlock ? t.seqlen - n : kBlock;
      for (int64_t r = 0; r < t.rows; ++r)
        write_row(sums + r * kBlock, post ? post + r * t.stride_post + n : nullptr, count,
                  static_cast<bf16*>(t.out) + r * t.stride_out + n);
    }
    tiles.release();
  }

  static void product(const uint16_t* a, const uint16_t* b, float* sum) {
    Tiles tiles;
    tiles.configure(whole_tiles());
    tiles.zero<0>();
    tiles.load<1>(a, kTileBytes);
    tiles.load<2>(b, kTileBytes);
    tiles.product<0, 1, 2>();
    tiles.store<0>(sum, kTileBytes);
    tiles.release();
  }
};
