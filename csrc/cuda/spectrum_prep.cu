// What tc_conv.cu is given beside tensors. Interface: tc_conv.h. Compiled by nvcc, or by g++ under the emulator.
// Test: ../testing/test_fft_conv_mma_cuda.cpp.
#include <cmath>
#include <vector>

#include "device_table.h"
#include "fft_conv_long.h"
#include "fft_conv_mma.cuh"
#include "tc_conv.h"

namespace m2::cuda {
namespace {

constexpr int kThreads = 512;

// A block owns a channel: it looks for the largest value, then puts all in order in shared memory, then writes them.
__global__ void __launch_bounds__(kThreads) spectrum_prep_kernel(SpectrumPrepArgs args, SpectrumOrder order, int log_runs) {
  const int64_t d = blockIdx.x;
  const int thread = int(threadIdx.x), size = kRun << log_runs;
  const Complex* spectrum = reinterpret_cast<const Complex*>(args.spectrum) + d * size;
  const float skip = args.skip ? load_readonly(args.skip + d * args.stride_skip) / float(size) : 0.0f;
  const Words words;
  float largest = 0.0f;
  M2_NO_UNROLL
  for (int first = thread; first < size; first += 8 * kThreads)
    M2_UNROLL
    for (int i = 0; i < 8; ++i) {
      if (first + i * kThreads >= size) break;
      const Complex s = load_readonly(spectrum + first + i * kThreads);
      largest = fmaxf(largest, fabsf(s.re + skip) + fabsf(s.im));
    }
  largest = block_max<kThreads / 32>(SharedArray<float>(), size, largest);
  const int exponent = exponent_of(largest) + 1;
  const float scale = ldexpf(1.0f, -exponent);
  if (thread == 0) args.exponents[d] = exponent;
  M2_NO_UNROLL
  for (int first = thread; first < size; first += 8 * kThreads)
    M2_UNROLL
    for (int i = 0; i < 8; ++i) {
      const int at = first + i * kThreads;
      if (at >= size) break;
      const Complex s = load_readonly(spectrum + at);
      words.store(order.place_of(at, log_runs), pack_half(scale * (s.re + skip), scale * s.im));
    }
  __syncthreads();
  M2_NO_UNROLL
  for (int i = thread; i < size / 4; i += kThreads) store_quad(args.spectra + d * (size / 4) + i, words.load_as<Quad>(4 * i));
}

// exp(-2 pi i turns / of), in double.
struct Root {
  double re, im;
  Root(int64_t turns, int64_t of) {
    constexpr double kPi = 3.14159265358979323846;
    const double angle = -2.0 * kPi * double(turns % of) / double(of);
    re = std::cos(angle), im = std::sin(angle);
  }
};

std::vector<float> table_of(int runs) {
  const int tiles = runs < 16 ? 1 : runs / 16, slabs = 16 * tiles / runs;
  double unit = 1.0;
  while (unit * unit * runs > 1.0) unit /= 2.0;
  std::vector<float> table;
  const auto push_halves = [&](float low, float high) {
    const uint32_t word = float_to_half(low) | uint32_t(float_to_half(high)) << 16;
    float bits;
    memcpy(&bits, &word, sizeof bits);
    table.push_back(bits);
  };
  // Part p of place m of step 1 (tc_conv.cuh), or of its real or imaginary part: of parts and places of one h.
  const auto entry = [&](int m, int p, bool imaginary) {
    if (m / runs != p % slabs) return 0.0f;
    const Root root(int64_t(p / slabs) * (4 * (m % runs) - 1), 4 * runs);
    return float(unit * (imaginary ? root.im : root.re));
  };
  for (const bool back : {false, true})
    for (int row = 0; row < tiles; ++row)
      for (int k = 0; k < 2 * tiles; ++k)  // real and imaginary parts in turn
        for (int lane = 0; lane < 32; ++lane)
          for (int r = 0; r < 4; ++r) {
            const int m = 16 * row + lane / 4 + r % 2 * 8, n = 16 * (k / 2) + lane % 4 * 2 + r / 2 * 8;
            if (back) push_halves(entry(n, m, k % 2), entry(n + 1, m, k % 2));
            else push_halves(entry(m, n, k % 2), entry(m, n + 1, k % 2));
          }
  for (int pair = 0; pair < 8; ++pair)
    for (int lane = 0; lane < 32; ++lane)
      for (int e = pair % 2 * 2; e < pair % 2 * 2 + 2; ++e) {
        const int row = lane / 4 + e / 2 * 8, column = pair / 2 % 2 * 8 + lane % 4 * 2 + e % 2;
        const Root root(pair < 4 ? row * folded(column) : folded(row) * column, kRun);
        table.push_back(float(root.re)), table.push_back(float(root.im));
      }
  for (int q = 0; q < runs; ++q)
    for (int matrix = 0; matrix < 4; ++matrix)
      for (int lane = 0; lane < 32; ++lane)
        for (int r = 0; r < 2; ++r) {
          const int g = lane / 4, t = lane % 4;
          float re[2], im[2];
          for (int i = 0; i < 2; ++i) {
            // Of F1 or F2, which hold a factor of the twiddles of step 1: the position that is transformed, the frequency, the
            // factor's denominator.
            const int64_t n = matrix == 0 ? 2 * t + i + 8 * r : matrix == 1 ? folded(2 * t) + i + 4 * r
                              : matrix == 2 ? folded(g) + 4 * r : g + 8 * r;
            const int64_t k = matrix < 2 ? g : 2 * t + i, outer = (matrix % 3 ? 1024 : 64) * runs;
            const Root root(n * (k * (outer / 16) + 4 * q - 1), outer);
            re[i] = float(0.25 * root.re), im[i] = float((matrix < 2 ? 0.25 : -0.25) * root.im);
          }
          push_halves(re[0], re[1]), push_halves(im[0], im[1]);
        }
  return table;
}

int log_of(int64_t x) {
  int bits = 0;
  while (int64_t{1} << bits < x) ++bits;
  return bits;
}

}  // namespace

cudaError_t find_order(int64_t fft_size, SpectrumOrder* order) {
  int64_t largest = 0;
  const cudaError_t error = max_fft_size(&largest);
  if (error != cudaSuccess) return error;
  LongFftPlan rows = {fft_size, 0, fft_size};  // of one kernel
  if (fft_size > largest && find_long_plan(fft_size, &rows) != cudaSuccess) return cudaErrorInvalidValue;
  const FftPlan* row = find_fft_plan(rows.row);
  if (!row || rows.passes > 1 || rows.passes + row->passes > kMaxPasses) return cudaErrorInvalidValue;
  *order = {};
  if (rows.passes) order->bits[0] = 4, order->at[0] = log_of(row->size);
  // A row keeps frequencies by the last digit first, then by the others in the order of its passes.
  const int last = row->radix[row->passes - 1];
  for (int pass = 0; pass < row->passes; ++pass) {
    order->bits[rows.passes + pass] = log_of(row->radix[pass]);
    order->at[rows.passes + pass] = log_of(pass + 1 < row->passes ? row->step(pass) / last : row->size / last);
  }
  return cudaSuccess;
}

cudaError_t spectrum_prep(const SpectrumPrepArgs& args, cudaStream_t stream) {
  SpectrumOrder order;
  const cudaError_t error = find_order(args.fft_size, &order);
  if (error != cudaSuccess || args.dim == 0) return error;
  return launch(&spectrum_prep_kernel, unsigned(args.dim), kThreads,
                (size_t(args.fft_size) + kThreads / 32) * sizeof(uint32_t), stream, args, order, log_of(args.fft_size / kRun));
}

cudaError_t tc_conv_table(int runs, const Quad** table) {
  const float* floats = nullptr;
  const cudaError_t error = device_table(-runs, [&] { return table_of(runs); }, &floats);
  *table = reinterpret_cast<const Quad*>(floats);
  return error;
}

}  // namespace m2::cuda
