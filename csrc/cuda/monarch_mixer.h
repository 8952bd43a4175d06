// monarch_mixer on CUDA in one kernel, and its gradients in one: raw pointers, sizes, strides in elements, a stream. No torch.
// float32, float16 or bfloat16 in and out, float32 in between, rounded once at the end. The same bits in every run.
// Kernels: monarch_mixer.cu, monarch_mixer_bwd.cu. Boundary: ../cuda_ops/monarch_mixer.cpp.
// Test: ../testing/test_monarch_mixer_cuda.cpp, ../testing/test_monarch_mixer_bwd_cuda.cpp, tests/test_cuda_*.py.
#pragma once
#include "element.h"
#include "fft_conv.h"
#include "short_conv.h"

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

// Gradients of the above, of at least one batch entry. Positions without mask count as 0 in dout too, and are 0 in dp and du. `scratch` is memory of
// monarch_mixer_bwd_scratch(args) floats, 8-byte aligned.
struct MonarchMixerBwdArgs {
  MonarchMixerArgs forward;      // without out
  AnyStrided<const void> dout;   // of the element type of p and u
  AnyStrided<void> dp, du;       // du only with spectrum2; they overlap none of the inputs
  float* dweight = nullptr;      // [3 * dim][width]
  float* dbias = nullptr;        // [3 * dim]
  float* dspectrum = nullptr;    // [dim][2 * fft_size], 8-byte aligned
  float* dskip = nullptr;        // [dim]
  float* dspectrum2 = nullptr;   // these two only with spectrum2
  float* dskip2 = nullptr;
  float* scratch = nullptr;
};

// Whether the sizes agree with each other; fft_size is not looked at.
inline bool mixer_sizes_fit(const MonarchMixerArgs& args) {
  return args.batch >= 0 && args.dim >= 0 && args.seqlen >= 0 && args.seqlen <= args.fft_size && args.width >= 2 &&
         args.width <= kMaxShortWidth && (args.dim == 0 || args.batch <= INT32_MAX / args.dim);
}

// Bytes of shared memory a block needs, 0 if the size is not supported; what a block may have on the current device.
size_t monarch_mixer_shared_bytes(int64_t fft_size);
size_t monarch_mixer_bwd_shared_bytes(int64_t fft_size);
cudaError_t available_shared_bytes(size_t* bytes);

int64_t monarch_mixer_bwd_scratch(const MonarchMixerBwdArgs& args);

// Both put their work on `stream` of the current device and return the launch's error; cudaErrorInvalidValue if sizes
// contradict each other. `shape`, if not null, receives the configuration, also on failure.
cudaError_t monarch_mixer_fwd(const MonarchMixerArgs& args, cudaStream_t stream, LaunchShape* shape = nullptr);
cudaError_t monarch_mixer_bwd(const MonarchMixerBwdArgs& args, cudaStream_t stream, LaunchShape* shape = nullptr);

}  // namespace m2::cuda
