// Right-angle FFT convolution of 16-bit tensors on tensor cores, forward: the choice between the kernels, and that of 8192 points;
// fewer: fft_conv_mma_short.cu, more: fft_conv_mma_large.cu.
// Interface: fft_conv_mma.h. Compiled by nvcc, or by g++ under the emulator. Test: ../testing/test_fft_conv_mma_cuda.cpp.
//
// A block owns a row; its transform and the way back: fft_conv_mma.cuh.
//
// Range: operands are float16, whose largest value is 65504. Every step is scaled to be unitary, so no value exceeds
// sqrt(points) times the largest input, nor after the way back points times. A row is scaled by a power of two to at most
// 8 (4 of 8192 points, 2 of 16384, 1 of 32768), a channel's spectrum to at most 1 (both exact), so nothing can exceed
// 8 * 4096 = 32768, whatever comes in; what is small against the row's largest value loses precision below 2^-14 of it.
// Infinities and NaN make their row NaN.
#include "fft_conv_mma.h"

#include <cmath>

#include "fft_conv_long.h"
#include "fft_conv_mma.cuh"
#include "fft_signals.cuh"

namespace m2::cuda {
namespace {

constexpr int kScaleThreads = 128;

template <int kPlan>
struct Shape {
  static constexpr int kSize = kFftPlans[kPlan].size, kOuter = kSize / kRun;
  static constexpr int kThreads = kRun, kWarps = kThreads / 32;
  static constexpr int kLargest = 1;  // a row is scaled to less than 2^(this + 1)
  static constexpr size_t kBytes = (kOuter * kRunWords + kWarps) * sizeof(uint32_t);
};

template <int kPlan>
__global__ void __launch_bounds__(Shape<kPlan>::kThreads)
    fft_conv_mma_fwd_kernel(FftConvArgs args, const float* scales) {
  using S = Shape<kPlan>;
  constexpr int kOuter = S::kOuter;
  const auto [b, d] = BlockRow(args);
  const Signal<true> signal = {args.element, int(args.seqlen), row_of<true>(args.u, b, d),
                               row_of<true>(args.pregate, b, d)};
  const int thread = int(threadIdx.x), warp = thread / 32;
  const Words words;
  const SharedArray<float> maxima;  // behind the words

  float g[kOuter], largest = 0.0f;
  read_signal(signal, [&](int i) { return thread + i * kRun; }, g);
  M2_UNROLL
  for (float x : g) largest = fmaxf(largest, fabsf(x));
  largest = block_max<S::kWarps>(maxima, kOuter * kRunWords, largest);
  const int exponent = exponent_of(largest);
  constexpr float kUnit = 0.17677670f;  // 1 / sqrt(32)
  static_assert(kOuter == 32, "one column a thread");
  const float scale = kUnit * ldexpf(1.0f, S::kLargest - exponent);

  Complex x[kOuter];
  M2_UNROLL
  for (int i = 0; i < kOuter; ++i) x[i] = (scale * g[i]) * outer_twist<kOuter>(i);
  outer_dft<kOuter, false>(x);
  outer_twiddles<S::kSize, false>(thread, x);
  M2_UNROLL
  for (int q = 0; q < kOuter; ++q) words.store(word_of(q, thread), pack_half(x[q].re, x[q].im));
  __syncthreads();

  Matrix f;
  Complex w[2][4];
  make_fourier(f, w);
  const Complex* spectrum = reinterpret_cast<const Complex*>(args.spectrum) + d * S::kSize;
  const float spectrum_scale = scales[d];
  const float skip = args.skip ? spectrum_scale * load_readonly(args.skip + d * args.stride_skip) / S::kSize : 0.0f;
  M2_NO_UNROLL
  for (int run = warp; run < kOuter; run += S::kWarps) {
    Tiles y;
    transform_run(words, run, f, w, y);
    each_value(y, [&](Complex x, int k) {
      const int at = spectrum_index<kPlan>(run + kOuter * k, kOrder<kPlan>);
      const Complex s = load_readonly(spectrum + at);
      return x * Complex{spectrum_scale * s.re + skip, spectrum_scale * s.im};
    });
    invert_run(words, run, f, w, y);
  }
  __syncthreads();

  // Made here, and the index anew: addresses of the output kept from the start took up to 120 registers more and, of 8192
  // points for sm_80, spilled.
  const Product<true> out = {args.element, int(args.seqlen), row_of<true>(args.out, b, d),
                             row_of<true>(args.postgate, b, d)};
  const int first = thread_index_again();
  const float back = kUnit * S::kSize * ldexpf(1.0f, exponent - S::kLargest) / spectrum_scale;
  M2_UNROLL
  for (int q = 0; q < kOuter; ++q) x[q] = unpacked(words.load(word_of(q, first)));
  outer_twiddles<S::kSize, true>(first, x);
  outer_dft<kOuter, true>(x);
  M2_UNROLL
  for (int i = 0; i < kOuter; ++i) g[i] = back * (x[i] * conj(outer_twist<kOuter>(i))).re;
  write_product(out, [&](int i) { return first + i * kRun; }, g);
}

// scales[d] = the power of two that brings the largest value of channel d's spectrum, skip included, below 1.
__global__ void __launch_bounds__(kScaleThreads) fft_conv_mma_scale_kernel(FftConvArgs args, float* scales) {
  const int64_t d = blockIdx.x;
  const Complex* spectrum = reinterpret_cast<const Complex*>(args.spectrum) + d * args.fft_size;
  const float skip = args.skip ? load_readonly(args.skip + d * args.stride_skip) / float(args.fft_size) : 0.0f;
  const SharedArray<float> maxima;
  float largest = 0.0f;
  for (int i = int(threadIdx.x); i < int(args.fft_size); i += kScaleThreads) {
    const Complex s = load_readonly(spectrum + i);
    largest = fmaxf(largest, fabsf(s.re + skip) + fabsf(s.im));
  }
  largest = block_max<kScaleThreads / 32>(maxima, 0, largest);
  if (threadIdx.x == 0) scales[d] = ldexpf(1.0f, -1 - exponent_of(largest));
}

template <int kPlan>
constexpr bool kHere = kFftPlans[kPlan].size > kMaxShortMmaFftSize && kFftPlans[kPlan].size <= kMaxSmallMmaFftSize;

}  // namespace

bool fft_conv_mma_serves(const FftConvArgs& args) {
  if (args.element == Element::f32) return false;
  if (args.fft_size > kMaxSmallMmaFftSize) return fft_conv_mma_large_serves(args.fft_size);
  if (args.fft_size <= kMaxShortMmaFftSize) return fft_conv_mma_short_serves(args.fft_size);
  return with_plan(args.fft_size, [&](auto plan) {
           if constexpr (!kHere<plan.value>) return cudaErrorInvalidValue;
           else return fits_block(Shape<plan.value>::kBytes);
         }) == cudaSuccess;
}

cudaError_t fft_conv_mma_fwd(const FftConvArgs& args, float* scales, cudaStream_t stream, LaunchShape* shape) {
  if (!fft_conv_mma_serves(args) || args.batch < 0 || args.dim < 0 || args.seqlen < 0 || args.seqlen > args.fft_size)
    return cudaErrorInvalidValue;
  if (args.dim > 0 && args.batch > INT32_MAX / args.dim) return cudaErrorInvalidValue;
  if (args.fft_size <= kMaxShortMmaFftSize) return fft_conv_mma_short_fwd(args, stream, shape);
  if (args.batch * args.dim > 0) {
    const cudaError_t error = launch(&fft_conv_mma_scale_kernel, unsigned(args.dim), kScaleThreads,
                                     kScaleThreads / 32 * sizeof(float), stream, args, scales);
    if (error != cudaSuccess) return error;
  }
  if (args.fft_size > kMaxSmallMmaFftSize) return fft_conv_mma_large_fwd(args, scales, stream, shape);
  return with_plan(args.fft_size, [&](auto plan) {
    if constexpr (!kHere<plan.value>) return cudaErrorInvalidValue;
    else {
      using S = Shape<plan.value>;
      const LaunchShape wanted = {args.batch * args.dim, S::kThreads, S::kBytes};
      if (shape) *shape = wanted;
      if (wanted.blocks == 0) return cudaSuccess;
      return launch(&fft_conv_mma_fwd_kernel<plan.value>, unsigned(wanted.blocks), unsigned(wanted.threads),
                    wanted.shared_bytes, stream, args, static_cast<const float*>(scales));
    }
  });
}

}  // namespace m2::cuda
