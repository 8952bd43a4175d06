#include "toeplitz_cost.h"

#include "fft_plan.h"

namespace m2 {
namespace {

// From prototypes of both kernels, timed on one core of a Sapphire-Rapids-class Xeon, a noisy virtual machine: products of tiles
// that stay in registers 3.1e12 operations a second; with a load for every product 0.135 us for a bidirectional row of 256
// positions, 64 rows at a time (8 products a row); right-angle convolutions in float32 0.28 to 0.35 us for 256 positions and
// 1.5 us for 1024. Only their ratio matters.
constexpr double kProductSeconds = 2.0 * 16 * 16 * 32 / 3.1e12;
constexpr double kLoadSeconds = 0.135e-6 / 8 - kProductSeconds;
constexpr double kTransformRate = 55e9;  // operations of FftPlan::flops a second
// Not timed but counted: some 45 instructions of AVX-512 for 16 positions that are gated, cut in two, gated again and rounded;
// a dozen scalar ones to cut a tap in two and place it.
constexpr double kPositionSeconds = 0.3e-9;
constexpr double kTapSeconds = 4e-9;

constexpr int64_t kRows = 16, kSide = 32;  // rows of a tile; positions of a step, as read and as written

int64_t groups(int64_t count, int64_t of) { return (count + of - 1) / of; }

// One step of 32 positions read and 32 written, for one or two tiles of rows: csrc/cpu/toeplitz.inl.
double step_seconds(int tiles, bool gated) {
  const int products = (gated ? 6 : 4) * tiles, loads = 4 + (gated ? 2 : 1) * tiles;
  return products * kProductSeconds + loads * kLoadSeconds;
}

}  // namespace

double toeplitz_seconds(const ToeplitzShape& s) {
  const int64_t side = groups(s.seqlen, kSide), tiles = groups(s.batch, kRows);
  const int64_t steps = s.causal ? side * (side + 1) / 2 : side * side;
  const double rows = double(tiles / 2) * step_seconds(2, s.gated) + double(tiles % 2) * step_seconds(1, s.gated);
  const double taps = transform_seconds(1, s.fft_size) / 2 + 2 * double(s.seqlen) * kTapSeconds;
  return double(steps) * rows + double(s.batch * s.seqlen) * kPositionSeconds + taps;
}

double transform_seconds(int64_t batch, int64_t fft_size) {
  return double(batch) * make_fft_plan(fft_size).flops() / kTransformRate;
}

}  // namespace m2
