// fft_conv forward on tensor cores for 16-bit tensors: float16 operands, float32 sums and twiddles. The arguments and the
// spectrum of fft_conv.h; relative L2 error about 5e-4 before the output is rounded.
// Kernels: fft_conv_mma.cu. Boundary: ../cuda_ops.cpp. Test: ../testing/test_fft_conv_mma_cuda.cpp.
#pragma once
#include "fft_conv.h"

namespace m2::cuda {

// Whether fft_conv_mma_fwd takes these arguments: 16 bits, 256 .. 4096 points.
bool fft_conv_mma_serves(const FftConvArgs& args);

// As fft_conv_fwd; `scales` is scratch of args.dim floats.
cudaError_t fft_conv_mma_fwd(const FftConvArgs& args, float* scales, cudaStream_t stream, LaunchShape* shape = nullptr);

}  // namespace m2::cuda
