// fft_conv forward on tensor cores for 16-bit tensors: float16 operands, float32 sums and twiddles. The arguments and the
// spectrum of fft_conv.h; relative L2 error about 5e-4 before the output is rounded.
// Kernels: fft_conv_mma_short.cu, fft_conv_mma.cu, fft_conv_mma_large.cu. Boundary: ../cuda_ops/fft_conv.cpp. Test: ../testing/test_fft_conv_mma_cuda.cpp.
#pragma once
#include "fft_conv.h"

namespace m2::cuda {

constexpr int64_t kMaxShortMmaFftSize = 4096;
constexpr int64_t kMaxSmallMmaFftSize = 8192;
constexpr int64_t kMaxMmaFftSize = 32768;

// Whether fft_conv_mma_fwd takes these arguments on the current device: 16 bits, 256 .. 32768 points whose 5 bytes each fit
// into a block's shared memory. Where the float32 transform of that size is one for fft_conv_long.h, the spectrum is too.
bool fft_conv_mma_serves(const FftConvArgs& args);

// As fft_conv_fwd; `scales` is scratch of args.dim floats.
cudaError_t fft_conv_mma_fwd(const FftConvArgs& args, float* scales, cudaStream_t stream, LaunchShape* shape = nullptr);

// Its part for up to kMaxShortMmaFftSize points, without `scales`: fft_conv_mma_short.cu.
bool fft_conv_mma_short_serves(int64_t fft_size);
cudaError_t fft_conv_mma_short_fwd(const FftConvArgs& args, cudaStream_t stream, LaunchShape* shape);

// Its part for more than kMaxSmallMmaFftSize points, `scales` made: fft_conv_mma_large.cu.
bool fft_conv_mma_large_serves(int64_t fft_size);
cudaError_t fft_conv_mma_large_fwd(const FftConvArgs& args, const float* scales, cudaStream_t stream, LaunchShape* shape);

}  // namespace m2::cuda
