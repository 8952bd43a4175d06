// CUDA boundary of short_conv, forward and backward. Kernels: ../cuda. Test: tests/cuda/test_cuda_emulated.py.
#include "../cuda/short_conv.h"
#include "boundary.h"

namespace m2::cuda {
namespace {

// What the two directions share: element, sizes, width; returns the weight as a contiguous tensor.
template <class Args>
Tensor short_conv_sizes(const char* op, const Tensor& x, const Tensor& weight, bool channels_last, Args& args) {
  take_sizes(op, "x", x, channels_last, args);
  check_tensor(op, "weight", weight, x);
  require(weight.dim() == 2 && weight.size(0) == args.dim && weight.size(1) >= 2 && weight.size(1) <= kMaxShortWidth,
          op, ": weight must have shape (dim, width) with dim ", args.dim, " and width 2 .. ", kMaxShortWidth, ", got ",
          shape_of(weight));
  args.width = int(weight.size(1));
  return torch::stable::contiguous(weight);
}

template <class Args>
void check_short_conv_launch(const char* op, const char* kernel, const Args& args, cudaError_t error,
                             const LaunchShape& shape, const Tensor& x) {
  if (error == cudaSuccess) return;
  throw std::runtime_error(text(op, ": launch of ", kernel, " failed: ", cudaGetErrorString(error), " (", shape.blocks,
                                " blocks of ", shape.threads, " threads, ", shape.shared_bytes,
                                " bytes of shared memory, x ", shape_of(x), ", width ", args.width, ", ", device_of(x),
                                ")"));
}

// x (batch, dim, seqlen), or (batch, seqlen, dim) with channels_last, any strides; weight (dim, width), bias (dim,)
// float32. Returns a new contiguous tensor of the shape and dtype of x.
Tensor short_conv_cuda(const Tensor& x, const Tensor& weight, const OptTensor& bias, bool channels_last) {
  ShortConvArgs args;
  const Tensor taps = short_conv_sizes("short_conv", x, weight, channels_last, args);
  args.weight = static_cast<const float*>(taps.const_data_ptr());
  OptTensor offset;
  if (bias) {
    check_tensor("short_conv", "bias", *bias, x);
    require(bias->dim() == 1 && bias->size(0) == args.dim, "short_conv: bias must have shape (dim,) = (", args.dim,
            ",), got ", shape_of(*bias));
    offset = torch::stable::contiguous(*bias);
    args.bias = static_cast<const float*>(offset->const_data_ptr());
  }
  const CurrentDevice device(x);
  Tensor out = torch::stable::new_empty(x, {x.size(0), x.size(1), x.size(2)});
  args.x = input(x, channels_last);
  args.out = output(out, channels_last);
  LaunchShape shape;
  const cudaError_t error = short_conv_fwd(args, device.stream(), &shape);
  check_short_conv_launch("short_conv", "short_conv_fwd_kernel", args, error, shape, x);
  return out;
}

// Gradients of x (its shape and dtype, contiguous), weight and bias (float32). Deterministic.
std::tuple<Tensor, Tensor, Tensor> short_conv_bwd_cuda(const Tensor& dout, const Tensor& x, const Tensor& weight,
                                                       bool channels_last) {
  ShortConvBwdArgs args;
  const Tensor taps = short_conv_sizes("short_conv_bwd", x, weight, channels_last, args);
  check_device("short_conv_bwd", "dout", dout, x);
  require_same_shape("short_conv_bwd", "dout", dout, "x", x);
  args.weight = static_cast<const float*>(taps.const_data_ptr());
  const CurrentDevice device(x);
  Tensor dx = torch::stable::new_empty(x, {x.size(0), x.size(1), x.size(2)});
  Tensor dweight = torch::stable::new_empty(taps, {args.dim, args.width});
  Tensor dbias = torch::stable::new_empty(taps, {args.dim});
  args.x = input(x, channels_last);
  args.dout = input(dout, channels_last);
  args.dx = output(dx, channels_last);
  args.dweight = static_cast<float*>(dweight.mutable_data_ptr());
  args.dbias = static_cast<float*>(dbias.mutable_data_ptr());
  const Tensor partials = torch::stable::new_empty(taps, {short_conv_bwd_scratch(args)});
  args.partials = static_cast<float*>(partials.mutable_data_ptr());
  LaunchShape shape;
  const cudaError_t error = short_conv_bwd(args, device.stream(), &shape);
  check_short_conv_launch("short_conv_bwd", "short_conv_bwd_kernel", args, error, shape, x);
  return {dx, dweight, dbias};
}

}  // namespace
}  // namespace m2::cuda

M2_CUDA_LIBRARY_IMPL(m) {
  m.impl("short_conv", TORCH_BOX(&m2::cuda::short_conv_cuda));
  m.impl("short_conv_bwd", TORCH_BOX(&m2::cuda::short_conv_bwd_cuda));
}
