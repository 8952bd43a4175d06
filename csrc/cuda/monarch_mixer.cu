// The sequence mixer in one kernel, forward: one block owns one channel of one batch entry. Interface and formulas:
// monarch_mixer.h. Compiled by nvcc, or by g++ under the emulator. Test:
// ../testing/test_monarch_mixer_cuda.cpp.
//
// Three short convolutions, both gates and both long convolutions share the block's memory: beside the row of the
// transform lie `sums`, seqlen floats that hold x1 * v, then its convolution, then that times x2, then the result.
// Nothing in between goes back to global memory. Channels are contiguous in p, so blocks that run together take neighbouring
// channels and share cache lines. The two convolutions run through one copy of the passes, and element types are told
// apart where memory is read: machine code for each combination was seven times as large.
//
// Position n of `sums` belongs to thread n % threads from beginning to end, in the passes too, whose first step is a
// multiple of the threads; and of the row a thread's first forward pass writes no other points than its last inverse
// pass read. So the barriers of the passes are all there are.
#include "monarch_mixer.h"

#include "element.cuh"
#include "fft_passes.cuh"

namespace m2::cuda {
namespace {

__device__ __forceinline__ float load_element(Element element, const void* data, int64_t i) {
  return element == Element::f32 ? read_element<false>(element, data, i) : read_element<true>(element, data, i);
}

__device__ __forceinline__ void store_element(Element element, void* data, int64_t i, float x) {
  if (element == Element::f32) write_element<false>(element, data, i, x);
  else write_element<true>(element, data, i, x);
}

// Position n of a channel of the short convolution.
__device__ __forceinline__ float short_conv_at(const MonarchMixerArgs& args, const bool* mask, int64_t b,
                                               int64_t channel, int n) {
  const int64_t start = b * args.p.stride_batch + channel * args.p.stride_dim;
  float sum = args.short_bias ? load_readonly(args.short_bias + channel) : 0.0f;
  M2_NO_UNROLL
  for (int j = 0; j < args.width; ++j) {
    const int s = n - (args.width - 1) + j;
    if (s >= 0 && (!mask || mask[s]))
      sum += load_readonly(args.short_weight + channel * args.width + j) *
             load_element(args.element, args.p.data, start + s * args.p.stride_seq);
  }
  return sum;
}

template <int kPlan>
__global__ void __launch_bounds__(kFftPlans[kPlan].threads, 1)
    monarch_mixer_fwd_kernel(MonarchMixerArgs args, const Complex* table) {
  constexpr int kSize = kFftPlans[kPlan].size, kThreads = kFftPlans[kPlan].threads, kSums = 2 * padded(kSize);
  const int64_t b = blockIdx.x / unsigned(args.dim), d = blockIdx.x % unsigned(args.dim);
  const bool* mask = args.mask ? args.mask + b * args.seqlen : nullptr;
  const int64_t u = b * args.u.stride_batch + d * args.u.stride_dim;
  const int64_t out = b * args.out.stride_batch + d * args.out.stride_dim;
  const int seqlen = int(args.seqlen);
  const SharedArray<Complex> row;
  const SharedArray<float> sums;  // from kSums on
  static_assert(FirstPass<kPlan>::kStep % kThreads == 0, "the passes would read sums of other threads");

  M2_NO_UNROLL
  for (int n = threadIdx.x; n < seqlen; n += kThreads) {
    const bool real = !mask || mask[n];
    const float x1 = short_conv_at(args, mask, b, d, n), v = short_conv_at(args, mask, b, 2 * args.dim + d, n);
    sums.store(kSums + n, real ? x1 * v : 0.0f);
  }
  M2_NO_UNROLL
  for (int which = 0; which < (args.spectrum2 ? 2 : 1); ++which) {
    const float* skips = which ? args.skip2 : args.skip;
    const float skip = skips ? load_readonly(skips + d) / kSize : 0.0f;
    const float* spectrum = which ? args.spectrum2 : args.spectrum;
    forward_first<kPlan>(row, table, [&](int n, Complex twist) {
      float g = 0.0f;
      if (n < seqlen) {
        if (which == 0) g = sums.load(kSums + n);
        else if (!mask || mask[n]) g = load_element(args.element, args.u.data, u + n * args.u.stride_seq);
      }
      return g * twist;
    });
    forward_middle<kPlan, 1>(row, table);
    multiply_spectrum<kPlan>(row, reinterpret_cast<const Complex*>(spectrum) + d * kSize, skip);
    inverse_middle<kPlan, kFftPlans[kPlan].passes - 2>(row, table);
    inverse_first<kPlan>(row, table, [&](int n, Complex y) {
      if (n < seqlen) sums.store(kSums + n, which ? sums.load(kSums + n) + y.re : y.re);
    });
    if (which) continue;
    M2_NO_UNROLL
    for (int n = threadIdx.x; n < seqlen; n += kThreads)
      sums.store(kSums + n, sums.load(kSums + n) * short_conv_at(args, mask, b, args.dim + d, n));
  }
  M2_NO_UNROLL
  for (int n = threadIdx.x; n < seqlen; n += kThreads)
    store_element(args.element, args.out.data, out + n * args.out.stride_seq,
                  !mask || mask[n] ? sums.load(kSums + n) : 0.0f);
}

}  // namespace

size_t monarch_mixer_shared_bytes(int64_t fft_size) {
  const size_t row = shared_bytes_needed(fft_size);
  return row ? row + size_t(fft_size) * sizeof(float) : 0;
}

cudaError_t available_shared_bytes(size_t* bytes) {
  int device = 0, available = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess)
    error = cudaDeviceGetAttribute(&available, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  *bytes = size_t(available);
  return error;
}

cudaError_t monarch_mixer_fwd(const MonarchMixerArgs& args, cudaStream_t stream, LaunchShape* shape) {
  const FftPlan* plan = find_fft_plan(args.fft_size);
  if (!plan || !mixer_sizes_fit(args)) return cudaErrorInvalidValue;
  const LaunchShape wanted = {args.batch * args.dim, plan->threads, monarch_mixer_shared_bytes(args.fft_size)};
  if (shape) *shape = wanted;
  if (wanted.blocks == 0 || args.seqlen == 0) return cudaSuccess;
  const Complex* table = nullptr;
  const cudaError_t error = device_table(*plan, &table);
  if (error != cudaSuccess) return error;
  return with_plan(args.fft_size, [&](auto index) {
    return launch(&monarch_mixer_fwd_kernel<index.value>, unsigned(wanted.blocks), unsigned(wanted.threads),
                  wanted.shared_bytes, stream, args, table);
  });
}

}  // namespace m2::cuda
