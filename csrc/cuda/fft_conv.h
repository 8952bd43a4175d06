// fft_conv and filter_spectrum on CUDA, with their gradients: raw pointers, sizes, strides in elements, a stream. No
// torch. float32: relative L2 error about 2e-7, bound 1e-6. The same bits in every run.
// Kernels: fft_conv.cu, fft_conv_bwd.cu; 16-bit tensors: fft_conv_mma.h, fft_conv_mma_bwd.h; longer transforms:
// fft_conv_long.h. Boundary: ../cuda_ops/fft_conv.cpp.
// Test: ../testing/test_fft_conv_cuda.cpp, ../testing/test_fft_conv_bwd_cuda.cpp, tests/test_cuda_*.py.
#pragma once
#ifdef M2_CUDA_EMULATED
#include "../testing/cuda_emulator.h"
#else
#include <cuda_runtime_api.h>
#endif

#include <cstddef>
#include <cstdint>

#include "element.h"

namespace m2::cuda {

constexpr int64_t kMinFftSize = 256;
constexpr int64_t kMaxFftSize = 16384;

// out = postgate * y with y[t] = sum_{s<=t} k[t-s] g[s] + sum_{s>t} k_rev[s-t-1] g[s] + skip g[t], g = u * pregate.
struct FftConvArgs {
  int64_t batch = 0, dim = 0, seqlen = 0;  // seqlen <= fft_size
  int64_t fft_size = 0;                    // a power of two, kMinFftSize .. max_fft_size
  Element element = Element::f32;          // of u, the gates and out
  AnyStrided<const void> u, pregate, postgate;  // the gates may be absent
  const float* spectrum = nullptr;  // [dim][2 * fft_size], made by filter_spectrum, 8-byte aligned
  const float* skip = nullptr;      // [dim], may be null
  int64_t stride_skip = 1;
  AnyStrided<void> out;  // overlaps none of the inputs
};

// Gradients of the above. `scratch` is memory of fft_conv_bwd_scratch(args) floats, 8-byte aligned.
struct FftConvBwdArgs {
  int64_t batch = 0, dim = 0, seqlen = 0, fft_size = 0;
  Element element = Element::f32;  // of all tensors but the float32 ones below
  AnyStrided<const void> dout, u, pregate, postgate;
  const float* spectrum = nullptr;
  const float* skip = nullptr;
  int64_t stride_skip = 1;
  AnyStrided<void> du, dpregate, dpostgate;  // those of absent gates are absent; overlap none of the inputs
  float* dspectrum = nullptr;                // [dim][2 * fft_size], 8-byte aligned
  float* dskip = nullptr;                    // [dim]
  float* scratch = nullptr;
};

// spectrum = F(b) / N of b[m] = k[m] - i k_rev[N - 1 - m], N = fft_size: k_rev[j] sits at lag -(j + 1).
// Taps of lags that no sequence of at most N positions has are left out. The order of the frequencies is private to
// the kernels of this folder.
struct FilterSpectrumArgs {
  int64_t dim = 0, fft_size = 0;
  const float* k = nullptr;  // [dim][taps]
  int64_t taps = 0, stride_k_dim = 0, stride_k_tap = 1;
  const float* k_rev = nullptr;  // [dim][taps_rev], may be null
  int64_t taps_rev = 0, stride_k_rev_dim = 0, stride_k_rev_tap = 1;
  float* spectrum = nullptr;  // [dim][2 * fft_size], 8-byte aligned
};

// dk[m] = Re g[m] / N and dk_rev[j] = -Im g[N - 1 - j] / N with g = theta^-n F^-1(dspectrum); 0 for taps of lags that no
// sequence of at most N positions has.
struct FilterSpectrumBwdArgs {
  int64_t dim = 0, fft_size = 0;
  const float* dspectrum = nullptr;  // [dim][2 * fft_size], 8-byte aligned
  float* dk = nullptr;               // [dim][taps]
  int64_t taps = 0;
  float* dk_rev = nullptr;           // [dim][taps_rev]
  int64_t taps_rev = 0;
};

// How a kernel is launched: one block a row. Also what error messages report.
struct LaunchShape {
  int64_t blocks = 0;
  int threads = 0;
  size_t shared_bytes = 0;
};

// Bytes of shared memory that a block of a transform of this size needs; 0 if the size is not supported.
size_t shared_bytes_needed(int64_t fft_size);

// The largest transform that fits into a block's shared memory on the current device: 16384 where a block may have
// 136 KB (A100, H100, B200), 8192 where it may have 68 KB (99 KB on RTX 30/40/50, L4, L40).
cudaError_t max_fft_size(int64_t* size);

int64_t fft_conv_bwd_scratch(const FftConvBwdArgs& args);

// All put their work on `stream` of the current device and return the launch's error; cudaErrorInvalidValue if sizes
// contradict each other, and for 16-bit tensors, which fft_conv_mma.h and fft_conv_mma_bwd.h serve. No blocks (batch or dim 0)
// is no work. The first call for a transform size on a device also copies its twiddles there (at most 140 KB, kept for
// the life of the process); graph capture may be under way. `shape`, if not null, receives the configuration, also on
// failure.
cudaError_t fft_conv_fwd(const FftConvArgs& args, cudaStream_t stream, LaunchShape* shape = nullptr);
cudaError_t fft_conv_bwd(const FftConvBwdArgs& args, cudaStream_t stream, LaunchShape* shape = nullptr);
cudaError_t filter_spectrum_fwd(const FilterSpectrumArgs& args, cudaStream_t stream, LaunchShape* shape = nullptr);
cudaError_t filter_spectrum_bwd(const FilterSpectrumBwdArgs& args, cudaStream_t stream, LaunchShape* shape = nullptr);

// The last step of fft_conv_bwd: dspectrum = the sum of `parts` parts in args.scratch (of one part, what it holds), and
// dskip = the mean of its real parts or, if there are `skips`, [parts][dim], their sum.
cudaError_t sum_spectrum_gradients(const FftConvBwdArgs& args, int64_t parts, cudaStream_t stream,
                                   const float* skips = nullptr);

}  // namespace m2::cuda
