// The points of a row that one thread owns from beginning to end, between tensors and the block's row, for the kernels of
// gradients: threadIdx.x, + threads, + 2 threads, .. The first forward pass reads and the last inverse pass writes them in the
// same thread, so that a row can lie in place before the one and after the other, without a barrier. Elements of
// all types pass through here, so that the passes exist once.
//
// Every function but the first works on the points n, n + threads, .. of which there are kAtOnce.
#pragma once
#include "element.cuh"
#include "fft_passes.cuh"
#include "fft_signals.cuh"

namespace m2::cuda {

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
template <int kThreads, bool kNarrow>
__device__ __forceinline__ void read_points_as(Element element, const Row<const void>& x, int n, uint32_t wanted,
                                               Points& out) {
  const int64_t step = x.stride * kThreads;
  const Raw<kNarrow>* from = static_cast<const Raw<kNarrow>*>(x.data) + n * x.stride;
  Raw<kNarrow> raw[kAtOnce];
  M2_UNROLL
  for (int i = 0; i < kAtOnce; ++i) raw[i] = wanted >> i & 1 ? load_readonly(from + i * step) : Raw<kNarrow>{};
  M2_UNROLL
  for (int i = 0; i < kAtOnce; ++i) out[i] = widen<kNarrow>(element, raw[i]);
}

// Writes the positions that exist.
template <int kThreads, bool kNarrow>
__device__ __forceinline__ void write_points_as(Element element, const Row<void>& out, int n, int seqlen,
                                                const Points& x) {
  const int64_t step = out.stride * kThreads;
  Raw<kNarrow>* to = static_cast<Raw<kNarrow>*>(out.data) + n * out.stride;
  Raw<kNarrow> raw[kAtOnce];
  M2_UNROLL
  for (int i = 0; i < kAtOnce; ++i) raw[i] = narrowed<kNarrow>(element, x[i]);
  M2_UNROLL
  for (int i = 0; i < kAtOnce; ++i)
    if (n + i * kThreads < seqlen) to[i * step] = raw[i];
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

}  // namespace m2::cuda
