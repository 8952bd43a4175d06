// short_conv on CUDA: raw pointers, sizes, strides in elements, a stream. No torch.
// float32, float16 or bfloat16 in and out, products and sums in float32; the same bits in every run.
// Kernels: short_conv.cu. Boundary: ../cuda_ops/short_conv.cpp. Test: ../testing/test_short_conv_cuda.cpp, tests/test_cuda_*.py.
#pragma once
#include "element.h"
#include "fft_conv.h"

namespace m2::cuda {

constexpr int kMaxShortWidth = 7;

// out[b, d, t] = bias[d] + sum_j weight[d][j] x[b, d, t - (width - 1) + j] over positions that exist.
struct ShortConvArgs {
  Element element = Element::f32;          // of x and out
  int64_t batch = 0, dim = 0, seqlen = 0;
  int width = 0;                           // 2 .. kMaxShortWidth
  AnyStrided<const void> x;
  const float* weight = nullptr;           // [dim][width]
  const float* bias = nullptr;             // [dim], may be null
  AnyStrided<void> out;                    // does not overlap x
};

// Gradients of the above. `partials` is scratch of short_conv_bwd_scratch(args) floats.
struct ShortConvBwdArgs {
  Element element = Element::f32;  // of dout, x and dx
  int64_t batch = 0, dim = 0, seqlen = 0;
  int width = 0;
  AnyStrided<const void> dout, x;
  const float* weight = nullptr;  // [dim][width]
  AnyStrided<void> dx;            // overlaps none of the inputs
  float* dweight = nullptr;       // [dim][width]
  float* dbias = nullptr;         // [dim]
  float* partials = nullptr;
};

int64_t short_conv_bwd_scratch(const ShortConvBwdArgs& args);

// Both put their work on `stream` of the current device and return the launch's error; cudaErrorInvalidValue if sizes
// contradict each other. An empty tensor is no work for the first; the second gives zero gradients of the weights.
// `shape`, if not null, receives the configuration, also on failure.
cudaError_t short_conv_fwd(const ShortConvArgs& args, cudaStream_t stream, LaunchShape* shape = nullptr);
cudaError_t short_conv_bwd(const ShortConvBwdArgs& args, cudaStream_t stream, LaunchShape* shape = nullptr);

// The last step of short_conv_bwd: dweight and dbias = the sums of `parts` parts in args.partials, [part][dim][8]: the
// gradients of 7 taps, of which the last `width` exist, and of the bias.
cudaError_t sum_short_gradients(const ShortConvBwdArgs& args, int64_t parts, cudaStream_t stream);

}  // namespace m2::cuda
