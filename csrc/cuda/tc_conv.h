// What tc_conv.cu is given beside tensors: the spectrum in the order and precision in which its warps meet it, and its constants.
// Test: ../testing/test_fft_conv_mma_cuda.cpp.
#pragma once
#include "common.cuh"
#include "fft_plan.h"

namespace m2::cuda {

// Where a spectrum of filter_spectrum holds the digits of a frequency, first pass first: their bits, and by how many bits they
// are shifted.
struct SpectrumOrder {
  int bits[kMaxPasses] = {}, at[kMaxPasses] = {};
};

// Of a transform on the current device; cudaErrorInvalidValue if it has more digits.
cudaError_t find_order(int64_t fft_size, SpectrumOrder* order);

// `spectra` [dim][run q][k2 / 8][lane] of float16 pairs, 16 bytes: frequency q + runs (k1 + 16 k2), skip included, times scales[d], a
// power of two that makes the largest at most 1. Lane 4 g + t has k1 = g, g + 8 and of k2 the two from 2 t on.
struct SpectrumPrepArgs {
  int64_t dim, fft_size;
  const float* spectrum;
  const float* skip;
  int64_t stride_skip;
  Quad* spectra;
  float* scales;
};
cudaError_t spectrum_prep(const SpectrumPrepArgs& args, cudaStream_t stream);

// Place p of an operand stands for this row or column.
__host__ __device__ __forceinline__ constexpr int folded(int p) { return (p & 2) * 4 + (p >> 2) * 2 + (p & 1); }

// The constants of a transform of `runs` runs on the current device, 16 bytes each: left operands of step 1 and of step 3, a lane behind
// the other; for each run q its 32 factors exp(-2 pi i (4 q - 1) n / (64 runs)), n = n1 < 16, and exp(-2 pi i (4 q - 1) n / (1024
// runs)), n = n2 < 16; kTcRoots roots of unity for each lane, two at a time.
constexpr int kTcRoots = 26;
cudaError_t tc_conv_table(int runs, const Quad** table);

}  // namespace m2::cuda
