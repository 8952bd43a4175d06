// Right-angle FFT convolution of float32 tensors on CUDA cores, forward: one block owns one (batch, dim) row, which stays in
// shared memory from the gated load to the gated store; the filter's spectrum and its gradient, a row a channel. The
// transform and its passes: fft_passes.cuh. Interface and formulas: fft_conv.h. Compiled by nvcc, or by g++ under the
// emulator. Test: ../testing/test_fft_conv_cuda.cpp.
//
// Of one row, the first forward pass reads global memory and the last inverse pass writes it; the last forward pass,
// the product with the spectrum and the first inverse pass happen in registers. The skip costs one addition: skip g
// is the convolution with skip at lag 0, whose spectrum is the constant skip / N. Spectra are stored as
// [output of the last pass][butterfly], so that neighbouring threads read neighbouring values.
#include "fft_conv.h"

#include <cstdint>

#include "fft_passes.cuh"
#include "fft_signals.cuh"

namespace m2::cuda {

namespace {

template <int kPlan>
__global__ void __launch_bounds__(kFftPlans[kPlan].threads)
    fft_conv_fwd_kernel(FftConvArgs args, const Complex* table) {
  const auto [b, d] = BlockRow(args);
  const Signal<false> g = {args.element, int(args.seqlen), row_of<false>(args.u, b, d),
                           row_of<false>(args.pregate, b, d)};
  const Product<false> out = {args.element, int(args.seqlen), row_of<false>(args.out, b, d),
                              row_of<false>(args.postgate, b, d)};
  const Complex* spectrum = reinterpret_cast<const Complex*>(args.spectrum) + d * kFftPlans[kPlan].size;
  const float skip = args.skip ? load_readonly(args.skip + d * args.stride_skip) / kFftPlans[kPlan].size : 0.0f;
  const SharedArray<Complex> row;

  forward_first<kPlan>(row, table, [&](int n, Complex twist) { return g(n) * twist; });
  forward_middle<kPlan, 1>(row, table);
  multiply_spectrum<kPlan>(row, spectrum, skip);
  inverse_middle<kPlan, kFftPlans[kPlan].passes - 2>(row, table);
  inverse_first<kPlan>(row, table, [&](int n, Complex y) { out(n, y.re); });
}

template <int kPlan>
__global__ void __launch_bounds__(kFftPlans[kPlan].threads)
    filter_spectrum_fwd_kernel(FilterSpectrumArgs args, const Complex* table) {
  using P = LastPass<kPlan>;
  constexpr int kSize = kFftPlans[kPlan].size;
  const int64_t d = blockIdx.x;
  const Filter filter = {args.k + d * args.stride_k_dim,
                         args.k_rev ? args.k_rev + d * args.stride_k_rev_dim : nullptr,
                         args.taps, args.taps_rev, args.stride_k_tap, args.stride_k_rev_tap, kSize};
  Complex* spectrum = reinterpret_cast<Complex*>(args.spectrum) + d * kSize;
  const SharedArray<Complex> row;

  forward_first<kPlan>(row, table, [&](int n, Complex twist) { return filter(n) * twist; });
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

template <int kPlan>
__global__ void __launch_bounds__(kFftPlans[kPlan].threads)
    filter_spectrum_bwd_kernel(FilterSpectrumBwdArgs args, const Complex* table) {
  using P = LastPass<kPlan>;
  constexpr int kSize = kFftPlans[kPlan].size;
  const int64_t d = blockIdx.x;
  const FilterGradient gradient = {args.dk + d * args.taps, args.dk_rev + d * args.taps_rev, args.taps, args.taps_rev,
                                   kSize};
  const Complex* dspectrum = reinterpret_cast<const Complex*>(args.dspectrum) + d * kSize;
  const SharedArray<Complex> row;

  M2_NO_UNROLL
  for (int b = threadIdx.x; b < P::kButterflies; b += kFftPlans[kPlan].threads) {
    Complex x[P::kRadix];
    M2_UNROLL
    for (int q = 0; q < P::kRadix; ++q) x[q] = load_readonly(dspectrum + q * P::kButterflies + b);
    Dft<P::kRadix, true>::run(x);
    store<P>(row, P::slot(b), x);
  }
  __syncthreads();
  inverse_middle<kPlan, kFftPlans[kPlan].passes - 2>(row, table);
  inverse_first<kPlan>(row, table, gradient);
  gradient.clear_rest(threadIdx.x, kFftPlans[kPlan].threads);
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
  if (args.element != Element::f32) return cudaErrorInvalidValue;
  if (args.batch < 0 || args.dim < 0 || args.seqlen < 0 || args.seqlen > args.fft_size) return cudaErrorInvalidValue;
  if (args.dim > 0 && args.batch > INT32_MAX / args.dim) return cudaErrorInvalidValue;
  return with_plan(args.fft_size, [&](auto plan) {
    return launch_rows(&fft_conv_fwd_kernel<plan.value>, kFftPlans[plan.value], args, args.batch * args.dim,
                       shared_bytes_needed(args.fft_size), stream, shape);
  });
}

cudaError_t filter_spectrum_fwd(const FilterSpectrumArgs& args, cudaStream_t stream, LaunchShape* shape) {
  return with_plan(args.fft_size, [&](auto plan) {
    return launch_rows(&filter_spectrum_fwd_kernel<plan.value>, kFftPlans[plan.value], args, args.dim,
                       shared_bytes_needed(args.fft_size), stream, shape);
  });
}

cudaError_t filter_spectrum_bwd(const FilterSpectrumBwdArgs& args, cudaStream_t stream, LaunchShape* shape) {
  return with_plan(args.fft_size, [&](auto plan) {
    return launch_rows(&filter_spectrum_bwd_kernel<plan.value>, kFftPlans[plan.value], args, args.dim,
                       shared_bytes_needed(args.fft_size), stream, shape);
  });
}

}  // namespace m2::cuda
