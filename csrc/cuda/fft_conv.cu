// Right-angle FFT convolution in float32 on CUDA cores: one block owns one (batch, dim) row, which stays in shared
// memory from the gated load to the gated store. The transform and its passes: fft_passes.cuh. Interface and
// formulas: fft_conv.h. Compiled by nvcc, or by g++ under the emulator. Test: ../testing/test_fft_conv_cuda.cpp.
//
// Of one row, the first forward pass reads global memory and the last inverse pass writes it; the last forward pass,
// the product with the spectrum and the first inverse pass happen in registers. The skip costs one addition: skip g
// is the convolution with skip at lag 0, whose spectrum is the constant skip / N. Spectra are stored as
// [output of the last pass][butterfly], so that neighbouring threads read neighbouring values.
#include "fft_conv.h"

#include <cstdint>

#include "fft_passes.cuh"

namespace m2::cuda {

namespace {

// Start of a row; stays null where there is no tensor.
template <class T>
__device__ __forceinline__ T* row_of(const Strided<T>& x, int64_t b, int64_t d) {
  return x.data ? x.data + b * x.stride_batch + d * x.stride_dim : nullptr;
}

// Blocks that run together should share memory: with positions contiguous, rows of one channel come first and share
// its spectrum; with channels contiguous, the channels of one batch entry come first and share cache lines.
template <int kPlan>
__global__ void __launch_bounds__(kFftPlans[kPlan].threads)
    fft_conv_fwd_kernel(FftConvArgs args, const Complex* table) {
  const bool batch_first = args.u.stride_seq == 1;
  const unsigned inner = unsigned(batch_first ? args.batch : args.dim);
  const int64_t b = batch_first ? blockIdx.x % inner : blockIdx.x / inner;
  const int64_t d = batch_first ? blockIdx.x / inner : blockIdx.x % inner;
  const float* u = row_of(args.u, b, d);
  const float* pregate = row_of(args.pregate, b, d);
  const float* postgate = row_of(args.postgate, b, d);
  float* out = row_of(args.out, b, d);
  const Complex* spectrum = reinterpret_cast<const Complex*>(args.spectrum) + d * kFftPlans[kPlan].size;
  const float skip = args.skip ? load_readonly(args.skip + d * args.stride_skip) / kFftPlans[kPlan].size : 0.0f;
  const SharedArray<Complex> row;

  forward_first<kPlan>(row, table, [&](int n, Complex twist) {
    float g = 0.0f;
    if (n < args.seqlen) {
      g = load_readonly(u + n * args.u.stride_seq);
      if (pregate) g *= load_readonly(pregate + n * args.pregate.stride_seq);
    }
    return g * twist;
  });
  forward_middle<kPlan, 1>(row, table);
  multiply_spectrum<kPlan>(row, spectrum, skip);
  inverse_middle<kPlan, kFftPlans[kPlan].passes - 2>(row, table);
  inverse_first<kPlan>(row, table, [&](int n, float y) {
    if (n >= args.seqlen) return;
    if (postgate) y *= load_readonly(postgate + n * args.postgate.stride_seq);
    out[n * args.out.stride_seq] = y;
  });
}

template <int kPlan>
__global__ void __launch_bounds__(kFftPlans[kPlan].threads)
    filter_spectrum_fwd_kernel(FilterSpectrumArgs args, const Complex* table) {
  using P = LastPass<kPlan>;
  constexpr int kSize = kFftPlans[kPlan].size;
  const int64_t d = blockIdx.x;
  const float* k = args.k + d * args.stride_k_dim;
  const float* k_rev = args.k_rev ? args.k_rev + d * args.stride_k_rev_dim : nullptr;
  Complex* spectrum = reinterpret_cast<Complex*>(args.spectrum) + d * kSize;
  const SharedArray<Complex> row;

  forward_first<kPlan>(row, table, [&](int n, Complex twist) {
    const int lag = kSize - n;  // k_rev[lag - 1] sits at lag -lag; n = 0 would be lag -N, which no position reaches
    const float re = n < args.taps ? load_readonly(k + n * args.stride_k_tap) : 0.0f;
    const float im = k_rev && n > 0 && lag <= args.taps_rev
                         ? -load_readonly(k_rev + (lag - 1) * args.stride_k_rev_tap)
                         : 0.0f;
    return Complex{re, im} * twist;
  });
  forward_middle<kPlan, 1>(row, table);
  M2_NO_UNROLL
  for (int b = threadIdx.x; b < P::kButterflies; b += kFftPlans[kPlan].threads) {
    Complex x[P::kRadix];
    load<P>(row, P::slot(b), x);
    Dft<P::kRadix, false>::run(x);
    M2_UNROLL
    for (int q = 0; q < P::kRadix; ++q) spectrum[q * P::kButterflies + b] = (1.0f / kSize) * x[q];
  }
}

// Launches one block a row after fetching the table. `kernel` takes args and the table.
template <class Args>
cudaError_t launch_rows(void (*kernel)(Args, const Complex*), const FftPlan& plan, const Args& args, int64_t rows,
                        cudaStream_t stream, LaunchShape* shape) {
  const LaunchShape wanted = {rows, plan.threads, shared_bytes_needed(plan.size)};
  if (shape) *shape = wanted;
  if (rows < 0 || rows > INT32_MAX) return cudaErrorInvalidValue;
  if (rows == 0) return cudaSuccess;
  const Complex* table = nullptr;
  const cudaError_t error = device_table(plan, &table);
  if (error != cudaSuccess) return error;
  return launch(kernel, unsigned(rows), unsigned(plan.threads), wanted.shared_bytes, stream, args, table);
}

}  // namespace

size_t shared_bytes_needed(int64_t fft_size) {
  return find_fft_plan(fft_size) ? size_t(padded(int(fft_size))) * sizeof(Complex) : 0;
}

cudaError_t max_fft_size(int64_t* size) {
  int device = 0, available = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess)
    error = cudaDeviceGetAttribute(&available, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  if (error != cudaSuccess) return error;
  *size = 0;
  for (const FftPlan& plan : kFftPlans)
    if (shared_bytes_needed(plan.size) <= size_t(available)) *size = plan.size;
  return cudaSuccess;
}

cudaError_t fft_conv_fwd(const FftConvArgs& args, cudaStream_t stream, LaunchShape* shape) {
  if (args.batch < 0 || args.dim < 0 || args.seqlen < 0 || args.seqlen > args.fft_size) return cudaErrorInvalidValue;
  if (args.dim > 0 && args.batch > INT32_MAX / args.dim) return cudaErrorInvalidValue;
  return with_plan(args.fft_size, [&](auto plan) {
    return launch_rows(&fft_conv_fwd_kernel<plan.value>, kFftPlans[plan.value], args, args.batch * args.dim, stream,
                       shape);
  });
}

cudaError_t filter_spectrum_fwd(const FilterSpectrumArgs& args, cudaStream_t stream, LaunchShape* shape) {
  return with_plan(args.fft_size, [&](auto plan) {
    return launch_rows(&filter_spectrum_fwd_kernel<plan.value>, kFftPlans[plan.value], args, args.dim, stream, shape);
  });
}

}  // namespace m2::cuda
