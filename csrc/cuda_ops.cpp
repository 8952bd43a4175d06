// CUDA boundary of the operators: check, allocate, current device and stream, launch, raise the launch's error.
// A library of its own (libm2ops_cuda.so): it needs a torch built with CUDA for the stream. Kernels: cuda/.
//
// Here: filter_spectrum, fft_conv and short_conv, forward and backward, tensors of 32 and 16 bits. The products and
// monarch_mixer are compositions registered in Python; blockdiag_glu, forward, and monarch_mixer, forward and backward, go
// through the kernels here where those fit.
//
// With M2_CUDA_EMULATED the same code serves CPU tensors under torch.ops.m2ops_emulated, which tests the boundary and
// the kernels together on a machine without a GPU. Test: tests/test_cuda_emulated.py.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/shim_utils.h>

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "cuda/blockdiag_glu.h"
#include "cuda/fft_conv.h"
#include "cuda/fft_conv_long.h"
#include "cuda/fft_conv_mma.h"
#include "cuda/fft_conv_mma_bwd.h"
#include "cuda/monarch_mixer.h"
#include "cuda/short_conv.h"

namespace m2::cuda {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptTensor = std::optional<Tensor>;

#ifdef M2_CUDA_EMULATED
struct CurrentDevice {
  explicit CurrentDevice(const Tensor&) {}
  cudaStream_t stream() const { return nullptr; }
};
bool on_our_device(const Tensor& x) { return x.is_cpu(); }
#else
// Makes the tensor's device current while it lives, and knows torch's current stream there.
class CurrentDevice {
 public:
  explicit CurrentDevice(const Tensor& x) : guard_(x.get_device_index()) {
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(x.get_device_index(), &stream));
    stream_ = static_cast<cudaStream_t>(stream);
  }
  cudaStream_t stream() const { return stream_; }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_ = nullptr;
};
bool on_our_device(const Tensor& x) { return x.is_cuda(); }
#endif

template <class... Parts>
std::string text(const Parts&... parts) {
  std::ostringstream out;
  (out << ... << parts);
  return out.str();
}

// ValueError in Python.
template <class... Parts>
void require(bool condition, const Parts&... parts) {
  if (!condition) throw std::invalid_argument(text(parts...));
}

std::string shape_of(const Tensor& x) {
  std::string out = "(";
  for (int64_t i = 0; i < x.dim(); ++i) out += (i ? ", " : "") + std::to_string(x.size(i));
  return out + (x.dim() == 1 ? ",)" : ")");
}

std::string device_of(const Tensor& x) {
  return x.is_cuda() ? text("cuda:", x.get_device_index()) : x.is_cpu() ? "cpu" : "another device";
}

// `first` is the operator's first tensor, whose device all others share.
void check_device(const char* op, const char* name, const Tensor& x, const Tensor& first) {
  require(on_our_device(x) && x.get_device_index() == first.get_device_index(), op, ": ", name,
          " must be on the same GPU as all tensors of the call, got ", device_of(x), " beside ", device_of(first),
          "; move it with .to()");
}

void check_tensor(const char* op, const char* name, const Tensor& x, const Tensor& first) {
  check_device(op, name, x, first);
  require(x.scalar_type() == ScalarType::Float, op, ": ", name, " must be float32 on CUDA, got ",
          torch::headeronly::toString(x.scalar_type()), "; convert it with .float()");
}

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

// Memory for the kernels of long transforms.
Tensor new_work(const Tensor& like, int64_t floats) { return torch::stable::new_empty(like, {floats}); }
float* floats_of(const Tensor& x) { return static_cast<float*>(x.mutable_data_ptr()); }

void check_launch(const char* op, const char* kernel, int64_t fft_size, cudaError_t error, const LaunchShape& shape,
                  const Tensor& first) {
  if (error == cudaSuccess) return;
  throw std::runtime_error(text(op, ": launch of ", kernel, " failed: ", cudaGetErrorString(error), " (",
                                shape.blocks, " blocks of ", shape.threads, " threads, ", shape.shared_bytes,
                                " bytes of shared memory, fft_size ", fft_size, ", ", device_of(first), ")"));
}

// The element type of a tensor of activations.
Element element_of(const char* op, const char* name, const Tensor& x) {
  switch (x.scalar_type()) {
    case ScalarType::Float: return Element::f32;
    case ScalarType::Half: return Element::f16;
    case ScalarType::BFloat16: return Element::bf16;
    default: break;
  }
  throw std::invalid_argument(text(op, ": ", name, " must be float32, float16 or bfloat16 on CUDA, got ",
                                   torch::headeronly::toString(x.scalar_type()), "; convert it with .float()"));
}

AnyStrided<const void> input(const Tensor& x, bool channels_last) {
  return {x.const_data_ptr(), x.stride(0), x.stride(channels_last ? 2 : 1), x.stride(channels_last ? 1 : 2)};
}

AnyStrided<void> output(const Tensor& x, bool channels_last) {
  return {x.mutable_data_ptr(), x.stride(0), x.stride(channels_last ? 2 : 1), x.stride(channels_last ? 1 : 2)};
}

void require_same_shape(const char* op, const char* name, const Tensor& x, const char* like_name, const Tensor& like) {
  bool same = x.dim() == like.dim();
  for (int64_t i = 0; same && i < x.dim(); ++i) same = x.size(i) == like.size(i);
  require(same && x.scalar_type() == like.scalar_type(), op, ": ", name, " must have the shape and dtype of ", like_name,
          ", ", shape_of(like), " ", torch::headeronly::toString(like.scalar_type()), ", got ", shape_of(x), " ",
          torch::headeronly::toString(x.scalar_type()));
}

// A tensor like u, or none.
AnyStrided<const void> like_u(const char* op, const char* name, const OptTensor& x, const Tensor& u, bool channels_last) {
  if (!x) return {};
  check_device(op, name, *x, u);
  require_same_shape(op, name, *x, "u", u);
  return input(*x, channels_last);
}

void require_aligned(const char* op, const char* name, const void* data) {
  require(reinterpret_cast<uintptr_t>(data) % 8 == 0, op, ": ", name, " must start at an 8-byte boundary; pass a copy, ",
          name, ".clone()");
}

// What the two directions of fft_conv share: sizes, u, gates, spectrum, skip; returns the spectrum, contiguous.
template <class Args>
Tensor fft_conv_inputs(const char* op, const Tensor& u, const Tensor& spectrum, const OptTensor& skip,
                       const OptTensor& pregate, const OptTensor& postgate, bool channels_last, Args& args) {
  check_device(op, "u", u, u);
  args.element = element_of(op, "u", u);
  require(u.dim() == 3, op, ": u must have 3 dimensions, got ", shape_of(u));
  args.batch = u.size(0);
  args.dim = u.size(channels_last ? 2 : 1);
  args.seqlen = u.size(channels_last ? 1 : 2);
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

// u, pregate, postgate (batch, dim, seqlen), or (batch, seqlen, dim) with channels_last, any strides; spectrum (dim,
// 2 * fft_size) from filter_spectrum, skip (dim,), float32. Returns a new contiguous tensor of the shape and dtype of u.
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
    const Tensor scales = new_work(filter, args.dim);
    const cudaError_t error = fft_conv_mma_fwd(args, floats_of(scales), device.stream(), &shape);
    check_launch("fft_conv", "fft_conv_mma_fwd_kernel", args.fft_size, error, shape, u);
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

// Gradients of u, spectrum, skip, pregate and postgate; those of absent gates have no elements. Deterministic.
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
    check_launch(op, "fft_conv_mma_bwd_kernel or a sum after it", args.fft_size, error, shape, u);
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
    const Tensor work = new_work(k, filter_spectrum_long_work(args.dim, fft_size));
    const cudaError_t error = filter_spectrum_long_fwd(args, floats_of(work), device.stream(), &shape);
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
    const Tensor work = new_work(source, filter_spectrum_long_work(args.dim, args.fft_size));
    const cudaError_t error = filter_spectrum_long_bwd(args, floats_of(work), device.stream(), &shape);
    check_launch(op, "fft_rows_kernel or a pass around it", args.fft_size, error, shape, dspectrum);
  } else {
    const cudaError_t error = filter_spectrum_bwd(args, device.stream(), &shape);
    check_launch(op, "filter_spectrum_bwd_kernel", args.fft_size, error, shape, dspectrum);
  }
  return {dk, dk_rev};
}

// What the two directions share: element, sizes, width; returns the weight as a contiguous tensor.
template <class Args>
Tensor short_conv_sizes(const char* op, const Tensor& x, const Tensor& weight, bool channels_last, Args& args) {
  check_device(op, "x", x, x);
  args.element = element_of(op, "x", x);
  require(x.dim() == 3, op, ": x must have 3 dimensions, got ", shape_of(x));
  args.batch = x.size(0);
  args.dim = x.size(channels_last ? 2 : 1);
  args.seqlen = x.size(channels_last ? 1 : 2);
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

// The sizes of rows (tokens, blocks_in * in), w_in (blocks_in, rows_in, in) and w_out (blocks_out, out, inner).
BlockdiagGluArgs glu_args(const char* op, const Tensor& rows, const Tensor& w_in, const Tensor& w_out) {
  check_device(op, "rows", rows, rows);
  check_device(op, "w_in", w_in, rows);
  check_device(op, "w_out", w_out, rows);
  require(rows.dim() == 2 && w_in.dim() == 3 && w_out.dim() == 3 && rows.size(1) == w_in.size(0) * w_in.size(2) &&
              w_in.size(0) * w_in.size(1) == 2 * w_out.size(0) * w_out.size(2),
          op, ": rows (tokens, blocks * in), w_in (blocks, 2 * hidden / blocks, in) and w_out (blocks, out, hidden / ",
          "blocks) must agree, got ", shape_of(rows), ", ", shape_of(w_in), " and ", shape_of(w_out));
  BlockdiagGluArgs args;
  args.element = element_of(op, "rows", rows);
  require(w_in.scalar_type() == rows.scalar_type() && w_out.scalar_type() == rows.scalar_type(), op,
          ": the weights must have the dtype of rows, ", torch::headeronly::toString(rows.scalar_type()));
  args.tokens = rows.size(0);
  args.blocks_in = int(w_in.size(0)), args.rows_in = int(w_in.size(1)), args.in = int(w_in.size(2));
  args.blocks_out = int(w_out.size(0)), args.out = int(w_out.size(1)), args.inner = int(w_out.size(2));
  args.stride_x = rows.stride(0);
  args.x = rows.const_data_ptr(), args.w_in = w_in.const_data_ptr(), args.w_out = w_out.const_data_ptr();
  return args;
}

// Whether blockdiag_glu_fused takes these tensors.
bool blockdiag_glu_fits_cuda(const Tensor& rows, const Tensor& w_in, const Tensor& w_out) {
  const BlockdiagGluArgs args = glu_args("blockdiag_glu_fits", rows, w_in, w_out);
  bool aligned = rows.stride(1) == 1 && w_in.is_contiguous() && w_out.is_contiguous(), serves = false;
  for (const void* data : {args.x, args.w_in, args.w_out})
    aligned = aligned && reinterpret_cast<uintptr_t>(data) % 16 == 0;
  const CurrentDevice device(rows);
  const cudaError_t error = blockdiag_glu_serves(args, &serves);
  if (error != cudaSuccess)
    throw std::runtime_error(
        text("blockdiag_glu: cannot ask the GPU for its shared memory: ", cudaGetErrorString(error)));
  return aligned && serves;
}

// Returns (tokens, blocks_out * out), dtype of rows; b_out (blocks_out * out,) of the same dtype.
Tensor blockdiag_glu_fused_cuda(const Tensor& rows, const Tensor& w_in, const Tensor& w_out, const OptTensor& b_out) {
  const char* op = "blockdiag_glu_fused";
  require(blockdiag_glu_fits_cuda(rows, w_in, w_out), op, ": no kernel for rows ", shape_of(rows), ", w_in ",
          shape_of(w_in), " and w_out ", shape_of(w_out), "; call blockdiag_glu, which serves all sizes");
  BlockdiagGluArgs args = glu_args(op, rows, w_in, w_out);
  const int64_t channels = int64_t(args.blocks_out) * args.out;
  OptTensor bias;
  if (b_out) {
    check_device(op, "b_out", *b_out, rows);
    require(b_out->dim() == 1 && b_out->size(0) == channels && b_out->scalar_type() == rows.scalar_type(), op,
            ": b_out must have shape (", channels, ",) and the dtype of rows, got ", shape_of(*b_out));
    bias = torch::stable::contiguous(*b_out);
    args.bias = bias->const_data_ptr();
  }
  const CurrentDevice device(rows);
  Tensor out = torch::stable::new_empty(rows, {args.tokens, channels});
  args.result = out.mutable_data_ptr();
  LaunchShape shape;
  const cudaError_t error = blockdiag_glu_fwd(args, device.stream(), &shape);
  if (error != cudaSuccess)
    throw std::runtime_error(text("blockdiag_glu: launch of blockdiag_glu_fwd_kernel failed: ",
                                  cudaGetErrorString(error), " (", shape.blocks, " blocks of ", shape.threads,
                                  " threads, ", shape.shared_bytes, " bytes of shared memory, rows ", shape_of(rows),
                                  ", w_in ", shape_of(w_in), ", ", device_of(rows), ")"));
  return out;
}

// Whether a kernel of the mixer has room for the transform of this spectrum on the device of u, and knows its dtype;
// `bytes_needed` is what its block needs of shared memory for a size, 0 if it does not serve it.
bool mixer_fits(const char* op, const Tensor& u, const Tensor& spectrum, size_t (*bytes_needed)(int64_t)) {
  check_device(op, "u", u, u);
  const auto type = u.scalar_type();
  if (type != ScalarType::Float && type != ScalarType::Half && type != ScalarType::BFloat16) return false;
  require(spectrum.dim() == 2, op, ": spectrum must have shape (dim, 2 * fft_size), got ", shape_of(spectrum));
  const CurrentDevice device(u);
  size_t available = 0;
  const cudaError_t error = available_shared_bytes(&available);
  if (error != cudaSuccess)
    throw std::runtime_error(
        text("monarch_mixer: cannot ask the GPU for its shared memory: ", cudaGetErrorString(error)));
  const size_t needed = bytes_needed(spectrum.size(1) / 2);
  return needed > 0 && needed <= available;
}

bool monarch_mixer_fits_cuda(const Tensor& u, const Tensor& spectrum) {
  return mixer_fits("monarch_mixer_fits", u, spectrum, &monarch_mixer_shared_bytes);
}
bool monarch_mixer_bwd_fits_cuda(const Tensor& u, const Tensor& spectrum) {
  return mixer_fits("monarch_mixer_bwd_fits", u, spectrum, &monarch_mixer_bwd_shared_bytes);
}

// A contiguous float32 tensor of `shape`, or null data if there is none; `keep` owns it.
const float* mixer_parameter(const char* op, const char* name, const OptTensor& x, std::initializer_list<int64_t> shape,
                             const Tensor& u, std::vector<Tensor>& keep) {
  if (!x) return nullptr;
  check_tensor(op, name, *x, u);
  bool same = x->dim() == int64_t(shape.size());
  for (size_t i = 0; same && i < shape.size(); ++i) same = x->size(int64_t(i)) == shape.begin()[i];
  require(same, op, ": ", name, " has the wrong shape, ", shape_of(*x));
  keep.push_back(torch::stable::contiguous(*x));
  return static_cast<const float*>(keep.back().const_data_ptr());
}

// What the two directions of monarch_mixer share, without out; `keep` owns what had to be made contiguous.
MonarchMixerArgs mixer_inputs(const char* op, const Tensor& p, const Tensor& u, const Tensor& short_weight,
                              const OptTensor& short_bias, const Tensor& spectrum, const OptTensor& skip,
                              const OptTensor& spectrum2, const OptTensor& skip2, const OptTensor& mask, bool fits,
                              std::vector<Tensor>& keep) {
  require(u.dim() == 3 && p.dim() == 3 && p.size(0) == u.size(0) && p.size(1) == u.size(1) &&
              p.size(2) == 3 * u.size(2) && p.scalar_type() == u.scalar_type(),
          op, ": p must have shape (batch, seqlen, 3 * dim) and the dtype of u, ", shape_of(u), ", got ", shape_of(p));
  check_device(op, "p", p, u);
  require(fits, op, ": no kernel for a spectrum of shape ", shape_of(spectrum),
          " on this device; call monarch_mixer, which serves all sizes");
  MonarchMixerArgs args;
  args.element = element_of(op, "u", u);
  args.batch = u.size(0), args.seqlen = u.size(1), args.dim = u.size(2);
  args.fft_size = spectrum.size(1) / 2;
  require(args.seqlen <= args.fft_size, op, ": the spectrum serves at most ", args.fft_size, " positions, got seqlen ",
          args.seqlen);
  require(short_weight.dim() == 2 && short_weight.size(1) >= 2 && short_weight.size(1) <= kMaxShortWidth, op,
          ": short_weight must have shape (3 * dim, width) with width 2 .. ", kMaxShortWidth);
  args.width = int(short_weight.size(1));
  const int64_t dim = args.dim, points = 2 * args.fft_size;
  const auto parameter = [&](const char* name, const OptTensor& x, std::initializer_list<int64_t> shape) {
    return mixer_parameter(op, name, x, shape, u, keep);
  };
  args.short_weight = parameter("short_weight", short_weight, {3 * dim, args.width});
  args.short_bias = parameter("short_bias", short_bias, {3 * dim});
  args.spectrum = parameter("spectrum", spectrum, {dim, points});
  args.skip = parameter("skip", skip, {dim});
  args.spectrum2 = parameter("spectrum2", spectrum2, {dim, points});
  args.skip2 = parameter("skip2", skip2, {dim});
  for (const float* x : {args.spectrum, args.spectrum2})
    require(reinterpret_cast<uintptr_t>(x) % 8 == 0, op,
            ": spectra must start at an 8-byte boundary; pass a copy, spectrum.clone()");
  if (mask) {
    check_device(op, "mask", *mask, u);
    require(mask->dim() == 2 && mask->size(0) == args.batch && mask->size(1) == args.seqlen &&
                mask->scalar_type() == ScalarType::Bool,
            op, ": mask must be bool of shape (batch, seqlen), got ", shape_of(*mask));
    keep.push_back(torch::stable::contiguous(*mask));
    args.mask = static_cast<const bool*>(keep.back().const_data_ptr());
  }
  args.p = input(p, true);
  args.u = input(u, true);
  return args;
}

// The arguments of monarch_mixer in ops.cpp. Returns (batch, seqlen, dim), dtype of u.
Tensor monarch_mixer_fused_cuda(const Tensor& p, const Tensor& u, const Tensor& short_weight,
                                const OptTensor& short_bias, const Tensor& spectrum, const OptTensor& skip,
                                const OptTensor& spectrum2, const OptTensor& skip2, const OptTensor& mask) {
  const char* op = "monarch_mixer";
  std::vector<Tensor> keep;
  MonarchMixerArgs args = mixer_inputs(op, p, u, short_weight, short_bias, spectrum, skip, spectrum2, skip2, mask,
                                       monarch_mixer_fits_cuda(u, spectrum), keep);
  const CurrentDevice device(u);
  Tensor out = torch::stable::new_empty(u, {args.batch, args.seqlen, args.dim});
  args.out = output(out, true);
  LaunchShape shape;
  const cudaError_t error = monarch_mixer_fwd(args, device.stream(), &shape);
  check_launch(op, "monarch_mixer_fwd_kernel", args.fft_size, error, shape, u);
  return out;
}

// The arguments and results of monarch_mixer_bwd in ops.cpp: gradients of p and u (contiguous), then float32 ones of
// short_weight, short_bias, spectrum, skip, spectrum2 and skip2; of an absent spectrum2, those of u, spectrum2 and skip2 have
// no elements. Deterministic.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> monarch_mixer_bwd_fused_cuda(
    const Tensor& dout, const Tensor& p, const Tensor& u, const Tensor& short_weight, const OptTensor& short_bias,
    const Tensor& spectrum, const OptTensor& skip, const OptTensor& spectrum2, const OptTensor& skip2,
    const OptTensor& mask) {
  const char* op = "monarch_mixer_bwd";
  std::vector<Tensor> keep;
  MonarchMixerBwdArgs args;
  args.forward = mixer_inputs(op, p, u, short_weight, short_bias, spectrum, skip, spectrum2, skip2, mask,
                              monarch_mixer_bwd_fits_cuda(u, spectrum), keep);
  check_device(op, "dout", dout, u);
  require_same_shape(op, "dout", dout, "u", u);
  args.dout = input(dout, true);
  const CurrentDevice device(u);
  const int64_t dim = args.forward.dim, second = spectrum2 ? dim : 0;
  // Sums over nothing are 0, which no kernel has to say.
  const bool empty = u.numel() == 0;
  const auto gradient = [&](std::initializer_list<int64_t> shape) {
    return empty ? torch::stable::new_zeros(spectrum, shape) : torch::stable::new_empty(spectrum, shape);
  };
  Tensor dp = torch::stable::new_empty(p, {p.size(0), p.size(1), p.size(2)});
  Tensor du = spectrum2 ? torch::stable::new_empty(u, {u.size(0), u.size(1), dim}) : torch::stable::new_empty(u, {0});
  Tensor dweight = gradient({3 * dim, args.forward.width}), dbias = gradient({3 * dim});
  Tensor dspectrum = gradient({dim, spectrum.size(1)}), dskip = gradient({dim});
  Tensor dspectrum2 = spectrum2 ? gradient({dim, spectrum.size(1)}) : gradient({0}), dskip2 = gradient({second});
  if (!empty) {
    args.dp = output(dp, true);
    if (spectrum2) args.du = output(du, true);
    args.dweight = floats_of(dweight), args.dbias = floats_of(dbias);
    args.dspectrum = floats_of(dspectrum), args.dskip = floats_of(dskip);
    args.dspectrum2 = floats_of(dspectrum2), args.dskip2 = floats_of(dskip2);
    const Tensor scratch = new_work(dspectrum, monarch_mixer_bwd_scratch(args));
    args.scratch = floats_of(scratch);
    LaunchShape shape;
    const cudaError_t error = monarch_mixer_bwd(args, device.stream(), &shape);
    check_launch(op, "monarch_mixer_bwd_kernel or a sum after it", args.forward.fft_size, error, shape, u);
  }
  return {dp, du, dweight, dbias, dspectrum, dskip, dspectrum2, dskip2};
}

}  // namespace
}  // namespace m2::cuda

// What blockdiag_glu and monarch_mixer (m2ops/_*.py) ask on CUDA; not part of ops.cpp because no other device has them.
#ifdef M2_CUDA_EMULATED
STABLE_TORCH_LIBRARY_FRAGMENT(m2ops_emulated, m) {
#else
STABLE_TORCH_LIBRARY_FRAGMENT(m2ops, m) {
#endif
  m.def("blockdiag_glu_fits(Tensor rows, Tensor w_in, Tensor w_out) -> bool");
  m.def("blockdiag_glu_fused(Tensor rows, Tensor w_in, Tensor w_out, Tensor? b_out) -> Tensor");
  m.def("monarch_mixer_fits(Tensor u, Tensor spectrum) -> bool");
  m.def("monarch_mixer_fused(Tensor p, Tensor u, Tensor short_weight, Tensor? short_bias, Tensor spectrum,"
        " Tensor? skip, Tensor? spectrum2, Tensor? skip2, Tensor? mask) -> Tensor");
  m.def("monarch_mixer_bwd_fits(Tensor u, Tensor spectrum) -> bool");
  m.def("monarch_mixer_bwd_fused(Tensor dout, Tensor p, Tensor u, Tensor short_weight, Tensor? short_bias,"
        " Tensor spectrum, Tensor? skip, Tensor? spectrum2, Tensor? skip2, Tensor? mask)"
        " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
}

#ifdef M2_CUDA_EMULATED
STABLE_TORCH_LIBRARY(m2ops_emulated, m) {
  m.def("filter_spectrum(Tensor k, Tensor? k_rev, int fft_size) -> Tensor");
  m.def("fft_conv(Tensor u, Tensor spectrum, Tensor? skip, Tensor? pregate, Tensor? postgate, bool channels_last)"
        " -> Tensor");
  m.def("filter_spectrum_bwd(Tensor dspectrum, int taps, int taps_rev) -> (Tensor, Tensor)");
  m.def("fft_conv_bwd(Tensor dout, Tensor u, Tensor spectrum, Tensor? skip, Tensor? pregate, Tensor? postgate,"
        " bool channels_last) -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def("short_conv(Tensor x, Tensor weight, Tensor? bias, bool channels_last) -> Tensor");
  m.def("short_conv_bwd(Tensor dout, Tensor x, Tensor weight, bool channels_last) -> (Tensor, Tensor, Tensor)");
}
STABLE_TORCH_LIBRARY_IMPL(m2ops_emulated, CPU, m) {
#else
STABLE_TORCH_LIBRARY_IMPL(m2ops, CUDA, m) {
#endif
  m.impl("filter_spectrum", TORCH_BOX(&m2::cuda::filter_spectrum_cuda));
  m.impl("filter_spectrum_bwd", TORCH_BOX(&m2::cuda::filter_spectrum_bwd_cuda));
  m.impl("fft_conv", TORCH_BOX(&m2::cuda::fft_conv_cuda));
  m.impl("fft_conv_bwd", TORCH_BOX(&m2::cuda::fft_conv_bwd_cuda));
  m.impl("short_conv", TORCH_BOX(&m2::cuda::short_conv_cuda));
  m.impl("short_conv_bwd", TORCH_BOX(&m2::cuda::short_conv_bwd_cuda));
  m.impl("blockdiag_glu_fits", TORCH_BOX(&m2::cuda::blockdiag_glu_fits_cuda));
  m.impl("blockdiag_glu_fused", TORCH_BOX(&m2::cuda::blockdiag_glu_fused_cuda));
  m.impl("monarch_mixer_fits", TORCH_BOX(&m2::cuda::monarch_mixer_fits_cuda));
  m.impl("monarch_mixer_fused", TORCH_BOX(&m2::cuda::monarch_mixer_fused_cuda));
  m.impl("monarch_mixer_bwd_fits", TORCH_BOX(&m2::cuda::monarch_mixer_bwd_fits_cuda));
  m.impl("monarch_mixer_bwd_fused", TORCH_BOX(&m2::cuda::monarch_mixer_bwd_fused_cuda));
}
