// Gradients of the right-angle FFT convolution of 16-bit tensors on tensor cores, 256 R points for R = 1, 2, .. 64.
// Interface: fft_conv_mma_bwd.h. Compiled by nvcc, or by g++ under the emulator. Test: ../testing/test_fft_conv_bwd_cuda.cpp.
//
// A block owns a channel of a part of the batch and walks over it in order. The row, U = F(u pregate), and the gradient of
// its result, D = F(dout postgate), are transformed side by side, so that a warp has the same frequencies of both in its
// registers: conj(U) D joins the sums in float32, S U and conj(S) D go back. The steps on tensor cores, and their range:
// fft_conv_mma.cuh, fft_conv_mma.h; each of the two rows has a power of two of its own, and so has the spectrum.
//
// A row lies in shared memory, 4 bytes a point: float32 between tensors and transforms, two float16 in between. All points
// of a column, of equal n % 256, belong to one thread from the tensors to the runs of 256 points, and back: loads, passes of
// radix 16 and, above 4096 points, 2 or 4, and stores need no barrier between them. Three barriers a pair of rows are left,
// four above 4096 points, where half of the threads have the one row and half the other.
//
// Sums over the batch and the scaled spectrum are kept in the order in which lanes meet them. The batch is split, and its
// parts are added, as in fft_conv_bwd.cu: the same bits in every run on every device.
#include "fft_conv_mma_bwd.h"

#include <cmath>
#include <cstring>

#include "fft_bwd_passes.cuh"
#include "fft_conv_mma.cuh"
#include "fft_row_points.cuh"

namespace m2::cuda {
namespace {

// float32 values in words of shared memory, as their bits: for a compiler, floats and words would not be the same memory.
class Floats {
 public:
  __device__ __forceinline__ float load(int i) const {
    const uint32_t bits = words_.load(i);
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
  }
  __device__ __forceinline__ void store(int i, float x) const {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    words_.store(i, bits);
  }

 private:
  Words words_;
};

// 1 / sqrt(radix)
__host__ __device__ constexpr float unitary(int radix) {
  return radix == 1 ? 1.0f : radix == 2 ? 0.70710678f : radix == 4 ? 0.5f : radix == 8 ? 0.35355339f : 0.25f;
}

// The 256 frequencies of a run by a warp: y holds frequency k1 + 16 k2 in row k1, column k2.
__device__ __forceinline__ void transform_run(const Words& words, int run, const Matrix& f, const Complex (&w)[2][4],
                                              Tiles& y) {
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
  Tiles x;
  multiply_left<false>(f, re, im, x);
  multiply_each<false>(x, w);
  multiply_right(as_left(x), f, y);
}

// The way back, from frequencies as transform_run leaves them to the run's words.
__device__ __forceinline__ void invert_run(const Words& words, int run, const Matrix& f, const Complex (&w)[2][4],
                                           const Tiles& frequencies) {
  const int lane = int(threadIdx.x) % 32, g = lane / 4, t = lane % 4;
  uint32_t re[2][2], im[2][2];
  Tiles x, y;
  as_right(frequencies.re, re);
  as_right(frequencies.im, im);
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

template <int kPlan>
struct Shape {
  static constexpr int kSize = kFftPlans[kPlan].size, kOuter = kSize / kRun;
  static constexpr int kFirst = kOuter > 16 ? 16 : kOuter, kSecond = kOuter / kFirst;  // radices of the outer passes
  static constexpr int kRowThreads = kOuter > 16 ? kRun : kOuter > 2 ? 16 * kOuter : 32;
  static constexpr int kRows = kOuter > 16 ? 2 : 1;  // that the block's threads share at a time; there are two
  static constexpr int kThreads = kRows * kRowThreads, kRowWarps = kRowThreads / 32, kWarps = kThreads / 32;
  static constexpr int kLargest = kSize <= 4096 ? 2 : kSize == 8192 ? 1 : 0;  // a row is scaled to less than 2^(this + 1)
  static constexpr bool kSharedSums = kSize <= kMaxSharedSums;
  static constexpr int kMaxima = 2 * kOuter * kRunWords;             // behind both rows: of the rows, of the spectrum
  static constexpr int kSums = (kMaxima + 2 * kRowWarps + kWarps + 1) / 2;  // behind those, in complex values
  static constexpr size_t kBytes = (kSums + (kSharedSums ? kSize : 0)) * sizeof(Complex);
  static constexpr int kStep = kSize / kFirst;  // from point to point of the first pass
};

// What a run of 256 points holds of a whole transform: frequencies first_frequency(run) + kOuter k.
template <int kPlan>
__device__ __forceinline__ int first_frequency(int run) {
  using S = Shape<kPlan>;
  return run / S::kSecond + S::kFirst * (run % S::kSecond);
}

// Calls run(at, frequency) for the frequencies of this thread, `at` being their place in sums and scaled spectrum.
template <int kPlan, class Run>
__device__ __forceinline__ void each_own_frequency(const Run& run) {
  using S = Shape<kPlan>;
  const int thread = thread_index_again(), lane = thread % 32, k = lane / 4 + 32 * (lane % 4);
  M2_NO_UNROLL
  for (int r = thread / 32; r < S::kOuter; r += S::kWarps)
    M2_UNROLL
    for (int v = 0; v < 8; ++v)  // as each_value counts them
      run((8 * r + v) * 32 + lane, first_frequency<kPlan>(r) + S::kOuter * (k + v % 4 / 2 * 8 + v % 2 * 16 + v / 4 * 128));
}

// The sums, in shared memory behind the rows or in global memory; each touched by one thread only.
template <int kPlan>
class Sums {
  using S = Shape<kPlan>;

 public:
  __device__ __forceinline__ explicit Sums(Complex* memory) : memory_(memory) {}
  __device__ __forceinline__ Complex get(int at) const {
    if constexpr (S::kSharedSums) return shared_.load(S::kSums + at);
    else return memory_[at];
  }
  __device__ __forceinline__ void set(int at, Complex x) {
    if constexpr (S::kSharedSums) shared_.store(S::kSums + at, x);
    else memory_[at] = x;
  }

 private:
  SharedArray<Complex> shared_;
  Complex* memory_;
};

// The scaled spectrum of the block's channel, skip included, for the thread that will read it; returns its scale.
template <int kPlan>
__device__ __forceinline__ float scale_spectrum(const Complex* spectrum, float skip, Complex* scaled) {
  using S = Shape<kPlan>;
  float largest = 0.0f;
  each_own_frequency<kPlan>([&](int at, int frequency) {
    Complex s = load_readonly(spectrum + spectrum_index<kPlan>(frequency, kOrder<kPlan>));
    s.re += skip;
    scaled[at] = s;
    largest = fmaxf(largest, fabsf(s.re) + fabsf(s.im));
  });
  largest = block_max<S::kWarps>(SharedArray<float>(), S::kMaxima + 2 * S::kRowWarps, largest);
  const float scale = ldexpf(1.0f, -1 - exponent_of(largest));
  each_own_frequency<kPlan>([&](int at, int) { scaled[at] = scale * scaled[at]; });
  return scale;
}

// Calls run(n) for the first of every kAtOnce points of this thread, of a row that kThreads share.
template <int kPlan, int kThreads, class Run>
__device__ __forceinline__ void each_own_points(const Run& run) {
  M2_NO_UNROLL
  for (int n = thread_index_again() % kThreads; n < Shape<kPlan>::kSize; n += kAtOnce * kThreads) run(n);
}

// Calls run(which) for the rows of this thread: 0 is u's, 1 dout's.
template <int kPlan, class Run>
__device__ __forceinline__ void each_own_row(const Run& run) {
  using S = Shape<kPlan>;
  M2_NO_UNROLL
  for (int which = int(threadIdx.x) / S::kRowThreads; which < 2; which += S::kRows) run(which);
}

// Where point n of a row lies, float32 or float16; and how far from there another of the same thread does, when the sum of
// their positions has no carry.
__device__ __forceinline__ int place(int n) { return word_of(int(unsigned(n) / kRun), n & (kRun - 1)); }
template <int kPlan>
__device__ __forceinline__ int place(int which, int n) {
  return which * Shape<kPlan>::kOuter * kRunWords + place(n);
}

template <int kPlan>
__device__ __forceinline__ void read_positions(Element element, int seqlen, const Row<const void>& x, int n,
                                               Points& out) {
  constexpr int kThreads = Shape<kPlan>::kRowThreads;
  read_points_as<kThreads, true>(element, x, n, real_points<kThreads>(n, seqlen), out);
}

// Row `which` becomes x * gate; the largest of its values joins the maxima.
template <int kPlan>
__device__ __forceinline__ void load_row(int which, Element element, int seqlen, const Row<const void>& x,
                                         const Row<const void>& gate) {
  using S = Shape<kPlan>;
  const Floats floats;
  float largest = 0.0f;
  each_own_points<kPlan, S::kRowThreads>([&](int n) {
    Points g, by;
    read_positions<kPlan>(element, seqlen, x, n, g);
    if (gate.data) {
      read_positions<kPlan>(element, seqlen, gate, n, by);
      M2_UNROLL
      for (int i = 0; i < kAtOnce; ++i) g[i] *= by[i];
    }
    const int at = place<kPlan>(which, n);
    M2_UNROLL
    for (int i = 0; i < kAtOnce; ++i) {
      floats.store(at + place(i * S::kRowThreads), g[i]);
      largest = fmaxf(largest, fabsf(g[i]));
    }
  });
  largest = warp_max(largest);
  const int warp = int(threadIdx.x) / 32 % S::kRowWarps;
  if (threadIdx.x % 32 == 0) floats.store(S::kMaxima + which * S::kRowWarps + warp, largest);
}

template <int kPlan>
__device__ __forceinline__ int row_exponent(int which) {
  using S = Shape<kPlan>;
  const Floats maxima;
  float largest = 0.0f;
  M2_UNROLL
  for (int i = 0; i < S::kRowWarps; ++i) largest = fmaxf(largest, maxima.load(S::kMaxima + which * S::kRowWarps + i));
  return exponent_of(largest);
}

// The second outer pass, in place: radix kSecond over the parts that the first one made, or back.
template <int kPlan, bool kInverse>
__device__ __forceinline__ void second_pass(int which) {
  using S = Shape<kPlan>;
  if constexpr (S::kSecond > 1) {
    const Words words;
    const int column = thread_index_again() % kRun;
    const Complex step = root(column, kRun * S::kSecond);
    Complex w[S::kSecond];
    constexpr float kUnit = unitary(S::kSecond);
    w[0] = {kUnit, 0.0f};
    M2_UNROLL
    for (int q = 1; q < S::kSecond; ++q) w[q] = w[q - 1] * (kInverse ? conj(step) : step);
    M2_NO_UNROLL
    for (int part = 0; part < S::kFirst; ++part) {
      const int at = word_of(which * S::kOuter + part * S::kSecond, column);
      Complex x[S::kSecond];
      M2_UNROLL
      for (int i = 0; i < S::kSecond; ++i) {
        x[i] = unpacked(words.load(at + i * kRunWords));
        if (kInverse) x[i] = x[i] * w[i];
      }
      Dft<S::kSecond, kInverse>::run(x);
      M2_UNROLL
      for (int i = 0; i < S::kSecond; ++i) {
        if (!kInverse) x[i] = x[i] * w[i];
        words.store(at + i * kRunWords, pack_half(x[i].re, x[i].im));
      }
    }
  }
}

// From float32 values, times `scale`, to runs.
template <int kPlan>
__device__ __forceinline__ void passes_forward(int which, float scale) {
  using S = Shape<kPlan>;
  const Floats floats;
  const Words words;
  M2_NO_UNROLL
  for (int j = thread_index_again() % S::kRowThreads; j < S::kStep; j += S::kRowThreads) {
    const int at = place<kPlan>(which, j);
    Complex x[S::kFirst];
    M2_UNROLL
    for (int i = 0; i < S::kFirst; ++i)
      x[i] = (scale * floats.load(at + place(i * S::kStep))) * outer_twist<S::kFirst>(i);
    outer_dft<S::kFirst, false>(x);
    outer_twiddles<S::kSize, false>(j, x);
    M2_UNROLL
    for (int q = 0; q < S::kFirst; ++q) words.store(at + place(q * S::kStep), pack_half(x[q].re, x[q].im));
  }
  second_pass<kPlan, false>(which);
}

// And back, the real parts times `scale`.
template <int kPlan>
__device__ __forceinline__ void passes_back(int which, float scale) {
  using S = Shape<kPlan>;
  const Floats floats;
  const Words words;
  second_pass<kPlan, true>(which);
  M2_NO_UNROLL
  for (int j = thread_index_again() % S::kRowThreads; j < S::kStep; j += S::kRowThreads) {
    const int at = place<kPlan>(which, j);
    Complex x[S::kFirst];
    M2_UNROLL
    for (int q = 0; q < S::kFirst; ++q) x[q] = unpacked(words.load(at + place(q * S::kStep)));
    outer_twiddles<S::kSize, true>(j, x);
    outer_dft<S::kFirst, true>(x);
    M2_UNROLL
    for (int i = 0; i < S::kFirst; ++i)
      floats.store(at + place(i * S::kStep), scale * (x[i] * conj(outer_twist<S::kFirst>(i))).re);
  }
}

// out = the row * factor, if there is such an output.
template <int kPlan>
__device__ __forceinline__ void write_row(int which, Element element, int seqlen, const Row<void>& out,
                                          const Row<const void>& factor) {
  using S = Shape<kPlan>;
  const Floats floats;
  if (!out.data) return;
  each_own_points<kPlan, S::kRowThreads>([&](int n) {
    Points y, x;
    const int at = place<kPlan>(which, n);
    M2_UNROLL
    for (int i = 0; i < kAtOnce; ++i) y[i] = floats.load(at + place(i * S::kRowThreads));
    if (factor.data) {
      read_positions<kPlan>(element, seqlen, factor, n, x);
      M2_UNROLL
      for (int i = 0; i < kAtOnce; ++i) y[i] *= x[i];
    }
    write_points_as<S::kRowThreads, true>(element, out, n, seqlen, y);
  });
}

// Scratch: the spectra of the parts if there are several; of each block, its scaled spectrum, its sums if they are in
// memory, and its part of dskip.
template <int kPlan>
__global__ void __launch_bounds__(Shape<kPlan>::kThreads, 1)
    fft_conv_mma_bwd_kernel(FftConvBwdArgs args, int64_t parts) {
  using S = Shape<kPlan>;
  const unsigned part = blockIdx.x / unsigned(args.dim);
  const int64_t d = blockIdx.x % unsigned(args.dim), rows = parts * args.dim;
  const int64_t block = int64_t(blockIdx.x) * S::kSize;
  Complex* scratch = reinterpret_cast<Complex*>(args.scratch);
  Complex* target = (parts > 1 ? scratch : reinterpret_cast<Complex*>(args.dspectrum)) + block;
  if (parts > 1) scratch += rows * S::kSize;
  Complex* scaled = scratch + block;
  Sums<kPlan> sums(scaled + rows * S::kSize);
  float* skips = parts > 1 ? reinterpret_cast<float*>(scratch + (S::kSharedSums ? 1 : 2) * rows * S::kSize) : args.dskip;
  const float skip = args.skip ? load_readonly(args.skip + d * args.stride_skip) / S::kSize : 0.0f;
  const float spectrum_scale = scale_spectrum<kPlan>(
      reinterpret_cast<const Complex*>(args.spectrum) + d * S::kSize, skip, scaled);
  each_own_frequency<kPlan>([&](int at, int) { sums.set(at, {0.0f, 0.0f}); });
  const Words words;
  const Floats floats;
  const Element element = args.element;
  const int seqlen = int(args.seqlen), lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32;
  Matrix f;
  Complex w[2][4];
  make_fourier(f, w);
  constexpr float kUnit = unitary(S::kFirst);
  double dskip = 0.0;

  const BatchPart of_batch(args.batch, parts, part);
  M2_NO_UNROLL
  for (int64_t b = of_batch.first; b < of_batch.last; ++b) {
    const auto row_at = [&](const auto& x) { return row_of<true>(x, b, d); };
    each_own_row<kPlan>([&](int which) {
      load_row<kPlan>(which, element, seqlen, which ? row_at(args.dout) : row_at(args.u),
                      which ? row_at(args.postgate) : row_at(args.pregate));
    });
    __syncthreads();
    float products = 0.0f;
    each_own_points<kPlan, S::kThreads>([&](int n) {
      const int at = place<kPlan>(0, n), other = place<kPlan>(1, n);
      M2_UNROLL
      for (int i = 0; i < kAtOnce; ++i)
        products += floats.load(at + place(i * S::kThreads)) * floats.load(other + place(i * S::kThreads));
    });
    dskip += double(products);
    if constexpr (S::kRows > 1) __syncthreads();  // else they are the thread's own
    const int exponents[2] = {row_exponent<kPlan>(0) - S::kLargest, row_exponent<kPlan>(1) - S::kLargest};
    each_own_row<kPlan>([&](int which) {
      passes_forward<kPlan>(which, kUnit * ldexpf(1.0f, -(which ? exponents[1] : exponents[0])));
    });
    __syncthreads();

    const float unscale = S::kSize * ldexpf(1.0f, exponents[0] + exponents[1]);
    M2_NO_UNROLL
    for (int run = warp; run < S::kOuter; run += S::kWarps) {
      Tiles x, y;
      transform_run(words, run, f, w, x);
      transform_run(words, S::kOuter + run, f, w, y);
      M2_UNROLL
      for (int v = 0; v < 8; ++v) {
        const int at = (8 * run + v) * 32 + lane;
        const Complex u = {x.re[v / 4][v % 4], x.im[v / 4][v % 4]}, dy = {y.re[v / 4][v % 4], y.im[v / 4][v % 4]};
        const Complex s = scaled[at], su = s * u, sdy = conj(s) * dy;
        sums.set(at, sums.get(at) + unscale * (conj(u) * dy));
        x.re[v / 4][v % 4] = su.re, x.im[v / 4][v % 4] = su.im;
        y.re[v / 4][v % 4] = sdy.re, y.im[v / 4][v % 4] = sdy.im;
      }
      if (args.dpostgate.data) invert_run(words, run, f, w, x);
      invert_run(words, S::kOuter + run, f, w, y);
    }
    __syncthreads();

    each_own_row<kPlan>([&](int which) {
      if (!which && !args.dpostgate.data) return;
      const float back = kUnit * S::kSize * ldexpf(1.0f, which ? exponents[1] : exponents[0]);
      passes_back<kPlan>(which, back / spectrum_scale);
      M2_NO_UNROLL
      for (int output = 0; output <= which; ++output)
        write_row<kPlan>(which, element, seqlen,
                         !which ? row_at(args.dpostgate) : output ? row_at(args.dpregate) : row_at(args.du),
                         !which ? row_at(args.dout) : output ? row_at(args.u) : row_at(args.pregate));
    });
  }
  each_own_frequency<kPlan>(
      [&](int at, int frequency) { target[spectrum_index<kPlan>(frequency, kOrder<kPlan>)] = sums.get(at); });
  float total = float(dskip);
  M2_NO_UNROLL
  for (int bits = 16; bits > 0; bits /= 2) total += __shfl_xor_sync(~0u, total, bits);
  if (lane == 0) floats.store(S::kMaxima + warp, total);
  __syncthreads();
  if (threadIdx.x != 0) return;
  total = 0.0f;
  for (int i = 0; i < S::kWarps; ++i) total += floats.load(S::kMaxima + i);
  skips[blockIdx.x] = total;
}

template <int kPlan>
int64_t parts_for(const FftConvBwdArgs& args) {
  return batch_parts(args.batch, args.dim * Shape<kPlan>::kThreads);
}

template <int kPlan>
int64_t scratch_of(const FftConvBwdArgs& args) {
  const int64_t parts = parts_for<kPlan>(args), rows = parts * args.dim;
  return rows * (2 * args.fft_size * ((parts > 1) + 1 + !Shape<kPlan>::kSharedSums) + (parts > 1));
}

}  // namespace

// Shared memory that holds two rows of 5 bytes a point holds one of 8.5: spectra of these sizes are made in one kernel, and
// have its order.
bool fft_conv_mma_bwd_serves(const FftConvBwdArgs& args) {
  return args.element != Element::f32 &&
         with_plan(args.fft_size, [](auto plan) { return fits_block(Shape<plan.value>::kBytes); }) == cudaSuccess;
}

int64_t fft_conv_mma_bwd_scratch(const FftConvBwdArgs& args) {
  int64_t floats = 0;
  with_plan(args.fft_size, [&](auto plan) {
    floats = scratch_of<plan.value>(args);
    return cudaSuccess;
  });
  return floats;
}

cudaError_t fft_conv_mma_bwd(const FftConvBwdArgs& args, cudaStream_t stream, LaunchShape* shape) {
  if (!fft_conv_mma_bwd_serves(args) || args.batch < 0 || args.dim < 0 || args.seqlen < 0 ||
      args.seqlen > args.fft_size)
    return cudaErrorInvalidValue;
  if (args.dim > 0 && args.batch > INT32_MAX / args.dim) return cudaErrorInvalidValue;
  return with_plan(args.fft_size, [&](auto plan) {
    using S = Shape<plan.value>;
    const int64_t parts = parts_for<plan.value>(args), rows = parts * args.dim;
    const LaunchShape wanted = {rows, S::kThreads, S::kBytes};
    if (shape) *shape = wanted;
    if (rows == 0) return cudaSuccess;
    const cudaError_t error = launch(&fft_conv_mma_bwd_kernel<plan.value>, unsigned(rows), unsigned(S::kThreads),
                                     S::kBytes, stream, args, parts);
    if (error != cudaSuccess || parts == 1) return error;
    const float* skips = args.scratch + scratch_of<plan.value>(args) - rows;
    return sum_spectrum_gradients(args, parts, stream, skips);
  });
}

}  // namespace m2::cuda
