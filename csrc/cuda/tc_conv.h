// What tc_conv.cu and tc_conv_bwd.cu are given beside tensors: the spectrum in the order and precision in which their warps meet it,
// and their constants.
// Test: ../testing/test_fft_conv_mma_cuda.cpp.
#pragma once
#include "common.cuh"
#include "fft_plan.h"

namespace m2::cuda {

// Where a spectrum of filter_spectrum holds the digits of a frequency, first pass first: their bits, and by how many bits they
// are shifted.
struct SpectrumOrder {
  int bits[kMaxPasses] = {}, at[kMaxPasses] = {};

  // The place among the `spectra` below, of one channel, of what a spectrum of filter_spectrum has at `from`.
  __device__ __forceinline__ int place_of(int from, int log_runs) const {
    int f = 0, done = 0;
    M2_UNROLL
    for (int pass = 0; pass < kMaxPasses; ++pass) {
      f |= (from >> at[pass] & ((1 << bits[pass]) - 1)) << done;
      done += bits[pass];
    }
    const int q = f & ((1 << log_runs) - 1), k1 = f >> log_runs & 15, k2 = f >> (log_runs + 4);
    const int lane = k1 % 8 * 4 + k2 % 8 / 2;
    return ((q * 2 + k2 / 8) * 32 + lane) * 4 + k1 / 8 * 2 + k2 % 2;
  }
};

// Of a transform on the current device; cudaErrorInvalidValue if it has more digits.
cudaError_t find_order(int64_t fft_size, SpectrumOrder* order);

// `spectra` [dim][run q][k2 / 8][lane] of float16 pairs, 16 bytes: frequency q + runs (k1 + 16 k2), skip included, over
// 2^exponents[d], which makes the largest at most 1. Lane 4 g + t has k1 = g, g + 8 and of k2 the two from 2 t on.
struct SpectrumPrepArgs {
  int64_t dim, fft_size;
  const float* spectrum;
  const float* skip;
  int64_t stride_skip;
  Quad* spectra;
  int* exponents;
};
cudaError_t spectrum_prep(const SpectrumPrepArgs& args, cudaStream_t stream);

// Place p of an operand stands for this row or column.
__host__ __device__ __forceinline__ constexpr int folded(int p) { return (p & 2) * 4 + (p >> 2) * 2 + (p & 1); }

// What a row of 2^log_runs runs has to be multiplied by at the end: its points, and what the matrix of step 1 leaves.
__device__ __forceinline__ constexpr float unscaled(int log_runs) { return float(256 << (log_runs + log_runs % 2)); }

// The constants of a transform of `runs` runs, 1 .. 128, on the current device, 16 bytes each: left operands of step 1 and of step 3,
// a lane behind the other; for each lane its twiddles of step 2, two at a time, 8 there and 8 back; for each run the matrices of
// step 2, F1, F2, conj(F2) and conj(F1)^T, of each for each lane two registers, real and imaginary, from which the others differ by
// signs.
constexpr int kTcTwiddles = 8 * 32, kTcMatrices = 4 * 32;  // of all runs, of each
cudaError_t tc_conv_table(int runs, const Quad** table);

}  // namespace m2::cuda
