// monarch_mixer on CUDA in one kernel, forward: raw pointers, sizes, strides in elements, a stream. No torch.
// float32, float16 or bfloat16 in and out, float32 in between, rounded once at the end.
// Kernel: monarch_mixer.cu. Boundary: ../cuda_ops.cpp. Test:
// ../testing/test_monarch_mixer_cuda.cpp, tests/test_cuda_*.py.
#pragma once
#include "element.h"
#include "fft_conv.h"

namespace m2::cuda {

// x1, x2, v = short_conv(p) in three groups of dim channels; out = x2 * conv(x1 * v) + conv2(u), the convolutions as in
// fft_conv.h. Positions without mask count as 0 in p, v and u, and are 0 in out.
struct MonarchMixerArgs {
  Element element = Element::f32;          // of p, u and out
  int64_t batch = 0, dim = 0, seqlen = 0;  // seqlen <= fft_size
  int64_t fft_size = 0;
  int width = 0;                           // of the short convolution
  AnyStrided<const void> p, u;             // p has 3 * dim channels
  const float* short_weight = nullptr;     // [3 * dim][width]
  const float* short_bias = nullptr;       // [3 * dim], may be null
  const float* spectrum = nullptr;         // [dim][2 * fft_size], made by filter_spectrum, 8-byte aligned
  const float* skip = nullptr;             // [dim], may be null
  const float* spectrum2 = nullptr;        // of the convolution of u; null leaves it out
  const float* skip2 = nullptr;
  const bool* mask = nullptr;              // [batch][seqlen], may be null
  AnyStrided<void> out;
};

// Bytes of shared memory a block needs, 0 if the size is not supported; what a block may have on the current device.
size_t monarch_mixer_shared_bytes(int64_t fft_size);
cudaError_t available_shared_bytes(size_t* bytes);

// Puts its work on `stream` of the current device and returns the launch's error; cudaErrorInvalidValue if sizes
// contradict each other. `shape`, if not null, receives the configuration, also on failure.
cudaError_t monarch_mixer_fwd(const MonarchMixerArgs& args, cudaStream_t stream, LaunchShape* shape = nullptr);

}  // namespace m2::cuda
