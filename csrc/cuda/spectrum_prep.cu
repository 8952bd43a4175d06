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
      const Complex s = load_readonly(spectrum + first + i * kThreads);
      largest = fmaxf(largest, fabsf(s.re + skip) + fabsf(s.im));
    }
  largest = block_max<kThreads / 32>(SharedArray<float>(), size, largest);
  const float scale = ldexpf(1.0f, -1 - exponent_of(largest));
  if (thread == 0) args.scales[d] = scale;
  M2_NO_UNROLL
  for (int first = thread; first < size; first += 8 * kThreads)
    M2_UNROLL
    for (int i = 0; i < 8; ++i) {
      const int at = first + i * kThreads;
      const Complex s = load_readonly(spectrum + at);
      int f = 0, bits = 0;
      M2_UNROLL
      for (int pass = 0; pass < kMaxPasses; ++pass) {
        f |= (at >> order.at[pass] & ((1 << order.bits[pass]) - 1)) << bits;
        bits += order.bits[pass];
      }
      const int q = f & ((1 << log_runs) - 1), k1 = f >> log_runs & 15, k2 = f >> (log_runs + 4);
      const int lane = k1 % 8 * 4 + k2 % 8 / 2;
      words.store(((q * 2 + k2 / 8) * 32 + lane) * 4 + k1 / 8 * 2 + k2 % 2, pack_half(scale * (s.re + skip), scale * s.im));
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
  const int tiles = runs / 16;
  const double unit = 1.0 / std::sqrt(double(runs));
  std::vector<float> table;
  // Part i of run q, or of its real or imaginary part.
  const auto entry = [&](int q, int i, bool imaginary) {
    const Root root(int64_t(i) * (4 * q - 1), 4 * runs);
    return float(unit * (imaginary ? root.im : root.re));
  };
  for (const bool back : {false, true})
    for (int row = 0; row < tiles; ++row)
      for (int k = 0; k < 2 * tiles; ++k)  // real and imaginary parts in turn
        for (int lane = 0; lane < 32; ++lane)
          for (int r = 0; r < 4; ++r) {
            const int m = 16 * row + lane / 4 + r % 2 * 8, n = 16 * (k / 2) + lane % 4 * 2 + r / 2 * 8;
            uint32_t halves[2];
            for (int i = 0; i < 2; ++i)
              halves[i] = float_to_half(back ? entry(n + i, m, k % 2) : entry(m, n + i, k % 2));
            const uint32_t word = halves[0] | halves[1] << 16;
            float bits;
            memcpy(&bits, &word, sizeof bits);
            table.push_back(bits);
          }
  for (int q = 0; q < runs; ++q)
    for (int64_t n = 0; n < 32; ++n) {  // n1, n2
      const Root root(n % 16 * (4 * q - 1), (n < 16 ? 64 : 1024) * runs);
      table.push_back(float(root.re));
      table.push_back(float(root.im));
    }
  for (int pair = 0; pair < kTcRoots; pair += 2)
    for (int lane = 0; lane < 32; ++lane)
      for (int i = pair; i < pair + 2; ++i) {
        const int g = lane / 4, t = lane % 4, r = i % 4 ^ 2;  // r: 0 .. 3 in the groups that begin at 2 and 6
        const int j = (i - 10) % 8 / 4, row = g + (i - 10) % 4 / 2 * 8, column = 8 * j + 2 * t + i % 2;
        const Root root = i < 2    ? Root(g * (2 * t + i), 16)
                          : i < 6  ? Root((folded(2 * t) + r % 2 + r / 2 * 4) * g, 16)
                          : i < 10 ? Root((folded(g) + r / 2 * 4) * (2 * t + r % 2), 16)
                          : i < 18 ? Root(row * folded(column), kRun)
                                   : Root(folded(row) * column, kRun);
        table.push_back(float((i < 10 ? 0.25 : 1.0) * root.re));
        table.push_back(float((i < 10 ? 0.25 : 1.0) * root.im));
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
