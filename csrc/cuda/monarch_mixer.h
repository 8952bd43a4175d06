// What monarch_mixer on CUDA does around its long convolutions, which are those of fft_conv.h on contiguous rows: activations
// come as (batch, seqlen, dim), where positions of a channel lie far apart. Raw pointers, sizes, strides in elements, a
// stream. No torch. Arithmetic in float32, the same bits in every run.
//     forward   mixer_rows: g = v x1 and u as rows;  y = conv(g), z = conv2(u);  mixer_sum: out = x2 y + z
//     backward  mixer_rows: g, x2, u, dout as rows;  the gradients of both convolutions;  mixer_sum: du;  mixer_bwd: dp
// x1, x2, v = short_conv(p) in three groups of dim channels, in float32, made again wherever they are needed. Positions
// without mask count as 0 in p, v, u and dout, and are 0 in out, du and dp.
// Kernels: monarch_mixer.cu, monarch_mixer_bwd.cu. Boundary, which calls all of this: ../cuda_ops/monarch_mixer.cpp.
// Test: ../testing/test_monarch_mixer_cuda.cpp, tests/test_cuda_*.py.
#pragma once
#include "element.h"
#include "fft_conv.h"
#include "short_conv.h"

namespace m2::cuda {

// What all of them take.
struct MixerArgs {
  Element element = Element::f32;       // of p, u, dout, out and their gradients
  int64_t batch = 0, dim = 0, seqlen = 0;
  int width = 0;                        // of the short convolution
  AnyStrided<const void> p;             // of 3 * dim channels
  const float* short_weight = nullptr;  // [3 * dim][width]
  const float* short_bias = nullptr;    // [3 * dim], may be null
  const bool* mask = nullptr;           // [batch][seqlen], may be null
};

// Contiguous rows, (batch, dim, seqlen), of the elements of the tensors or of float32; null where they are not wanted.
template <class Void>
struct Rows {
  Void* data = nullptr;
  Element element = Element::f32;
};

struct MixerRowsArgs {
  MixerArgs mixer;
  AnyStrided<const void> u, dout;
  Rows<void> g, x2, u_rows, dout_rows;
};

// out = x2 y + z; y or z may be null.
struct MixerSumArgs {
  MixerArgs mixer;
  Rows<const void> y, z;
  AnyStrided<void> out;
};

// From the gradients dg of g and dx2 of x2, rows of float32. `partials` is memory of mixer_bwd_scratch(args) floats.
struct MixerBwdArgs {
  MixerArgs mixer;
  const float *dg = nullptr, *dx2 = nullptr;
  AnyStrided<void> dp;
  float* dweight = nullptr;  // [3 * dim][width]
  float* dbias = nullptr;    // [3 * dim]
  float* partials = nullptr;
};

int64_t mixer_bwd_scratch(const MixerBwdArgs& args);

// All put their work on `stream` of the current device and return the launch's error; cudaErrorInvalidValue if sizes
// contradict each other. Empty tensors are no work for the first two; the third gives zero gradients of the weights.
// `shape`, if not null, receives the configuration, also on failure.
cudaError_t mixer_rows(const MixerRowsArgs& args, cudaStream_t stream, LaunchShape* shape = nullptr);
cudaError_t mixer_sum(const MixerSumArgs& args, cudaStream_t stream, LaunchShape* shape = nullptr);
cudaError_t mixer_bwd(const MixerBwdArgs& args, cudaStream_t stream, LaunchShape* shape = nullptr);

}  // namespace m2::cuda
