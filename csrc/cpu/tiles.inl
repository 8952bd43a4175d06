// Matrix tiles of AMX: configure, zero, load, store, product of bfloat16 pairs. Included inside namespace m2::<name>, after
// vec.inl. Two implementations of the same functions: the instructions, where the compiler is told to use them, and a twin in
// plain C++ that computes what the manual specifies (Intel SDM, volume 2, TDPBF16PS), so that kernels made of them are tested
// on machines without AMX. Test: csrc/testing/test_tiles.cpp, which runs the twin.
//
// A tile has up to 16 rows of up to 64 bytes. The operand B of a product holds pairs of rows of a matrix, interleaved:
// row r, columns 2j and 2j + 1 are elements (2r, j) and (2r + 1, j).

struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t colsb[16] = {};  // bytes of a row
  uint8_t rows[16] = {};
};
static_assert(sizeof(TileConfig) == 64);

constexpr int kTiles = 8, kTileRows = 16, kTileBytes = 64;

inline TileConfig whole_tiles() {
  TileConfig config;
  for (int tile = 0; tile < kTiles; ++tile) config.colsb[tile] = kTileBytes, config.rows[tile] = kTileRows;
  return config;
}

#if defined(__AMX_TILE__) && defined(__AMX_BF16__)

// The compiler's own intrinsics take literal tile numbers only, and those of GCC do not say that a load reads memory: stores
// before it could be moved behind it.
class Tiles {
 public:
  M2_INLINE void configure(const TileConfig& config) { asm volatile("ldtilecfg %0" : : "m"(config) : "memory"); }
  M2_INLINE void release() { asm volatile("tilerelease" : : : "memory"); }
  template <int TILE>
  M2_INLINE void zero() { asm volatile("tilezero %%tmm%c0" : : "i"(TILE)); }
  // Rows are `stride` bytes apart.
  template <int TILE>
  M2_INLINE void load(const void* memory, int64_t stride) {
    asm volatile("tileloadd (%1,%2,1), %%tmm%c0" : : "i"(TILE), "r"(memory), "r"(stride) : "memory");
  }
  template <int TILE>
  M2_INLINE void store(void* memory, int64_t stride) {
    asm volatile("tilestored %%tmm%c0, (%1,%2,1)" : : "i"(TILE), "r"(memory), "r"(stride) : "memory");
  }
  // SUM += A * B, float32 += bfloat16 * bfloat16.
  template <int SUM, int A, int B>
  M2_INLINE void product() { asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(SUM), "i"(A), "i"(B)); }
};

#else

class Tiles {
 public:
  void configure(const TileConfig& config) {
    check(config.palette == 1 && config.start_row == 0, "configure: needs palette 1 and start row 0");
    for (int tile = 0; tile < 16; ++tile) {
      const int rows = config.rows[tile], colsb = config.colsb[tile];
      check(rows <= kTileRows && colsb <= kTileBytes && !rows == !colsb, "configure: a tile has 1 .. 16 rows of 1 .. 64 bytes");
      check(tile < kTiles || !rows, "configure: there are 8 tiles");
      if (tile < kTiles) tiles_[tile] = {rows, colsb, {}};
    }
    configured_ = true;
  }
  // What a tile held is gone: not-a-number until it is configured again.
  void release() {
    for (Tile& tile : tiles_) tile.rows = tile.colsb = 0, __builtin_memset(tile.data, 0xff, sizeof tile.data);
    configured_ = false;
  }
  template <int TILE>
  void zero() { __builtin_memset(at(TILE).data, 0, sizeof(Tile::data)); }
  template <int TILE>
  void load(const void* memory, int64_t stride) {
    Tile& tile = at(TILE);
    __builtin_memset(tile.data, 0, sizeof tile.data);
    for (int r = 0; r < tile.rows; ++r) __builtin_memcpy(tile.data[r], bytes(memory, r * stride), tile.colsb);
  }
  template <int TILE>
  void store(void* memory, int64_t stride) {
    const Tile& tile = at(TILE);
    for (int r = 0; r < tile.rows; ++r)
      __builtin_memcpy(const_cast<char*>(bytes(memory, r * stride)), tile.data[r], tile.colsb);
  }
  template <int SUM, int A, int B>
  void product() {
    static_assert(SUM != A && SUM != B && A != B);
    multiply(at(SUM), at(A), at(B));
  }

 private:
  struct Tile {
    int rows, colsb;
    uint8_t data[kTileRows][kTileBytes];
  };

  static void check(bool holds, const char* rule) {
    if (!holds) throw std::logic_error(std::string("tiles: ") + rule);
  }
  static const char* bytes(const void* memory, int64_t offset) { return static_cast<const char*>(memory) + offset; }
  Tile& at(int tile) {
    check(configured_ && tiles_[tile].rows, "a tile must be configured before it is used");
    return tiles_[tile];
  }

  // Denormal numbers are read as zero and written as zero.
  static float flushed(float x) { return __builtin_fabsf(x) < 0x1p-126f ? __builtin_copysignf(0.0f, x) : x; }
  static float element(const uint8_t* row, int column) {
    uint16_t bits;
    __builtin_memcpy(&bits, row + 2 * column, 2);
    return flushed(__builtin_bit_cast(float, uint32_t(bits) << 16));
  }
  // a * b + c rounded once. The product is exact in double, and rounding the sum there first does no harm: 53 bits are more
  // than twice 24 and 2. What would round to less than the smallest normal number becomes zero.
  static float fused(float a, float b, float c) {
    const double sum = double(a) * double(b) + double(c);
    return __builtin_fabs(sum) < 0x1.ffffffp-127 ? float(__builtin_copysign(0.0, sum)) : float(sum);
  }
  static void multiply(Tile& sum, const Tile& a, const Tile& b) {
    check(sum.rows == a.rows && sum.colsb == b.colsb && a.colsb == 4 * b.rows && sum.colsb % 4 == 0,
          "product: needs tiles of m x n, m x k and k x n");
    const int pairs = a.colsb / 4, columns = sum.colsb / 4;
    float right[kTileRows][kTileBytes / 2];
    for (int k = 0; k < pairs; ++k)
      for (int n = 0; n < 2 * columns; ++n) right[k][n] = element(b.data[k], n);
    for (int m = 0; m < sum.rows; ++m) {
      // Even and odd elements of the pairs are summed apart.
      float even[kTileRows] = {}, odd[kTileRows] = {};
      for (int k = 0; k < pairs; ++k) {
        const float first = element(a.data[m], 2 * k), second = element(a.data[m], 2 * k + 1);
        for (int n = 0; n < columns; ++n) even[n] = fused(first, right[k][2 * n], even[n]);
        for (int n = 0; n < columns; ++n) odd[n] = fused(second, right[k][2 * n + 1], odd[n]);
      }
      for (int n = 0; n < columns; ++n) {
        float old;
        __builtin_memcpy(&old, sum.data[m] + 4 * n, 4);
        const float result = flushed(flushed(old) + flushed(even[n] + odd[n]));
        __builtin_memcpy(sum.data[m] + 4 * n, &result, 4);
      }
    }
  }

  Tile tiles_[kTiles] = {};
  bool configured_ = false;
};

#endif
