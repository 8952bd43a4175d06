// Gradients of the sequence mixer in one kernel: a block owns one of the two convolutions of a channel, in a part of the batch.
// Interface and formulas: monarch_mixer.h. Compiled by nvcc, or by g++ under the emulator.
// Test: ../testing/test_monarch_mixer_bwd_cuda.cpp.
//
// A block walks over its part of the batch in order, as that of fft_conv_bwd.cu does. Of the gated convolution, a row and its
// gradient take these steps, each with the channel of p that it names:
//     x1, v            g = x1 v, then forward: G = F(g), kept, and y = conv(g)
//     x2               dx2 = dout y and dout x2; then backward: D = F(dout x2), sums += conj(G) D, and dg
//     x1, v            dv = dg x1 and dx1 = dg v
//     x2, v, x1        the gradients of p, of taps and of the bias, as soon as their dx is known
// A thread computes its own points of the row alone; only the short convolutions need the positions before its own, and their
// gradients those after: for that one channel at a time, or its gradient, lies in `stage`, a float a point, between two
// barriers. Real parts of the row hold what goes through the transforms, imaginary ones the gradient of a slice.
// Nothing is kept from the forward kernel. The other convolution is a row of u and one of dout. All steps share one copy
// of the passes and of everything else: machine code for each was three times as large.
//
// The sums over positions that are the gradients of taps and bias are added up over a thread's points, a warp's threads in
// a tree, the batch in order, the block's warps in order and the parts in order: the same bits in every run.
#include "monarch_mixer.h"

#include <algorithm>

#include "fft_bwd_passes.cuh"
#include "fft_row_points.cuh"

namespace m2::cuda {
namespace {

constexpr int kSums = kMaxShortWidth + 1;  // of a channel of p: the gradients of its taps, by lag, and of its bias
constexpr int kSumThreads = 256;
constexpr int kMaxShared = 2048;  // points whose frequencies and sums lie beside the row: 57 KB

// What happens to a row, in order. The convolution runs forward after kValue, backward after kPostBack.
enum Step { kGate, kValue, kPost, kPostBack, kGateAgain, kValueAgain, kValueBack, kGateTaps, kGateBack, kSteps };

// x1, x2 or v.
__device__ __forceinline__ int slice_of(int step) {
  return step == kPost || step == kPostBack ? 1 : step == kValue || step == kValueAgain || step == kValueBack ? 2 : 0;
}

template <int kPlan>
struct Memory {
  static constexpr int kSize = kFftPlans[kPlan].size, kThreads = kFftPlans[kPlan].threads, kWarps = kThreads / 32;
  static constexpr bool kShared = kSize <= kMaxShared;  // frequencies and sums
  static constexpr int kStage = 2 * (padded(kSize) + (kShared ? 2 * kSize : 0));  // from here on, in floats
  static constexpr int kTotals = kStage + kSize;
  static constexpr int kTotalsCount = 3 * kSums * kWarps;
  static constexpr size_t kBytes = (kTotals + kTotalsCount) * sizeof(float);
};

// The value `lag` positions after point i of points n, 0 outside of the row.
template <int kPlan>
__device__ __forceinline__ float staged(const SharedArray<float>& floats, int n, int i, int lag) {
  using M = Memory<kPlan>;
  const int at = n + lag + i * M::kThreads;
  return unsigned(at) < unsigned(M::kSize) ? floats.load(M::kStage + at) : 0.0f;
}

// Sums of the gradients of taps and biases, [3 slices][kSums][warps].
template <int kPlan>
struct Totals {
  using M = Memory<kPlan>;
  SharedArray<float> floats;

  // Adds x over the warp's threads to sum k of a slice.
  __device__ __forceinline__ void add(int slice, int k, float x) const {
    M2_UNROLL
    for (int bit = 16; bit > 0; bit /= 2) x += __shfl_xor_sync(~0u, x, bit);
    const int thread = thread_index_again(), at = M::kTotals + (slice * kSums + k) * M::kWarps + thread / 32;
    if (thread % 32 == 0) floats.store(at, floats.load(at) + x);
  }
  __device__ __forceinline__ void clear() const {
    for (int i = thread_index_again(); i < M::kTotalsCount; i += M::kThreads) floats.store(M::kTotals + i, 0.0f);
  }
  // After a barrier, as the last step of a row has: the sums of slice s to the kSums floats at to + s * stride.
  __device__ __forceinline__ void write(float* to, int64_t stride) const {
    const int i = thread_index_again();
    if (i >= 3 * kSums) return;
    float sum = 0.0f;
    M2_NO_UNROLL
    for (int warp = 0; warp < M::kWarps; ++warp) sum += floats.load(M::kTotals + i * M::kWarps + warp);
    to[i / kSums * stride + i % kSums] = sum;
  }
};

// Scratch: the sums of the parts if there are several, then the frequencies of each block if they are in memory, then the
// gradients of taps and biases, [part][3 * dim][kSums].
template <int kPlan>
__global__ void __launch_bounds__(kFftPlans[kPlan].threads, 1)
    monarch_mixer_bwd_kernel(MonarchMixerBwdArgs args, const Complex* table, int64_t parts) {
  using M = Memory<kPlan>;
  constexpr int kSize = M::kSize;
  const int64_t dim = args.forward.dim, d = blockIdx.x % unsigned(dim);
  const unsigned rest = blockIdx.x / unsigned(dim), part = rest % unsigned(parts);
  const bool residual = rest >= parts;
  const float* skips = residual ? args.forward.skip2 : args.forward.skip;
  const float skip = skips ? load_readonly(skips + d) / kSize : 0.0f;
  const Complex* spectrum =
      reinterpret_cast<const Complex*>(residual ? args.forward.spectrum2 : args.forward.spectrum) + d * kSize;
  Complex* scratch = reinterpret_cast<Complex*>(args.scratch);
  Complex* target = parts > 1 ? scratch + int64_t(blockIdx.x) * kSize
                              : reinterpret_cast<Complex*>(residual ? args.dspectrum2 : args.dspectrum) + d * kSize;
  if (parts > 1) scratch += int64_t(gridDim.x) * kSize;
  Frequencies<kPlan, M::kShared> sums(0, target), kept(1, scratch + int64_t(blockIdx.x) * kSize);
  if (!M::kShared) scratch += int64_t(gridDim.x) * kSize;
  const Totals<kPlan> totals;
  const SharedArray<Complex> row;
  const SharedArray<float> stage;  // from M::kStage on
  const Element element = args.forward.element;
  const int seqlen = int(args.forward.seqlen), width = args.forward.width;

  each_frequency<kPlan>([&](int i) { sums.set(i, {0.0f, 0.0f}); });
  totals.clear();
  const BatchPart of_batch(args.forward.batch, parts, part);
  M2_NO_UNROLL
  for (int64_t b = of_batch.first; b < of_batch.last; ++b) {
    const bool* mask = args.forward.mask ? args.forward.mask + b * seqlen : nullptr;
    const auto row_at = [&](const auto& x, int64_t channel) { return row_of(element, x, b, channel); };
    M2_NO_UNROLL
    for (int step = 0; step < kSteps; ++step) {
      const bool convolves = step == kValue || step == kPostBack;
      const bool back = step == kPostBack || step == kValueBack || step == kGateBack;
      if (residual && !convolves && step != kGateBack) continue;
      const int slice = slice_of(step);
      const int64_t channel = slice * dim + d;

      if (residual ? convolves : !back) {
        const Row<const void> x = !residual        ? row_at(args.forward.p, channel)
                                  : step == kValue ? row_at(args.forward.u, d)
                                                   : row_at(args.dout, d);
        M2_NO_UNROLL
        for (int input = 0; input < (step == kPost ? 2 : 1); ++input)
          each_points<kPlan>([&](int n) {
            Points values;
            const uint32_t real = real_points<kFftPlans[kPlan].threads>(n, seqlen, mask);
            read_points<kPlan>(element, input ? row_at(args.dout, d) : x, n, real, values);
            if (residual) return put_points<kPlan>(row, n, values);
            M2_UNROLL
            for (int i = 0; i < kAtOnce; ++i) {
              const int at = padded(n) + point_distance<kPlan>(i);
              if (input) row.store(at, {row.load(at).re, values[i]});
              else stage.store(M::kStage + n + i * M::kThreads, values[i]);
            }
          });
      } else if (!residual) {  // the slice's gradient; that of x1 takes the place of that of v
        each_points<kPlan>([&](int n) {
          M2_UNROLL
          for (int i = 0; i < kAtOnce; ++i) {
            const int at = padded(n) + point_distance<kPlan>(i);
            const Complex x = row.load(at);
            stage.store(M::kStage + n + i * M::kThreads, x.im);
            row.store(at, {x.re, x.re});
          }
        });
      }
      __syncthreads();

      const float* weight = args.forward.short_weight + channel * width + width - 1;  // of lag 0
      const float bias = args.forward.short_bias && !back ? load_readonly(args.forward.short_bias + channel) : 0.0f;
      if (!residual || step == kGateBack) each_points<kPlan>([&](int n) {
        const uint32_t real = real_points<kFftPlans[kPlan].threads>(n, seqlen, mask);
        Points x;
        if (residual) {
          get_points<kPlan>(row, n, x);
        } else {
          M2_UNROLL
          for (int i = 0; i < kAtOnce; ++i) x[i] = bias;
          M2_NO_UNROLL
          for (int k = 0; k < width; ++k) {
            const float w = load_readonly(weight - k);
            M2_UNROLL
            for (int i = 0; i < kAtOnce; ++i) x[i] += w * staged<kPlan>(stage, n, i, back ? k : -k);
          }
        }
        M2_UNROLL
        for (int i = 0; i < kAtOnce; ++i)
          if (!(real >> i & 1)) x[i] = 0.0f;
        if (back) return write_points<kPlan>(element, residual ? row_at(args.du, d) : row_at(args.dp, channel), n, seqlen, x);
        if (step == kGate) return put_points<kPlan>(row, n, x);
        if (step == kGateTaps) return;
        M2_UNROLL
        for (int i = 0; i < kAtOnce; ++i) {
          const int at = padded(n) + point_distance<kPlan>(i);
          const Complex y = row.load(at);
          if (step == kPost) row.store(at, {y.im * x[i], y.im * y.re});  // of dout
          else if (step == kGateAgain) row.store(at, {y.re, y.re * x[i]});
          else row.store(at, {y.re * x[i], y.im});
        }
      });

      const bool taps_wanted = step == kPost || step == kValueAgain || step == kGateTaps;
      M2_NO_UNROLL
      for (int k = 0; taps_wanted && !residual && k <= width; ++k) {
        float sum = 0.0f;
        each_points<kPlan>([&](int n) {
          M2_UNROLL
          for (int i = 0; i < kAtOnce; ++i) {
            const float dx = row.load(padded(n) + point_distance<kPlan>(i)).im;
            sum += k < width ? dx * staged<kPlan>(stage, n, i, -k) : dx;
          }
        });
        totals.add(slice, k < width ? k : kMaxShortWidth, sum);
      }
      __syncthreads();
      if (convolves)
        backward_way_in_place<kPlan>(step == kValue ? 0 : 1, row, table, spectrum, skip, step != kValue || !residual,
                                     kept, sums);
    }
  }
  if (M::kShared) each_frequency<kPlan>([&](int i) { target[i] = sums.get(i); });
  if (residual) return;
  totals.write(reinterpret_cast<float*>(scratch) + (part * 3 * dim + d) * kSums, dim * kSums);
}

// The parts' gradients of taps and biases in order; thread i of all a sum of a channel of p.
__global__ void __launch_bounds__(kSumThreads)
    monarch_mixer_bwd_sum_kernel(MonarchMixerBwdArgs args, const float* partials, int64_t parts) {
  const int64_t i = int64_t(blockIdx.x) * kSumThreads + threadIdx.x, count = 3 * args.forward.dim * kSums;
  if (i >= count) return;
  float sum = 0.0f;
  for (int64_t part = 0; part < parts; ++part) sum += partials[part * count + i];
  const int64_t channel = i / kSums;
  const int lag = int(i % kSums), width = args.forward.width;
  if (lag == kMaxShortWidth) args.dbias[channel] = sum;
  else if (lag < width) args.dweight[channel * width + width - 1 - lag] = sum;
}

// How the scratch is laid out, in floats.
struct Scratch {
  int64_t parts = 1, blocks = 0, sums = 0, kept = 0, taps = 0;

  Scratch(const MonarchMixerArgs& args, const FftPlan& plan) {
    const int64_t channels = args.dim * (args.spectrum2 ? 2 : 1);
    parts = batch_parts(args.batch, channels * plan.threads);
    blocks = channels * parts;
    sums = parts > 1 ? blocks * 2 * args.fft_size : 0;
    kept = args.fft_size > kMaxShared ? blocks * 2 * args.fft_size : 0;
    taps = parts * 3 * args.dim * kSums;
  }
};

}  // namespace

size_t monarch_mixer_bwd_shared_bytes(int64_t fft_size) {
  size_t bytes = 0;
  with_plan(fft_size, [&](auto index) {
    bytes = Memory<index.value>::kBytes;
    return cudaSuccess;
  });
  return bytes;
}

int64_t monarch_mixer_bwd_scratch(const MonarchMixerBwdArgs& args) {
  const FftPlan* plan = find_fft_plan(args.forward.fft_size);
  if (!plan) return 0;
  const Scratch scratch(args.forward, *plan);
  return scratch.sums + scratch.kept + scratch.taps;
}

cudaError_t monarch_mixer_bwd(const MonarchMixerBwdArgs& args, cudaStream_t stream, LaunchShape* shape) {
  const MonarchMixerArgs& in = args.forward;
  const FftPlan* plan = find_fft_plan(in.fft_size);
  if (!plan || in.batch == 0 || !mixer_sizes_fit(in)) return cudaErrorInvalidValue;
  const Scratch scratch(in, *plan);
  cudaError_t error = with_plan(in.fft_size, [&](auto index) {
    return launch_rows(&monarch_mixer_bwd_kernel<index.value>, *plan, args, scratch.blocks,
                       Memory<index.value>::kBytes, stream, shape, scratch.parts);
  });
  if (error != cudaSuccess || in.dim == 0) return error;
  for (int residual = 0; residual < (in.spectrum2 ? 2 : 1); ++residual) {
    FftConvBwdArgs sums;
    sums.dim = in.dim, sums.fft_size = in.fft_size;
    sums.dspectrum = residual ? args.dspectrum2 : args.dspectrum, sums.dskip = residual ? args.dskip2 : args.dskip;
    sums.scratch = args.scratch + residual * scratch.parts * in.dim * 2 * in.fft_size;
    if (error == cudaSuccess) error = sum_spectrum_gradients(sums, scratch.parts, stream);
  }
  if (error != cudaSuccess) return error;
  return launch(&monarch_mixer_bwd_sum_kernel, unsigned(ceil_div<int64_t>(3 * in.dim * kSums, kSumThreads)), kSumThreads,
                0, stream, args, static_cast<const float*>(args.scratch + scratch.sums + scratch.kept), scratch.parts);
}

}  // namespace m2::cuda
