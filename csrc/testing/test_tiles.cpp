// The twin of the tile instructions against tiles computed by hand, and the convolution of csrc/cpu/toeplitz.inl over it
// against the defining sum in float64. Memory ends where tensors end: built under the address sanitizer by tests/ops/test_amx.py.
// Prints one line a check; exits with 1 at the first that fails.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "../cpu/row.h"
#include "../cpu/toeplitz.h"

namespace m2::M2_ISA {
namespace {
#include "../cpu/tiles.inl"

void expect(bool holds, const char* what) {
  if (!holds) std::printf("FAILED: %s\n", what), std::exit(1);
}

uint16_t bits(float x) { return to_bf16(x).bits; }
float value(uint16_t x) { return to_float(bf16{x}); }

template <class F>
void expect_refused(const char* what, F f) {
  try {
    f();
  } catch (const std::logic_error&) {
    return;
  }
  expect(false, what);
}

// 2 x 3 = 2 x 4 times 4 x 3, whole numbers: rows and columns of a tile are those of its configuration.
void small_tiles_by_hand() {
  TileConfig config;
  config.rows[0] = 2, config.colsb[0] = 3 * 4;
  config.rows[1] = 2, config.colsb[1] = 4 * 2;
  config.rows[2] = 2, config.colsb[2] = 3 * 4;
  const float a[2][4] = {{1, 2, 3, 4}, {-1, 0, 5, 2}}, b[4][3] = {{1, 0, 2}, {3, 1, 0}, {0, 2, 1}, {4, 0, -1}};
  const float start[2][3] = {{10, 20, 30}, {40, 50, 60}}, want[2][3] = {{33, 28, 31}, {47, 60, 61}};
  uint16_t first[2][4], second[2][6];
  for (int m = 0; m < 2; ++m)
    for (int k = 0; k < 4; ++k) first[m][k] = bits(a[m][k]);
  for (int k = 0; k < 4; ++k)
    for (int n = 0; n < 3; ++n) second[k / 2][2 * n + k % 2] = bits(b[k][n]);
  float sum[2][5];
  for (auto& row : sum)
    for (float& x : row) x = -7;
  for (int m = 0; m < 2; ++m)
    for (int n = 0; n < 3; ++n) sum[m][n] = start[m][n];
  Tiles tiles;
  tiles.configure(config);
  tiles.load<0>(sum, sizeof sum[0]);
  tiles.load<1>(first, sizeof first[0]);
  tiles.load<2>(second, sizeof second[0]);
  tiles.product<0, 1, 2>();
  tiles.store<0>(sum, sizeof sum[0]);
  for (int m = 0; m < 2; ++m) {
    for (int n = 0; n < 3; ++n) expect(sum[m][n] == want[m][n], "a product of small tiles");
    expect(sum[m][3] == -7 && sum[m][4] == -7, "a store writes nothing beside the tile");
  }
  tiles.zero<0>();
  tiles.store<0>(sum, sizeof sum[0]);
  expect(sum[1][2] == 0 && sum[1][3] == -7, "a tile set to zero");
  // Rows from the last to the first.
  tiles.load<2>(second[1], -int64_t(sizeof second[0]));
  uint16_t turned[2][6];
  tiles.store<2>(turned, sizeof turned[0]);
  for (int n = 0; n < 6; ++n) expect(turned[0][n] == second[1][n] && turned[1][n] == second[0][n], "a negative stride");
}

// One pair of a 1 x 1 product: old + (a0 b0 + a1 b1).
float dot(float a0, float b0, float a1, float b1, float old) {
  TileConfig config;
  for (int tile = 0; tile < 3; ++tile) config.rows[tile] = 1, config.colsb[tile] = 4;
  const uint16_t a[2] = {bits(a0), bits(a1)}, b[2] = {bits(b0), bits(b1)};
  Tiles tiles;
  tiles.configure(config);
  tiles.load<0>(&old, 4);
  tiles.load<1>(a, 4);
  tiles.load<2>(b, 4);
  tiles.product<0, 1, 2>();
  tiles.store<0>(&old, 4);
  return old;
}

void numbers_at_the_edge() {
  const float infinity = std::numeric_limits<float>::infinity();
  expect(dot(3, 5, 7, -2, 0.5f) == 1.5f, "a pair");
  expect(dot(0x1p-130f, 0x1p10f, 0, 0, 1) == 1 && dot(0x1p-130f, 0x1p10f, 0, 0, 0) == 0, "denormal operands are zero");
  expect(dot(0x1p-70f, 0x1p-70f, 0, 0, 0) == 0 && dot(0x1p-63f, 0x1p-63f, 0, 0, 0) == 0x1p-126f, "denormal results are zero");
  expect(dot(0, 0, 0, 0, 0x1p-130f) == 0, "a denormal sum is zero");
  expect(std::signbit(dot(-0x1p-70f, 0x1p-70f, -0x1p-70f, 0x1p-70f, -0.0f)), "it keeps its sign");
  expect(dot(0x1p100f, 0x1p100f, 0, 0, 0) == infinity && std::isnan(dot(infinity, 0, 0, 0, 0)), "overflow and nan");
  // Even and odd elements are summed apart, then both are added to what was there.
  expect(dot(0x1p12f, 0x1p12f, 1, 1, -0x1p24f) == 0, "2^24 + 1 is rounded to 2^24 before -2^24 is added");
  expect(dot(1, 0x1p24f, 1, 3, 0) == 0x1p24f + 4, "a tie goes to even");

  // 2 pairs: the second is added to the sum of the first, rounded once.
  TileConfig config;
  for (int tile = 0; tile < 3; ++tile) config.rows[tile] = 1, config.colsb[tile] = 4;
  config.rows[2] = 2, config.colsb[1] = 8;
  const uint16_t a[4] = {bits(0x1p24f), 0, bits(1.5f), 0}, b[2][2] = {{bits(1), 0}, {bits(1), 0}};
  float sum = 0;
  Tiles tiles;
  tiles.configure(config);
  tiles.zero<0>();
  tiles.load<1>(a, 8);
  tiles.load<2>(b, 4);
  tiles.product<0, 1, 2>();
  tiles.store<0>(&sum, 4);
  expect(sum == 0x1p24f + 2, "2^24 + 1.5 is rounded to 2^24 + 2");
}

void what_is_not_allowed() {
  Tiles tiles;
  float memory[256] = {};
  expect_refused("a tile before any configuration", [&] { tiles.zero<0>(); });
  TileConfig config;
  config.rows[0] = 4, config.colsb[0] = 16, config.rows[1] = 4, config.colsb[1] = 8, config.rows[2] = 2, config.colsb[2] = 16;
  config.rows[3] = 3, config.colsb[3] = 16;
  tiles.configure(config);
  tiles.zero<0>(), tiles.zero<1>(), tiles.zero<2>(), tiles.zero<3>();
  tiles.product<0, 1, 2>();
  expect_refused("a tile that has no rows", [&] { tiles.load<4>(memory, 16); });
  expect_refused("rows that do not fit", [&] { tiles.product<3, 1, 2>(); });
  expect_refused("an inner size that does not fit", [&] { tiles.product<0, 1, 3>(); });
  tiles.release();
  expect_refused("a tile after the release", [&] { tiles.store<0>(memory, 16); });
  config.rows[0] = 17;
  expect_refused("17 rows", [&] { tiles.configure(config); });
  config.rows[0] = 4, config.rows[9] = 1, config.colsb[9] = 4;
  expect_refused("a tenth tile", [&] { tiles.configure(config); });
  config = TileConfig{};
  config.palette = 2;
  expect_refused("another palette", [&] { tiles.configure(config); });
}

std::mt19937 generator(1);
float normal() { return std::normal_distribution<float>()(generator); }

// Relative error of one convolution of `rows` rows, tensors in memory of exactly their size.
double convolution_error(int64_t rows, int64_t seqlen, bool causal, bool gated) {
  const int64_t positions = toeplitz_positions(seqlen);
  std::vector<float> h(2 * seqlen - 1);
  for (float& tap : h) tap = normal();
  if (causal) std::fill(h.begin(), h.begin() + seqlen - 1, 0.0f);
  std::vector<float> taps(2 * positions);
  std::copy(h.begin(), h.end(), taps.begin() + positions - seqlen + 1);
  std::vector<uint32_t> pairs(toeplitz_pairs(positions));
  toeplitz.pack(positions, taps.data(), pairs.data());
  const auto tensor = [&] {
    std::vector<uint16_t> x(rows * seqlen);
    for (uint16_t& element : x) element = bits(normal());
    return x;
  };
  const std::vector<uint16_t> u = tensor(), pre = tensor(), post = tensor();
  std::vector<uint16_t> out(rows * seqlen, bits(NAN));
  std::vector<char> work(toeplitz_work_bytes(positions), char(0xff));  // not-a-number
  toeplitz.convolve({u.data(), gated ? pre.data() : nullptr, gated ? post.data() : nullptr, out.data(), seqlen, seqlen, seqlen,
                     seqlen, rows, seqlen, causal}, pairs.data(), work.data());
  double error = 0, norm = 0, rounding = 0;
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t n = 0; n < seqlen; ++n) {
      double y = 0;
      for (int64_t k = 0; k < seqlen; ++k) {
        const int64_t at = r * seqlen + k;
        y += double(h[n - k + seqlen - 1]) * value(u[at]) * (gated ? value(pre[at]) : 1);
      }
      if (gated) y *= value(post[r * seqlen + n]);
      const double e = value(out[r * seqlen + n]) - y, least = value(bits(float(y))) - y;
      error += e * e, norm += y * y, rounding += least * least;
    }
  // What is not the rounding of the output.
  expect(std::isfinite(error) && std::sqrt(error) <= 1.02 * std::sqrt(rounding) + 1e-6 * std::sqrt(norm),
         "the error of a convolution is the rounding of its output");
  return std::sqrt(error / norm);
}

void convolutions() {
  for (const int64_t seqlen : {1, 2, 31, 32, 33, 64, 100})
    for (const int64_t rows : {1, 15, 16, 17, 32})
      for (int causal = 0; causal < 2; ++causal)
        for (int gated = 0; gated < 2; ++gated) convolution_error(rows, seqlen, causal, gated);
  std::printf("convolution of 20 x 130, relative error %.2e\n", convolution_error(20, 130, false, true));
}

}  // namespace
}  // namespace m2::M2_ISA

int main() {
  m2::M2_ISA::small_tiles_by_hand();
  m2::M2_ISA::numbers_at_the_edge();
  m2::M2_ISA::what_is_not_allowed();
  m2::M2_ISA::convolutions();
  std::printf("tiles: all checks passed\n");
}
