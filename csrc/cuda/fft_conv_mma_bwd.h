// Gradients of fft_conv on tensor cores for 16-bit tensors: float16 operands, float32 sums and twiddles. The arguments and
// results of fft_conv_bwd in fft_conv.h, the same bits in every run; relative L2 error about 5e-4 before results are rounded,
// of dspectrum about 6e-4; dskip is a sum of products of the tensors' values in float32, to 1e-6.
// Kernel: tc_conv_bwd.cu. Boundary: ../cuda_ops/fft_conv.cpp. Test: ../testing/test_fft_conv_bwd_cuda.cpp.
#pragma once
#include "fft_conv.h"

namespace m2::cuda {

// Whether fft_conv_mma_bwd takes these arguments on the current device: 16 bits, 256 .. 16384 points whose 10 bytes each
// fit into a block's shared memory: 16384 with 161 KB, 8192 and fewer, with their sums up to 4096, with 81 KB.
bool fft_conv_mma_bwd_serves(const FftConvBwdArgs& args);

// Floats of args.scratch.
int64_t fft_conv_mma_bwd_scratch(const FftConvBwdArgs& args);

// As fft_conv_bwd.
cudaError_t fft_conv_mma_bwd(const FftConvBwdArgs& args, cudaStream_t stream, LaunchShape* shape = nullptr);

}  // namespace m2::cuda
