// Right-angle FFT convolution of 16-bit tensors on tensor cores, forward, 16384 and 32768 points in one kernel. Interface:
// fft_conv_mma.h. Compiled by nvcc, or by g++ under the emulator. Test: ../testing/test_fft_conv_mma_cuda.cpp.
//
// As fft_conv_mma.cu, which has the range of the values: a block owns a row, a pass of radix 64 or 128 goes before the runs
// of 256 points and after them. A thread transforms 64 values. Of radix 128, two threads share a column: x[i] + x[i + 64]
// has the even outputs and x[i] - x[i + 64] the odd ones, so each reads half of the inputs and passes them on; on the way
// back each passes on the real parts that the other one's outputs need. The row is read twice, for its largest value and for
// the transform, from cache the second time: its values would not fit into registers beside the transform.
#include <cmath>

#include "fft_conv_long.h"
#include "fft_conv_mma.cuh"
#include "fft_conv_mma.h"
#include "fft_signals.cuh"

namespace m2::cuda {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32, kOuter = 64;
constexpr int kHalf = kOuter * kRun;  // points of radix 64
constexpr int kAtOnce = 16;           // loads that are under way together
constexpr int kPartner = 16;          // two halves of a warp have the even and the odd outputs of the same columns

constexpr size_t bytes_needed(int64_t fft_size) { return (fft_size / kRun * kRunWords + kWarps) * sizeof(uint32_t); }

// Where a spectrum holds frequency f: its digits in the radices 16, 16, 8 << extra and 8, times these.
struct LargeOrder {
  int first, second, last, extra;

  __device__ __forceinline__ int operator()(int f) const {
    const int third = f >> 8;
    return (f & 15) * first + (f >> 4 & 15) * second + (third & ((8 << extra) - 1)) + (third >> (3 + extra)) * last;
  }
};

// The column of this thread in round `round`, and whether it has the odd outputs.
struct Column {
  int j, odd;

  __device__ __forceinline__ Column(int round, int halves) {
    const int thread = thread_index_again(), lane = thread % 32;
    odd = halves == 2 ? lane / kPartner : 0;
    j = halves == 2 ? round * (kThreads / 2) + thread / 32 * kPartner + lane % kPartner : thread;
  }
};

// What the partner gives for `mine`; 0 if there is none.
__device__ __forceinline__ float from_partner(float mine, int halves) {
  const float other = __shfl_xor_sync(~0u, mine, kPartner);
  return halves == 2 ? other : 0.0f;
}

// Input i of a thread's transform is multiplied by theta^(i step), and for odd outputs by exp(-2 pi i i / 128): by this to
// the power of i. Each factor is the one before times this: an error of 1e-6 at most, far below that of float16.
__device__ __forceinline__ Complex input_step(const Column& at, int halves) {
  return root(halves == 2 ? 511 + 4 * at.odd : 510, 512);
}

// Multiplies output q, of run halves q + odd, by theta^j exp(-2 pi i j (halves q + odd) / size), or by its conjugate.
template <bool kConjugate>
__device__ __forceinline__ void output_twiddles(const Column& at, int halves, Complex (&x)[kOuter]) {
  const int turns = 4 * halves * kHalf;  // a full one
  const Complex step = root(at.j, kHalf);
  Complex w = root(turns - at.j + 4 * at.j * at.odd, turns);
  M2_UNROLL
  for (int q = 0; q < kOuter; ++q) {
    x[q] = x[q] * (kConjugate ? conj(w) : w);
    w = w * step;
  }
}

constexpr Complex kEighth = {0.70710678f, 0.70710678f};  // theta^(64 step) of radix 128

// The inputs of a column, times `scale`, each with its part of the twist.
__device__ __forceinline__ void read_column(const Signal<true>& signal, float scale, const Column& at, int halves,
                                            Complex (&x)[kOuter]) {
  Complex power = {scale, 0.0f};
  const Complex step = input_step(at, halves);
  M2_UNROLL
  for (int group = 0; group < kOuter; group += kAtOnce) {
    float mine[kAtOnce];
    read_signal(signal, [&](int i) { return at.j + (group + i + at.odd * kOuter) * kRun; }, mine);
    M2_UNROLL
    for (int i = 0; i < kAtOnce; ++i) {
      const float other = from_partner(mine[i], halves);
      const float first = at.odd ? other : mine[i], second = at.odd ? -mine[i] : other;
      x[group + i] = Complex{first + kEighth.re * second, kEighth.im * second} * power;
      power = power * step;
    }
  }
}

// The results of a column, times `scale`, from values whose real and imaginary parts are exchanged.
__device__ __forceinline__ void write_column(const Product<true>& out, float scale, const Column& at, int halves,
                                             const Complex (&x)[kOuter]) {
  Complex power = {scale, 0.0f};
  const Complex step = input_step(at, halves);
  M2_UNROLL
  for (int group = 0; group < kOuter; group += kAtOnce) {
    float result[kAtOnce];
    M2_UNROLL
    for (int i = 0; i < kAtOnce; ++i) {
      const Complex y = Complex{x[group + i].im, x[group + i].re} * conj(power);
      const float first = y.re, second = (y * conj(kEighth)).re;  // parts of outputs i and i + 64
      const float other = from_partner(at.odd ? first : second, halves);
      result[i] = other + (at.odd ? -second : first);
      power = power * step;
    }
    write_product(out, [&](int i) { return at.j + (group + i + at.odd * kOuter) * kRun; }, result);
  }
}

__global__ void __launch_bounds__(kThreads)
    fft_conv_mma_large_fwd_kernel(FftConvArgs args, const float* scales, LargeOrder order, int halves) {
  const auto [b, d] = BlockRow(args);
  const Signal<true> signal = {args.element, int(args.seqlen), row_of<true>(args.u, b, d),
                               row_of<true>(args.pregate, b, d)};
  const int size = halves * kHalf, runs = halves * kOuter;
  const Words words;
  const SharedArray<float> maxima;  // behind the words

  float largest = 0.0f;
  M2_NO_UNROLL
  for (int n = int(threadIdx.x); n < size; n += kAtOnce * kThreads) {
    float g[kAtOnce];
    read_signal(signal, [&](int i) { return n + i * kThreads; }, g);
    M2_UNROLL
    for (float x : g) largest = fmaxf(largest, fabsf(x));
  }
  largest = block_max<kWarps>(maxima, runs * kRunWords, largest);
  const int exponent = exponent_of(largest), most = halves == 2 ? -1 : 0;  // a row is scaled to less than 2^(most + 1)
  const float unit = halves == 2 ? 0.08838835f : 0.125f;

  M2_NO_UNROLL
  for (int back = 0; back < 2; ++back) {
    M2_NO_UNROLL
    for (int round = 0; round < halves; ++round) {
      const Column at(round, halves);
      Complex x[kOuter];
      if (back) {
        M2_UNROLL
        for (int q = 0; q < kOuter; ++q) x[q] = unpacked(words.load(word_of(halves * q + at.odd, at.j)));
        output_twiddles<true>(at, halves, x);
        M2_UNROLL
        for (int q = 0; q < kOuter; ++q) x[q] = {x[q].im, x[q].re};  // makes the transform the inverse one
      } else {
        read_column(signal, unit * ldexpf(1.0f, most - exponent), at, halves, x);
      }
      Dft<kOuter, false>::run(x);
      if (back) {
        const Product<true> out = {args.element, int(args.seqlen), row_of<true>(args.out, b, d),
                                   row_of<true>(args.postgate, b, d)};
        write_column(out, unit * float(size) * ldexpf(1.0f, exponent - most) / scales[d], at, halves, x);
      } else {
        output_twiddles<false>(at, halves, x);
        M2_UNROLL
        for (int q = 0; q < kOuter; ++q) words.store(word_of(halves * q + at.odd, at.j), pack_half(x[q].re, x[q].im));
      }
    }
    if (back) return;
    __syncthreads();

    Matrix f;
    Complex w[2][4];
    make_fourier(f, w);
    const Complex* spectrum = reinterpret_cast<const Complex*>(args.spectrum) + d * size;
    const float spectrum_scale = scales[d];
    const float skip = args.skip ? spectrum_scale * load_readonly(args.skip + d * args.stride_skip) / float(size) : 0.0f;
    M2_NO_UNROLL
    for (int run = int(threadIdx.x) / 32; run < runs; run += kWarps) {
      Tiles y;
      transform_run(words, run, f, w, y);
      each_value(y, [&](Complex x, int k) {
        const Complex s = load_readonly(spectrum + order(run + runs * k));
        return x * Complex{spectrum_scale * s.re + skip, spectrum_scale * s.im};
      });
      invert_run(words, run, f, w, y);
    }
    __syncthreads();
  }
}

// The order of the spectra that filter_spectrum makes on the current device.
cudaError_t order_of(int64_t fft_size, LargeOrder* order) {
  int64_t largest = 0;
  const cudaError_t error = max_fft_size(&largest);
  if (error != cudaSuccess) return error;
  LongFftPlan rows = {fft_size, 0, fft_size};  // of one kernel
  if (fft_size > largest && find_long_plan(fft_size, &rows) != cudaSuccess) return cudaErrorInvalidValue;
  const FftPlan* row = find_fft_plan(rows.row);
  if (!row || rows.passes + row->passes != 4 || rows.passes > 1) return cudaErrorInvalidValue;
  const int extra = fft_size == kHalf ? 0 : 1, wanted[4] = {16, 16, 8 << extra, 8};
  const int* radix = row->radix;
  for (int pass = rows.passes; pass < 4; ++pass)
    if (radix[pass - rows.passes] != wanted[pass]) return cudaErrorInvalidValue;
  // A row keeps frequencies by the last digit first, then by the others in the order of its passes.
  const int second = 8 << extra;
  *order = {rows.passes ? row->size : 16 * second, second, row->size / 8, extra};
  return cudaSuccess;
}

}  // namespace

bool fft_conv_mma_large_serves(int64_t fft_size) {
  LargeOrder order;
  return (fft_size == kHalf || fft_size == 2 * kHalf) && order_of(fft_size, &order) == cudaSuccess &&
         fits_block(bytes_needed(fft_size)) == cudaSuccess;
}

cudaError_t fft_conv_mma_large_fwd(const FftConvArgs& args, const float* scales, cudaStream_t stream, LaunchShape* shape) {
  LargeOrder order;
  const cudaError_t error = order_of(args.fft_size, &order);
  if (error != cudaSuccess) return error;
  const LaunchShape wanted = {args.batch * args.dim, kThreads, bytes_needed(args.fft_size)};
  if (shape) *shape = wanted;
  if (wanted.blocks == 0) return cudaSuccess;
  return launch(&fft_conv_mma_large_fwd_kernel, unsigned(wanted.blocks), unsigned(wanted.threads), wanted.shared_bytes,
                stream, args, scales, order, int(args.fft_size / kHalf));
}

}  // namespace m2::cuda
