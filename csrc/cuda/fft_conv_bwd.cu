// Gradients of the right-angle FFT convolution in float32 on CUDA cores: one block owns one channel of a part of the
// batch. Interface: fft_conv.h. Compiled by nvcc, or by g++ under the emulator. Test: ../testing/test_fft_conv_bwd_cuda.cpp.
//
// A block walks over its part of the batch in order. Each row is transformed, and so is the gradient of its result; the
// product of the two joins the block's sum of the gradient of the spectrum, and the way back from each gives the
// gradients of the gates and of the input. The forward result is computed again rather than kept. Up to 4096 points the
// row's frequencies and the sums are in shared memory beside the row; above, in global memory. Only their own thread
// touches them.
//
// The batch is split only where the channels alone would leave a GPU idle, by the shapes alone; a second kernel adds the
// parts in order, and the real parts of all frequencies in a tree for the gradient of the skip, which by Parseval is their
// mean. No atomics: the same bits come out of every run on every device.
#include <algorithm>
#include <cstdint>

#include "fft_bwd_passes.cuh"
#include "fft_conv.h"
#include "fft_signals.cuh"

namespace m2::cuda {
namespace {

constexpr int kSumThreads = 256;

int64_t parts_for(const FftConvBwdArgs& args, const FftPlan& plan) {
  return batch_parts(args.batch, args.dim * plan.threads);
}

// The points of a row that one thread owns from beginning to end, between tensors and the block's row: threadIdx.x, + threads,
// + 2 threads, .. The first forward pass reads and the last inverse pass writes them in the same thread, so that a row can lie in
// place before the one and after the other, without a barrier.
//
// Every function but the first works on the points n, n + threads, .. of which there are kAtOnce.
constexpr int kAtOnce = 8;  // points at a time: loads enough to be under way together, and little machine code

// Calls run(n) for the first of every kAtOnce points of this thread.
template <int kPlan, class Run>
__device__ __forceinline__ void each_points(const Run& run) {
  constexpr int kStep = kAtOnce * kFftPlans[kPlan].threads;
  static_assert(kFftPlans[kPlan].size % kStep == 0, "no rest");
  M2_NO_UNROLL
  for (int n = thread_index_again(); n < kFftPlans[kPlan].size; n += kStep) run(n);
}

using Points = float[kAtOnce];

// Bit i: point i, of kThreads a row, is a position of the sequence.
template <int kThreads>
__device__ __forceinline__ uint32_t real_points(int n, int seqlen) {
  uint32_t real = 0;
  M2_UNROLL
  for (int i = 0; i < kAtOnce; ++i)
    if (n + i * kThreads < seqlen) real |= 1u << i;
  return real;
}

// out[i] = x at point i where wanted, else 0; what is not wanted is not read.
template <int kThreads>
__device__ __forceinline__ void read_points(const Row<const void>& x, int n, uint32_t wanted, Points& out) {
  const int64_t step = x.stride * kThreads;
  const float* from = static_cast<const float*>(x.data) + n * x.stride;
  M2_UNROLL
  for (int i = 0; i < kAtOnce; ++i) out[i] = wanted >> i & 1 ? load_readonly(from + i * step) : 0.0f;
}

// Writes the positions that exist.
template <int kThreads>
__device__ __forceinline__ void write_points(const Row<void>& out, int n, int seqlen, const Points& x) {
  const int64_t step = out.stride * kThreads;
  float* to = static_cast<float*>(out.data) + n * out.stride;
  M2_UNROLL
  for (int i = 0; i < kAtOnce; ++i)
    if (n + i * kThreads < seqlen) to[i * step] = x[i];
}

// From point 0 to point i in the row: threads are a multiple of 16, so it is the same for all.
template <int kPlan>
__device__ __forceinline__ constexpr int point_distance(int i) {
  static_assert(FirstPass<kPlan>::kStep % kFftPlans[kPlan].threads == 0, "the passes would use other threads' points");
  return padded(i * kFftPlans[kPlan].threads);
}

template <int kPlan>
__device__ __forceinline__ void put_points(const SharedArray<Complex>& row, int n, const Points& re) {
  M2_UNROLL
  for (int i = 0; i < kAtOnce; ++i) row.store(padded(n) + point_distance<kPlan>(i), {re[i], 0.0f});
}

// The real parts.
template <int kPlan>
__device__ __forceinline__ void get_points(const SharedArray<Complex>& row, int n, Points& re) {
  M2_UNROLL
  for (int i = 0; i < kAtOnce; ++i) re[i] = row.load(padded(n) + point_distance<kPlan>(i)).re;
}

// The row becomes x * gate.
template <int kPlan>
__device__ __forceinline__ void read_row(const SharedArray<Complex>& row, int seqlen, const Row<const void>& x,
                                         const Row<const void>& gate) {
  constexpr int kThreads = kFftPlans[kPlan].threads;
  M2_NO_UNROLL
  for (int input = 0; input < (gate.data ? 2 : 1); ++input) {
    // Chosen by value: a choice of references would need a stack.
    const Row<const void> from = {input ? gate.data : x.data, input ? gate.stride : x.stride};
    each_points<kPlan>([&](int n) {
      Points g, before;
      read_points<kThreads>(from, n, real_points<kThreads>(n, seqlen), g);
      if (input) {
        get_points<kPlan>(row, n, before);
        M2_UNROLL
        for (int i = 0; i < kAtOnce; ++i) g[i] *= before[i];
      }
      put_points<kPlan>(row, n, g);
    });
  }
}

// out = the row's real parts * factor, if there is such an output.
template <int kPlan>
__device__ __forceinline__ void write_row(const SharedArray<Complex>& row, int seqlen, const Row<void>& out,
                                          const Row<const void>& factor) {
  constexpr int kThreads = kFftPlans[kPlan].threads;
  if (!out.data) return;
  each_points<kPlan>([&](int n) {
    Points y, x;
    get_points<kPlan>(row, n, y);
    if (factor.data) {
      read_points<kThreads>(factor, n, real_points<kThreads>(n, seqlen), x);
      M2_UNROLL
      for (int i = 0; i < kAtOnce; ++i) y[i] *= x[i];
    }
    write_points<kThreads>(out, n, seqlen, y);
  });
}

// Scratch: the sums of the parts if there are several, then the frequencies of each block if they are in memory.
template <int kPlan>
__global__ void __launch_bounds__(kFftPlans[kPlan].threads, 1)
    fft_conv_bwd_kernel(FftConvBwdArgs args, const Complex* table, int64_t parts) {
  constexpr int kSize = kFftPlans[kPlan].size;
  const unsigned part = blockIdx.x / unsigned(args.dim);
  const int64_t d = blockIdx.x % unsigned(args.dim), rows = parts * args.dim;
  const Complex* spectrum = reinterpret_cast<const Complex*>(args.spectrum) + d * kSize;
  const float skip = args.skip ? load_readonly(args.skip + d * args.stride_skip) / kSize : 0.0f;
  Complex* scratch = reinterpret_cast<Complex*>(args.scratch);
  Complex* target = (parts > 1 ? scratch : reinterpret_cast<Complex*>(args.dspectrum)) + int64_t(blockIdx.x) * kSize;
  constexpr bool kShared = kSize <= kMaxSharedSums;
  Frequencies<kPlan, kShared> sums(0, target);
  Frequencies<kPlan, kShared> kept(1, scratch + ((parts > 1 ? rows : 0) + int64_t(blockIdx.x)) * kSize);
  const SharedArray<Complex> row;
  const int seqlen = int(args.seqlen);

  each_frequency<kPlan>([&](int i) { sums.set(i, {0.0f, 0.0f}); });
  const BatchPart of_batch(args.batch, parts, part);
  M2_NO_UNROLL
  for (int64_t b = of_batch.first; b < of_batch.last; ++b) {
    const auto row_at = [&](const auto& x) { return row_of<false>(x, b, d); };
    M2_NO_UNROLL
    for (int which = 0; which < 2; ++which) {
      read_row<kPlan>(row, seqlen, which ? row_at(args.dout) : row_at(args.u),
                      which ? row_at(args.postgate) : row_at(args.pregate));
      const bool goes_on = which || args.dpostgate.data;
      backward_way_in_place<kPlan>(which, row, table, spectrum, skip, goes_on, kept, sums);
      if (!goes_on) continue;
      M2_NO_UNROLL
      for (int output = 0; output <= which; ++output)
        write_row<kPlan>(row, seqlen,
                         !which ? row_at(args.dpostgate) : output ? row_at(args.dpregate) : row_at(args.du),
                         !which ? row_at(args.dout) : output ? row_at(args.u) : row_at(args.pregate));
    }
  }
  if (kShared) each_frequency<kPlan>([&](int i) { target[i] = sums.get(i); });
}

// dspectrum = the parts' sum, dskip = the mean of its real parts or the sum of the parts' own.
__global__ void __launch_bounds__(kSumThreads)
    fft_conv_bwd_sum_kernel(FftConvBwdArgs args, int64_t parts, const float* skips) {
  const int64_t d = blockIdx.x;
  const int thread = int(threadIdx.x);
  Complex* dspectrum = reinterpret_cast<Complex*>(args.dspectrum) + d * args.fft_size;
  const Complex* partials = reinterpret_cast<const Complex*>(args.scratch) + d * args.fft_size;
  const SharedArray<double> tree;
  double total = 0.0;
  for (int64_t i = thread; i < args.fft_size; i += kSumThreads) {
    Complex sum = parts > 1 ? partials[i] : dspectrum[i];
    for (int64_t part = 1; part < parts; ++part) sum = sum + partials[part * args.dim * args.fft_size + i];
    if (parts > 1) dspectrum[i] = sum;
    total += double(sum.re);
  }
  tree.store(thread, total);
  for (int half = kSumThreads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (thread < half) tree.store(thread, tree.load(thread) + tree.load(thread + half));
  }
  if (thread != 0) return;
  total = skips ? 0.0 : tree.load(0) / double(args.fft_size);
  for (int64_t part = 0; skips && part < parts; ++part) total += double(skips[part * args.dim + d]);
  args.dskip[d] = float(total);
}

}  // namespace

int64_t fft_conv_bwd_scratch(const FftConvBwdArgs& args) {
  const FftPlan* plan = find_fft_plan(args.fft_size);
  if (!plan) return 0;
  const int64_t parts = parts_for(args, *plan), rows = parts * args.dim;
  return 2 * args.fft_size * ((parts > 1 ? rows : 0) + (args.fft_size <= kMaxSharedSums ? 0 : rows));
}

cudaError_t sum_spectrum_gradients(const FftConvBwdArgs& args, int64_t parts, cudaStream_t stream,
                                   const float* skips) {
  if (args.dim == 0) return cudaSuccess;
  return launch(&fft_conv_bwd_sum_kernel, unsigned(args.dim), kSumThreads, kSumThreads * sizeof(double), stream, args,
                parts, skips);
}

cudaError_t fft_conv_bwd(const FftConvBwdArgs& args, cudaStream_t stream, LaunchShape* shape) {
  if (args.element != Element::f32) return cudaErrorInvalidValue;
  if (args.batch < 0 || args.dim < 0 || args.seqlen < 0 || args.seqlen > args.fft_size) return cudaErrorInvalidValue;
  if (args.dim > 0 && args.batch > INT32_MAX / args.dim) return cudaErrorInvalidValue;
  return with_plan(args.fft_size, [&](auto plan) {
    const int64_t parts = parts_for(args, kFftPlans[plan.value]);
    const cudaError_t error = launch_rows(&fft_conv_bwd_kernel<plan.value>, kFftPlans[plan.value], args,
                                          args.dim * parts, bwd_shared_bytes(args.fft_size), stream, shape, parts);
    return error == cudaSuccess ? sum_spectrum_gradients(args, parts, stream) : error;
  });
}

}  // namespace m2::cuda
