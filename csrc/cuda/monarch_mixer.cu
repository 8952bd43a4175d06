// The sequence mixer in one kernel, forward: one block owns one channel of one batch entry. Interface and formulas:
// monarch_mixer.h. Compiled by nvcc, or by g++ under the emulator. Test:
// ../testing/test_monarch_mixer_cuda.cpp.
//
// Three short convolutions, both gates and both long convolutions share the block's memory: beside the row of the
// transform lie `sums`, a float for each of its points, that hold v, then x1 * v, its convolution, that times x2, and the
// result. Nothing in between goes back to global memory. Each channel of p is read once, several positions under way
// together, into the row, where the short convolution finds its neighbours. Channels are contiguous in p, so blocks that run
// together take neighbouring channels and share cache lines. The short convolutions run through one copy of their code, the
// two long ones through one copy of the passes.
//
// Position n of `sums` and of the row, before its first pass and after its last, belongs to thread n % threads, in the
// passes too, whose first step is a multiple of the threads: barriers are needed only around what reads neighbours.
#include "monarch_mixer.h"

#include "fft_row_points.cuh"

namespace m2::cuda {
namespace {

template <int kPlan>
__global__ void __launch_bounds__(kFftPlans[kPlan].threads, 1)
    monarch_mixer_fwd_kernel(MonarchMixerArgs args, const Complex* table) {
  constexpr int kSize = kFftPlans[kPlan].size, kThreads = kFftPlans[kPlan].threads, kSums = 2 * padded(kSize);
  const int64_t b = blockIdx.x / unsigned(args.dim), d = blockIdx.x % unsigned(args.dim);
  const bool* mask = args.mask ? args.mask + b * args.seqlen : nullptr;
  const int seqlen = int(args.seqlen), width = args.width;
  const SharedArray<Complex> row;
  const SharedArray<float> sums;  // from kSums on

  M2_NO_UNROLL
  for (int step = 0; step < (args.spectrum2 ? 4 : 3); ++step) {  // v, x1, x2, u
    const int64_t channel = (step == 0 ? 2 : step - 1) * args.dim + d;
    each_points<kPlan>([&](int n) {
      const Row<const void> from =
          step < 3 ? row_of(args.element, args.p, b, channel) : row_of(args.element, args.u, b, d);
      Points x;
      read_points<kPlan>(args.element, from, n, real_points<kThreads>(n, seqlen, mask), x);
      put_points<kPlan>(row, n, x);
    });
    if (step < 3) {
      __syncthreads();
      const float* weight = args.short_weight + channel * width + width - 1;  // of lag 0
      const float bias = args.short_bias ? load_readonly(args.short_bias + channel) : 0.0f;
      each_points<kPlan>([&](int n) {
        const uint32_t real = real_points<kThreads>(n, seqlen, mask);
        Points x;
        M2_UNROLL
        for (int i = 0; i < kAtOnce; ++i) x[i] = bias;
        M2_NO_UNROLL
        for (int k = 0; k < width; ++k) {
          const float w = load_readonly(weight - k);
          const int at = n - k, slot = at + (at >> 4);  // padded(at), of the few before the beginning too
          M2_UNROLL
          for (int i = 0; i < kAtOnce; ++i)
            if (i > 0 || at >= 0) x[i] += w * row.load(slot + point_distance<kPlan>(i)).re;
        }
        M2_UNROLL
        for (int i = 0; i < kAtOnce; ++i) {
          const int at = kSums + n + i * kThreads;
          const float factor = real >> i & 1 ? x[i] : 0.0f;
          sums.store(at, step ? sums.load(at) * factor : factor);
        }
      });
      __syncthreads();
      if (step != 1) continue;
    }

    const float* skips = step == 3 ? args.skip2 : args.skip;
    const float skip = skips ? load_readonly(skips + d) / kSize : 0.0f;
    const float* spectrum = step == 3 ? args.spectrum2 : args.spectrum;
    forward_first<kPlan>(row, table, [&](int n, Complex twist) {
      return (step == 3 ? row.load(padded(n)).re : sums.load(kSums + n)) * twist;
    });
    forward_middle<kPlan, 1>(row, table);
    multiply_spectrum<kPlan>(row, reinterpret_cast<const Complex*>(spectrum) + d * kSize, skip);
    inverse_middle<kPlan, kFftPlans[kPlan].passes - 2>(row, table);
    inverse_first<kPlan>(row, table, [&](int n, Complex y) {
      sums.store(kSums + n, step == 3 ? sums.load(kSums + n) + y.re : y.re);
    });
  }
  each_points<kPlan>([&](int n) {
    const uint32_t real = real_points<kThreads>(n, seqlen, mask);
    Points x;
    M2_UNROLL
    for (int i = 0; i < kAtOnce; ++i) x[i] = real >> i & 1 ? sums.load(kSums + n + i * kThreads) : 0.0f;
    write_points<kPlan>(args.element, row_of(args.element, args.out, b, d), n, seqlen, x);
  });
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
