// Right-angle FFT convolution of 16-bit tensors on tensor cores, forward, 256 R points for R = 1, 2, .. 64. Interface:
// fft_conv_mma.h. Compiled by nvcc, or by g++ under the emulator. Test: ../testing/test_fft_conv_mma_cuda.cpp.
//
// A block owns a row. A pass of radix R in float32 registers twists it and splits it into R runs of 256 points, each of
// which one warp transforms, multiplies by the spectrum and transforms back without leaving its registers: 256 = 16 x 16,
// and each of the four steps is a product with the same 16 x 16 Fourier matrix, whose sums in the layout of mma.m16n8k16
// are the operand of the next step, the left one as they are, the right one transposed for free:
//     A[k1][n2] = F X            then times exp(-2 pi i k1 n2 / 256)
//     B[k1][k2] = A F            then times the spectrum
//     C[n2][k1] = conj(F) B^T    then times exp(+2 pi i k1 n2 / 256)
//     y[n1][n2] = conj(F) C^T
// Between the radix-R passes and the warps lies float16 in shared memory, 4 bytes a point: two trips in all.
//
// Range: operands are float16, whose largest value is 65504. Every step is scaled to be unitary, so no value exceeds
// sqrt(points) times the largest input, nor after the way back points times. A row is scaled by a power of two to at most
// 8 (4 of 8192 points, 2 of 16384), a channel's spectrum to at most 1 (both exact), so nothing can exceed 8 * 4096 = 32768,
// whatever comes in; what is small against the row's largest value loses precision below 2^-14 of it. Infinities and NaN
// make their row NaN.
#include "fft_conv_mma.h"

#include <cmath>

#include "fft_conv_long.h"
#include "fft_passes.cuh"
#include "fft_signals.cuh"
#include "mma.cuh"

namespace m2::cuda {
namespace {

constexpr int kRun = 256;
constexpr int kPitch = 20;             // words from one n1 to the next: spreads a fragment over the banks
constexpr int kRunWords = 16 * kPitch;
constexpr int kScaleThreads = 128;

using Words = SharedArray<uint32_t>;

__device__ __forceinline__ int word_of(int run, int n) { return run * kRunWords + n / 16 * kPitch + n % 16; }

// exp(-2 pi i turns / of)
__device__ __forceinline__ Complex root(int turns, int of) {
  float sine, cosine;
  sincospif(2.0f * float(turns) / float(of), &sine, &cosine);
  return {cosine, -sine};
}

// 2^exponent of the largest power of two that is at most x; of 0 and the smallest numbers, 2^-100. Infinite for infinity.
__device__ __forceinline__ int exponent_of(float x) { return x < 7.9e-31f ? -100 : x > 3.4e38f ? 300 : ilogbf(x); }

// Multiplies the outputs of the first pass by theta^j exp(-2 pi i j q / N), or its inputs on the way back by the conjugate.
// Each factor is the one before times the same root: an error of 1e-6 at most, far below that of float16.
template <int kSize, bool kConjugate, int kOuter>
__device__ __forceinline__ void outer_twiddles(int j, Complex (&x)[kOuter]) {
  const Complex step = root(j, kSize);
  Complex w = root(4 * kSize - j, 4 * kSize);
  M2_UNROLL
  for (int q = 0; q < kOuter; ++q) {
    x[q] = x[q] * (kConjugate ? conj(w) : w);
    w = w * step;
  }
}

template <int kOuter, bool kInverse>
__device__ __forceinline__ void outer_dft(Complex (&x)[kOuter]) {
  if constexpr (kOuter > 1) Dft<kOuter, kInverse>::run(x);
}
template <int kOuter>
__device__ __forceinline__ Complex outer_twist(int i) {
  if constexpr (kOuter > 1) return twist<kOuter>(i);
  else return {1.0f, 0.0f};
}

// Where a spectrum holds the first and the last digit of a frequency.
struct Order {
  int first, last;
};

// Those of a spectrum made in one kernel, as all up to 8192 points are.
template <int kPlan>
constexpr Order kOrder = {FirstPass<kPlan>::kStep / LastPass<kPlan>::kRadix, LastPass<kPlan>::kButterflies};

// Where a spectrum of this plan holds frequency f: the digits of f in the radices of the plan, first pass first.
template <int kPlan, int kPass = 0>
__device__ __forceinline__ int spectrum_index(int f, Order order) {
  using P = Pass<kPlan, kPass>;
  if constexpr (P::kStep > 1)
    return f % P::kRadix * (kPass == 0 ? order.first : P::kStep / LastPass<kPlan>::kRadix) +
           spectrum_index<kPlan, kPass + 1>(f / P::kRadix, order);
  else return f * order.last;
}

// The complex sums of a 16 x 16 product: two tiles of 8 columns. Lane 4 g + t holds, of tile j, element e: row
// g + 8 (e / 2), column 8 j + 2 t + e % 2.
struct Tiles {
  float re[2][4], im[2][4];
};

// A 16 x 16 complex matrix of float16, a register for two neighbouring columns, as mma's left operand.
struct Matrix {
  uint32_t re[4], im[4];
};

__device__ __forceinline__ uint32_t negated(uint32_t pair) { return pair ^ 0x80008000u; }

// out = F x or conj(F) x, `right` holding the fragments of x for the two tiles.
template <bool kConjugate>
__device__ __forceinline__ void multiply_left(const Matrix& f, const uint32_t (&right_re)[2][2],
                                              const uint32_t (&right_im)[2][2], Tiles& out) {
  uint32_t im[4], minus_im[4];
  M2_UNROLL
  for (int r = 0; r < 4; ++r) {
    im[r] = kConjugate ? negated(f.im[r]) : f.im[r];
    minus_im[r] = kConjugate ? f.im[r] : negated(f.im[r]);
  }
  M2_UNROLL
  for (int j = 0; j < 2; ++j) {
    M2_UNROLL
    for (int e = 0; e < 4; ++e) out.re[j][e] = out.im[j][e] = 0.0f;
    mma_half(out.re[j], f.re, right_re[j]);
    mma_half(out.re[j], minus_im, right_im[j]);
    mma_half(out.im[j], f.re, right_im[j]);
    mma_half(out.im[j], im, right_re[j]);
  }
}

// out = x F. F is symmetric, so its fragments as a right operand are those it has as a left one.
__device__ __forceinline__ void multiply_right(const Matrix& x, const Matrix& f, Tiles& out) {
  M2_UNROLL
  for (int j = 0; j < 2; ++j) {
    const uint32_t re[2] = {f.re[j], f.re[j + 2]}, im[2] = {f.im[j], f.im[j + 2]};
    const uint32_t minus_im[2] = {negated(im[0]), negated(im[1])};
    M2_UNROLL
    for (int e = 0; e < 4; ++e) out.re[j][e] = out.im[j][e] = 0.0f;
    mma_half(out.re[j], x.re, re);
    mma_half(out.re[j], x.im, minus_im);
    mma_half(out.im[j], x.re, im);
    mma_half(out.im[j], x.im, re);
  }
}

// Sums as a left operand: the layouts agree.
__device__ __forceinline__ Matrix as_left(const Tiles& x) {
  Matrix out;
  M2_UNROLL
  for (int r = 0; r < 4; ++r) {
    const int j = r / 2, e = r % 2 * 2;
    out.re[r] = pack_half(x.re[j][e], x.re[j][e + 1]);
    out.im[r] = pack_half(x.im[j][e], x.im[j][e + 1]);
  }
  return out;
}

// Sums as a right operand: taken for the transpose.
__device__ __forceinline__ void as_right(const float (&x)[2][4], uint32_t (&out)[2][2]) {
  M2_UNROLL
  for (int j = 0; j < 2; ++j)
    M2_UNROLL
    for (int r = 0; r < 2; ++r) out[j][r] = pack_half(x[r][2 * j], x[r][2 * j + 1]);
}

template <bool kConjugate>
__device__ __forceinline__ void multiply_each(Tiles& x, const Complex (&w)[2][4]) {
  M2_UNROLL
  for (int j = 0; j < 2; ++j)
    M2_UNROLL
    for (int e = 0; e < 4; ++e) {
      const Complex y = Complex{x.re[j][e], x.im[j][e]} * (kConjugate ? conj(w[j][e]) : w[j][e]);
      x.re[j][e] = y.re;
      x.im[j][e] = y.im;
    }
}

// Transform of one run by a warp, product with spectrum(f') for the run's frequencies, and back; in place.
template <class Spectrum>
__device__ __forceinline__ void convolve_run(const Words& words, int run, const Matrix& f, const Complex (&w)[2][4],
                                             const Spectrum& spectrum) {
  const int lane = int(threadIdx.x) % 32, g = lane / 4, t = lane % 4;
  uint32_t re[2][2], im[2][2];
  M2_UNROLL
  for (int j = 0; j < 2; ++j)
    M2_UNROLL
    for (int r = 0; r < 2; ++r) {
      const int n1 = 2 * t + 8 * r, at = run * kRunWords + n1 * kPitch + g + 8 * j;
      const uint32_t low = words.load(at), high = words.load(at + kPitch);
      re[j][r] = (low & 0xffffu) | high << 16;
      im[j][r] = low >> 16 | (high & 0xffff0000u);
    }
  Tiles x, y;
  multiply_left<false>(f, re, im, x);
  multiply_each<false>(x, w);
  multiply_right(as_left(x), f, y);
  M2_UNROLL
  for (int j = 0; j < 2; ++j)
    M2_UNROLL
    for (int e = 0; e < 4; ++e) {
      const int k1 = g + 8 * (e / 2), k2 = 8 * j + 2 * t + e % 2;
      const Complex z = Complex{y.re[j][e], y.im[j][e]} * spectrum(k1 + 16 * k2);
      y.re[j][e] = z.re;
      y.im[j][e] = z.im;
    }
  as_right(y.re, re);
  as_right(y.im, im);
  multiply_left<true>(f, re, im, x);
  multiply_each<true>(x, w);
  as_right(x.re, re);
  as_right(x.im, im);
  multiply_left<true>(f, re, im, y);
  __syncwarp();  // all lanes have read the run
  M2_UNROLL
  for (int j = 0; j < 2; ++j)
    M2_UNROLL
    for (int e = 0; e < 4; ++e)
      words.store(run * kRunWords + (g + 8 * (e / 2)) * kPitch + 8 * j + 2 * t + e % 2,
                  pack_half(y.re[j][e], y.im[j][e]));
}

__device__ __forceinline__ float warp_max(float x) {
  M2_UNROLL
  for (int bits = 16; bits > 0; bits /= 2) x = fmaxf(x, __shfl_xor_sync(~0u, x, bits));
  return x;
}

template <int kPlan>
struct Shape {
  static constexpr int kSize = kFftPlans[kPlan].size, kOuter = kSize / kRun;
  static constexpr int kThreads = kOuter > 16 ? kRun : kOuter > 2 ? 16 * kOuter : 32, kWarps = kThreads / 32;
  static constexpr int kColumns = kRun / kThreads;  // of a thread
  static constexpr int kGroup = kOuter >= 8 ? kColumns : 8 / kOuter;  // at a time on the way back: 8 stores or more
  static constexpr int kLargest = kSize <= 4096 ? 2 : kSize == 8192 ? 1 : 0;  // a row is scaled to less than 2^(this + 1)
  static constexpr size_t kBytes = (kOuter * kRunWords + kWarps) * sizeof(uint32_t);
};

template <int kPlan>
__global__ void __launch_bounds__(Shape<kPlan>::kThreads)
    fft_conv_mma_fwd_kernel(FftConvArgs args, const float* scales, Order order) {
  using S = Shape<kPlan>;
  constexpr int kOuter = S::kOuter;
  const bool batch_first = args.u.stride_seq == 1;  // which blocks share memory: as in fft_conv.cu
  const unsigned inner = unsigned(batch_first ? args.batch : args.dim);
  const int64_t b = batch_first ? blockIdx.x % inner : blockIdx.x / inner;
  const int64_t d = batch_first ? blockIdx.x / inner : blockIdx.x % inner;
  const Signal<true> signal = {args.element, int(args.seqlen), row_of<true>(args.u, b, d),
                               row_of<true>(args.pregate, b, d)};
  const int thread = int(threadIdx.x), lane = thread % 32, warp = thread / 32;
  const Words words;
  const SharedArray<float> maxima;  // behind the words

  float g[S::kColumns][kOuter], largest = 0.0f;
  M2_UNROLL
  for (int c = 0; c < S::kColumns; ++c)
    M2_UNROLL
    for (int i = 0; i < kOuter; ++i) {
      g[c][i] = signal(thread + c * S::kThreads + i * kRun);
      largest = fmaxf(largest, fabsf(g[c][i]));
    }
  largest = warp_max(largest);
  if (lane == 0) maxima.store(kOuter * kRunWords + warp, largest);
  __syncthreads();
  M2_UNROLL
  for (int i = 0; i < S::kWarps; ++i) largest = fmaxf(largest, maxima.load(kOuter * kRunWords + i));
  const int exponent = exponent_of(largest);
  constexpr float kUnit = kOuter == 1 ? 1.0f : kOuter == 2 ? 0.70710678f : kOuter == 4 ? 0.5f
                          : kOuter == 8 ? 0.35355339f : kOuter == 16 ? 0.25f : kOuter == 32 ? 0.17677670f : 0.125f;
  const float scale = kUnit * ldexpf(1.0f, S::kLargest - exponent);

  M2_UNROLL
  for (int c = 0; c < S::kColumns; ++c) {
    const int j = thread + c * S::kThreads;
    Complex x[kOuter];
    M2_UNROLL
    for (int i = 0; i < kOuter; ++i) x[i] = (scale * g[c][i]) * outer_twist<kOuter>(i);
    outer_dft<kOuter, false>(x);
    outer_twiddles<S::kSize, false>(j, x);
    M2_UNROLL
    for (int q = 0; q < kOuter; ++q) words.store(word_of(q, j), pack_half(x[q].re, x[q].im));
  }
  __syncthreads();

  Matrix f;
  Complex w[2][4];
  const int row = lane / 4, pair = lane % 4 * 2;
  M2_UNROLL
  for (int r = 0; r < 4; ++r) {
    const int k = row + r % 2 * 8, n = pair + r / 2 * 8;
    const Complex low = 0.25f * root(k * n & 15, 16), high = 0.25f * root(k * (n + 1) & 15, 16);
    f.re[r] = pack_half(low.re, high.re);
    f.im[r] = pack_half(low.im, high.im);
  }
  M2_UNROLL
  for (int j = 0; j < 2; ++j)
    M2_UNROLL
    for (int e = 0; e < 4; ++e) w[j][e] = root((row + 8 * (e / 2)) * (8 * j + pair + e % 2), kRun);
  const Complex* spectrum = reinterpret_cast<const Complex*>(args.spectrum) + d * S::kSize;
  const float skip = args.skip ? load_readonly(args.skip + d * args.stride_skip) / S::kSize : 0.0f;
  const float spectrum_scale = scales[d];
  M2_NO_UNROLL
  for (int run = warp; run < kOuter; run += S::kWarps)
    convolve_run(words, run, f, w, [&](int k) {
      const int at = spectrum_index<kPlan>(run + kOuter * k, S::kSize > 8192 ? order : kOrder<kPlan>);
      const Complex s = load_readonly(spectrum + at);
      return spectrum_scale * Complex{s.re + skip, s.im};
    });
  __syncthreads();

  // Made here, and the index anew: addresses of the output kept from the start took up to 120 registers more and, of 8192
  // points for sm_80, spilled.
  const Product<true> out = {args.element, int(args.seqlen), row_of<true>(args.out, b, d),
                             row_of<true>(args.postgate, b, d)};
  const int first = thread_index_again();
  const float back = kUnit * S::kSize * ldexpf(1.0f, exponent - S::kLargest) / spectrum_scale;
  M2_NO_UNROLL
  for (int group = 0; group < S::kColumns; group += S::kGroup)
    M2_UNROLL
    for (int c = 0; c < S::kGroup; ++c) {
      const int j = first + (group + c) * S::kThreads;
      Complex x[kOuter];
      M2_UNROLL
      for (int q = 0; q < kOuter; ++q) {
        const uint32_t word = words.load(word_of(q, j));
        x[q] = {half_to_float(uint16_t(word)), half_to_float(uint16_t(word >> 16))};
      }
      outer_twiddles<S::kSize, true>(j, x);
      outer_dft<kOuter, true>(x);
      M2_UNROLL
      for (int i = 0; i < kOuter; ++i) out(j + i * kRun, back * (x[i] * conj(outer_twist<kOuter>(i))).re);
    }
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
  largest = warp_max(largest);
  if (threadIdx.x % 32 == 0) maxima.store(int(threadIdx.x) / 32, largest);
  __syncthreads();
  for (int i = 0; i < kScaleThreads / 32; ++i) largest = fmaxf(largest, maxima.load(i));
  if (threadIdx.x == 0) scales[d] = ldexpf(1.0f, -1 - exponent_of(largest));
}

// The order of the spectra that filter_spectrum makes on the current device.
template <int kPlan>
cudaError_t order_of(Order* order) {
  constexpr FftPlan plan = kFftPlans[kPlan];
  int64_t largest = 0;
  const cudaError_t error = max_fft_size(&largest);
  if (error != cudaSuccess) return error;
  *order = kOrder<kPlan>;
  if (plan.size <= largest) return cudaSuccess;
  LongFftPlan rows;
  const cudaError_t unplanned = find_long_plan(plan.size, &rows);
  const FftPlan* row = find_fft_plan(rows.row);
  if (unplanned != cudaSuccess || !row || rows.passes != 1 || row->passes + 1 != plan.passes) return cudaErrorInvalidValue;
  for (int pass = 0; pass < row->passes; ++pass)  // the digits are the same, first and last elsewhere
    if (row->radix[pass] != plan.radix[pass + 1]) return cudaErrorInvalidValue;
  *order = {row->size, row->size / row->radix[row->passes - 1]};
  return cudaSuccess;
}

}  // namespace

bool fft_conv_mma_serves(const FftConvArgs& args) {
  if (args.element == Element::f32) return false;
  return with_plan(args.fft_size, [&](auto plan) {
           int device = 0, available = 0;
           cudaError_t error = cudaGetDevice(&device);
           if (error == cudaSuccess)
             error = cudaDeviceGetAttribute(&available, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
           Order order;
           if (error == cudaSuccess) error = order_of<plan.value>(&order);
           return error != cudaSuccess || Shape<plan.value>::kBytes <= size_t(available) ? error : cudaErrorInvalidValue;
         }) == cudaSuccess;
}

cudaError_t fft_conv_mma_fwd(const FftConvArgs& args, float* scales, cudaStream_t stream, LaunchShape* shape) {
  if (!fft_conv_mma_serves(args) || args.batch < 0 || args.dim < 0 || args.seqlen < 0 || args.seqlen > args.fft_size)
    return cudaErrorInvalidValue;
  if (args.dim > 0 && args.batch > INT32_MAX / args.dim) return cudaErrorInvalidValue;
  return with_plan(args.fft_size, [&](auto plan) {
    using S = Shape<plan.value>;
    const LaunchShape wanted = {args.batch * args.dim, S::kThreads, S::kBytes};
    if (shape) *shape = wanted;
    if (wanted.blocks == 0) return cudaSuccess;
    Order order;
    cudaError_t error = order_of<plan.value>(&order);
    if (error == cudaSuccess)
      error = launch(&fft_conv_mma_scale_kernel, unsigned(args.dim), kScaleThreads, kScaleThreads / 32 * sizeof(float),
                     stream, args, scales);
    if (error != cudaSuccess) return error;
    return launch(&fft_conv_mma_fwd_kernel<plan.value>, unsigned(wanted.blocks), unsigned(wanted.threads),
                  wanted.shared_bytes, stream, args, static_cast<const float*>(scales), order);
  });
}

}  // namespace m2::cuda
