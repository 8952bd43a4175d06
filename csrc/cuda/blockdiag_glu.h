// blockdiag_glu on CUDA in one kernel: raw pointers, sizes, a stream. No torch. float16 or bfloat16 with float32 sums;
// the hidden channels are rounded to the element type once, as operands of the second product.
// Kernel: blockdiag_glu.cu. Boundary: ../cuda_ops/blockdiag_glu.cpp. Test: ../testing/test_blockdiag_glu_cuda.cpp,
// tests/test_cuda_*.py.
#pragma once
#include "element.h"
#include "fft_conv.h"

namespace m2::cuda {

// hidden = gelu(g) * v, g and v the halves of the block-diagonal product of x and w_in; out = that of hidden and w_out.
struct BlockdiagGluArgs {
  Element element = Element::bf16;
  int64_t tokens = 0;
  int blocks_in = 0, rows_in = 0, in = 0;    // w_in [blocks_in][rows_in][in]
  int blocks_out = 0, out = 0, inner = 0;    // w_out [blocks_out][out][inner], blocks_out * inner = hidden channels
  int64_t stride_x = 0;                      // between tokens
  const void *x = nullptr, *w_in = nullptr, *w_out = nullptr;  // 16-byte aligned
  const void* bias = nullptr;                // [blocks_out * out], may be null
  void* result = nullptr;                    // [tokens][blocks_out * out], 4-byte aligned
};

// Whether the kernel takes these sizes on the current device: 16-bit elements, in a multiple of 16 and out of 8, both
// at most 256, inner a multiple of 32 that divides rows_in, shared memory for 32 tokens and two chunks of weights.
cudaError_t blockdiag_glu_serves(const BlockdiagGluArgs& args, bool* serves);

// Puts its work on `stream` of the current device and returns the launch's error; cudaErrorInvalidValue if it does not
// serve the sizes. `shape`, if not null, receives the configuration, also on failure.
cudaError_t blockdiag_glu_fwd(const BlockdiagGluArgs& args, cudaStream_t stream, LaunchShape* shape = nullptr);

}  // namespace m2::cuda
