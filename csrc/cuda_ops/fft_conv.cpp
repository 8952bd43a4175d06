// CUDA boundary of filter_spectrum and fft_conv, forward and backward. Kernels: ../cuda. Test: tests/cuda/test_cuda_emulated.py.
#include "fft_conv.h"

#include "../cuda/fft_conv.h"
#include "../cuda/fft_conv_long.h"
#include "../cuda/fft_conv_mma.h"
#include "../cuda/fft_conv_mma_bwd.h"

namespace m2::cuda {
namespace {

// Whether a transform of this size takes the kernels for long ones on the current device.
bool needs_long_kernels(const char* op, int64_t fft_size) {
  const bool power_of_two = fft_size > 0 && (fft_size & (fft_size - 1)) == 0;
  require(power_of_two && fft_size >= kMinFftSize && fft_size <= kMaxLongFftSize, op,
          ": on CUDA fft_size must be a power of two from ", kMinFftSize, " to ", kMaxLongFftSize, ", got ", fft_size,
          "; round it up to one");
  int64_t largest = 0;
  const cudaError_t error = max_fft_size(&largest);
  if (error != cudaSuccess)
    throw std::runtime_error(text(op, ": cannot ask the GPU for its shared memory: ", cudaGetErrorString(error)));
  if (fft_size <= largest) return false;
  LongFftPlan plan;
  require(find_long_plan(fft_size, &plan) == cudaSuccess, op, ": no kernel for a transform of ", fft_size,
          " points on this GPU, whose shared memory has room for ", largest, "; use another device");
  return true;
}

// What the two directions of fft_conv share: sizes, u, gates, spectrum, skip; returns the spectrum, contiguous.
template <class Args>
Tensor fft_conv_inputs(const char* op, const Tensor& u, const Tensor& spectrum, const OptTensor& skip,
                       const OptTensor& pregate, const OptTensor& postgate, bool channels_last, Args& args) {
  take_sizes(op, "u", u, channels_last, args);
  check_tensor(op, "spectrum", spectrum, u);
  require(spectrum.dim() == 2 && spectrum.size(0) == args.dim && spectrum.size(1) % 2 == 0, op,
          ": spectrum must have shape (dim, 2 * fft_size) with dim ", args.dim, ", got ", shape_of(spectrum));
  args.fft_size = spectrum.size(1) / 2;
  require(args.seqlen <= args.fft_size, op, ": the spectrum serves at most ", args.fft_size,
          " positions, got seqlen ", args.seqlen, "; make it with filter_spectrum(k, k_rev, seqlen)");
  if (skip) {
    check_tensor(op, "skip", *skip, u);
    require(skip->dim() == 1 && skip->size(0) == args.dim, op, ": skip must have shape (dim,) = (", args.dim,
            ",), got ", shape_of(*skip));
    args.skip = static_cast<const float*>(skip->const_data_ptr());
    args.stride_skip = skip->stride(0);
  }
  args.u = input(u, channels_last);
  args.pregate = like_u(op, "pregate", pregate, u, channels_last);
  args.postgate = like_u(op, "postgate", postgate, u, channels_last);
  const Tensor filter = torch::stable::contiguous(spectrum);
  args.spectrum = static_cast<const float*>(filter.const_data_ptr());
  require_aligned(op, "spectrum", args.spectrum);
  return filter;
}

}  // namespace

Tensor fft_conv_cuda(const Tensor& u, const Tensor& spectrum, const OptTensor& skip, const OptTensor& pregate,
                     const OptTensor& postgate, bool channels_last) {
  FftConvArgs args;
  const Tensor filter = fft_conv_inputs("fft_conv", u, spectrum, skip, pregate, postgate, channels_last, args);
  const CurrentDevice device(u);
  const bool is_long = needs_long_kernels("fft_conv", args.fft_size);
  Tensor out = torch::stable::new_empty(u, {u.size(0), u.size(1), u.size(2)});
  if (out.numel() == 0) return out;
  args.out = output(out, channels_last);
  LaunchShape shape;
  if (fft_conv_mma_serves(args)) {
    const Tensor scratch = new_work(filter, fft_conv_mma_scratch(args));
    const cudaError_t error = fft_conv_mma_fwd(args, floats_of(scratch), device.stream(), &shape);
    check_launch("fft_conv", "tc_conv_fwd_kernel or its like of fewer points", args.fft_size, error, shape, u);
  } else if (is_long) {
    const Tensor work = new_work(filter, fft_conv_long_work(args));
    const cudaError_t error = fft_conv_long_fwd(args, floats_of(work), device.stream(), &shape);
    check_launch("fft_conv", "fft_rows_kernel or a pass around it", args.fft_size, error, shape, u);
  } else {
    const cudaError_t error = fft_conv_fwd(args, device.stream(), &shape);
    check_launch("fft_conv", "fft_conv_fwd_kernel", args.fft_size, error, shape, u);
  }
  return out;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> fft_conv_bwd_cuda(const Tensor& dout, const Tensor& u,
                                                                     const Tensor& spectrum, const OptTensor& skip,
                                                                     const OptTensor& pregate, const OptTensor& postgate,
                                                                     bool channels_last) {
  const char* op = "fft_conv_bwd";
  FftConvBwdArgs args;
  const Tensor filter = fft_conv_inputs(op, u, spectrum, skip, pregate, postgate, channels_last, args);
  args.dout = like_u(op, "dout", dout, u, channels_last);
  const CurrentDevice device(u);
  const bool is_long = needs_long_kernels(op, args.fft_size);
  const auto gradient = [&](bool wanted) {
    return wanted ? torch::stable::new_empty(u, {u.size(0), u.size(1), u.size(2)}) : torch::stable::new_empty(u, {0});
  };
  Tensor du = gradient(true), dpre = gradient(pregate.has_value()), dpost = gradient(postgate.has_value());
  if (u.numel() == 0)
    return {du, torch::stable::new_zeros(filter, {args.dim, 2 * args.fft_size}),
            torch::stable::new_zeros(filter, {args.dim}), dpre, dpost};
  Tensor dspectrum = torch::stable::new_empty(filter, {args.dim, 2 * args.fft_size});
  Tensor dskip = torch::stable::new_empty(filter, {args.dim});
  args.du = output(du, channels_last);
  if (pregate) args.dpregate = output(dpre, channels_last);
  if (postgate) args.dpostgate = output(dpost, channels_last);
  args.dspectrum = static_cast<float*>(dspectrum.mutable_data_ptr());
  args.dskip = static_cast<float*>(dskip.mutable_data_ptr());
  LaunchShape shape;
  if (fft_conv_mma_bwd_serves(args)) {
    const Tensor scratch = new_work(filter, fft_conv_mma_bwd_scratch(args));
    args.scratch = floats_of(scratch);
    const cudaError_t error = fft_conv_mma_bwd(args, device.stream(), &shape);
    check_launch(op, "tc_conv_bwd_kernel, spectrum_prep_kernel or a sum after them", args.fft_size, error, shape, u);
  } else if (is_long) {
    const Tensor work = new_work(filter, fft_conv_long_bwd_work(args));
    const cudaError_t error = fft_conv_long_bwd(args, floats_of(work), device.stream(), &shape);
    check_launch(op, "fft_rows_bwd_kernel or a pass around it", args.fft_size, error, shape, u);
  } else {
    const Tensor scratch = new_work(filter, fft_conv_bwd_scratch(args));
    args.scratch = floats_of(scratch);
    const cudaError_t error = fft_conv_bwd(args, device.stream(), &shape);
    check_launch(op, "fft_conv_bwd_kernel", args.fft_size, error, shape, u);
  }
  return {du, dspectrum, dskip, dpre, dpost};
}

namespace {

// k (dim, taps), k_rev (dim, taps_rev) float32, any strides. Returns (dim, 2 * fft_size) float32, order private to
// the CUDA kernels.
Tensor filter_spectrum_cuda(const Tensor& k, const OptTensor& k_rev, int64_t fft_size) {
  check_tensor("filter_spectrum", "k", k, k);
  require(k.dim() == 2, "filter_spectrum: k must have shape (dim, taps), got ", shape_of(k));
  FilterSpectrumArgs args;
  args.dim = k.size(0);
  args.fft_size = fft_size;
  args.k = static_cast<const float*>(k.const_data_ptr());
  args.taps = k.size(1);
  args.stride_k_dim = k.stride(0);
  args.stride_k_tap = k.stride(1);
  if (k_rev) {
    check_tensor("filter_spectrum", "k_rev", *k_rev, k);
    require(k_rev->dim() == 2 && k_rev->size(0) == args.dim,
            "filter_spectrum: k_rev must have shape (dim, taps) with dim ", args.dim, ", got ", shape_of(*k_rev));
    args.k_rev = static_cast<const float*>(k_rev->const_data_ptr());
    args.taps_rev = k_rev->size(1);
    args.stride_k_rev_dim = k_rev->stride(0);
    args.stride_k_rev_tap = k_rev->stride(1);
  }
  const CurrentDevice device(k);
  const bool is_long = needs_long_kernels("filter_spectrum", fft_size);
  Tensor spectrum = torch::stable::new_empty(k, {args.dim, 2 * fft_size});
  if (spectrum.numel() == 0) return spectrum;
  args.spectrum = static_cast<float*>(spectrum.mutable_data_ptr());
  LaunchShape shape;
  if (is_long) {
    const cudaError_t error = filter_spectrum_long_fwd(args, device.stream(), &shape);
    check_launch("filter_spectrum", "fft_rows_kernel or a pass around it", fft_size, error, shape, k);
  } else {
    const cudaError_t error = filter_spectrum_fwd(args, device.stream(), &shape);
    check_launch("filter_spectrum", "filter_spectrum_fwd_kernel", fft_size, error, shape, k);
  }
  return spectrum;
}

// dspectrum (dim, 2 * fft_size) float32. Returns the gradients of k (dim, taps) and k_rev (dim, taps_rev).
std::tuple<Tensor, Tensor> filter_spectrum_bwd_cuda(const Tensor& dspectrum, int64_t taps, int64_t taps_rev) {
  const char* op = "filter_spectrum_bwd";
  check_tensor(op, "dspectrum", dspectrum, dspectrum);
  require(dspectrum.dim() == 2 && dspectrum.size(1) % 2 == 0, op,
          ": dspectrum must have shape (dim, 2 * fft_size), got ", shape_of(dspectrum));
  require(taps >= 0 && taps_rev >= 0, op, ": taps and taps_rev must not be negative, got ", taps, " and ", taps_rev);
  FilterSpectrumBwdArgs args;
  args.dim = dspectrum.size(0);
  args.fft_size = dspectrum.size(1) / 2;
  args.taps = taps;
  args.taps_rev = taps_rev;
  const CurrentDevice device(dspectrum);
  const bool is_long = needs_long_kernels(op, args.fft_size);
  const Tensor source = torch::stable::contiguous(dspectrum);
  args.dspectrum = static_cast<const float*>(source.const_data_ptr());
  require_aligned(op, "dspectrum", args.dspectrum);
  Tensor dk = torch::stable::new_empty(source, {args.dim, taps});
  Tensor dk_rev = torch::stable::new_empty(source, {args.dim, taps_rev});
  args.dk = static_cast<float*>(dk.mutable_data_ptr());
  args.dk_rev = static_cast<float*>(dk_rev.mutable_data_ptr());
  LaunchShape shape;
  if (is_long) {
    const Tensor work = new_work(source, filter_spectrum_long_bwd_work(args.dim, args.fft_size));
    const cudaError_t error = filter_spectrum_long_bwd(args, floats_of(work), device.stream(), &shape);
    check_launch(op, "fft_rows_kernel or a pass around it", args.fft_size, error, shape, dspectrum);
  } else {
    const cudaError_t error = filter_spectrum_bwd(args, device.stream(), &shape);
    check_launch(op, "filter_spectrum_bwd_kernel", args.fft_size, error, shape, dspectrum);
  }
  return {dk, dk_rev};
}

}  // namespace
}  // namespace m2::cuda

M2_CUDA_LIBRARY_IMPL(m) {
  m.impl("filter_spectrum", TORCH_BOX(&m2::cuda::filter_spectrum_cuda));
  m.impl("filter_spectrum_bwd", TORCH_BOX(&m2::cuda::filter_spectrum_bwd_cuda));
  m.impl("fft_conv", TORCH_BOX(&m2::cuda::fft_conv_cuda));
  m.impl("fft_conv_bwd", TORCH_BOX(&m2::cuda::fft_conv_bwd_cuda));
}
