// fft_conv forward on tensor cores for 16-bit tensors: float16 operands, float32 sums and twiddles. The arguments and the
// spectrum of fft_conv.h; relative L2 error about 5e-4 before the output is rounded.
// Kernels: fft_conv_mma_short.cu, tc_conv.cu. Boundary: ../cuda_ops/fft_conv.cpp. Test: ../testing/test_fft_conv_mma_cuda.cpp.
//
// Range: operands are float16, whose largest value is 65504. Every step is scaled to be unitary, so no value exceeds
// sqrt(points) times the largest input, nor after the way back points times. A row is scaled by a power of two to at most
// 8 (4 of 8192 points, 2 of 16384, 1 of 32768), a channel's spectrum to at most 1 (both exact), so nothing can exceed
// 8 * 4096 = 32768, whatever comes in; what is small against the row's largest value loses precision below 2^-14 of it.
// Infinities and NaN make their row NaN.
#pragma once
#include "fft_conv.h"

namespace m2::cuda {

constexpr int64_t kMaxShortMmaFftSize = 4096;

// Whether fft_conv_mma_fwd takes these arguments on the current device: 16 bits, 256 .. 32768 points whose 5 bytes each fit
// into a block's shared memory. Where the float32 transform of that size is one for fft_conv_long.h, the spectrum is too.
bool fft_conv_mma_serves(const FftConvArgs& args);

// Floats of memory that fft_conv_mma_fwd needs as `scratch`, 16-byte aligned.
int64_t fft_conv_mma_scratch(const FftConvArgs& args);

// As fft_conv_fwd.
cudaError_t fft_conv_mma_fwd(const FftConvArgs& args, float* scratch, cudaStream_t stream, LaunchShape* shape = nullptr);

// Its part for up to kMaxShortMmaFftSize points: fft_conv_mma_short.cu.
bool fft_conv_mma_short_serves(int64_t fft_size);
cudaError_t fft_conv_mma_short_fwd(const FftConvArgs& args, cudaStream_t stream, LaunchShape* shape);

}  // namespace m2::cuda
