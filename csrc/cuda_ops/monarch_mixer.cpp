// CUDA boundary of monarch_mixer, forward and backward: the kernels of ../cuda/monarch_mixer.h around the long convolutions,
// for which activations become contiguous rows. Test: tests/cuda/test_cuda_emulated.py.
//
// Rows are float32 but for u forward, which has its dtype before and meets the tensor cores if it has 16 bits. x1 v, its
// convolution and the result rounded to bfloat16 each would be three roundings, which is more than a result may be off, and
// gradients of taps, biases, skips and filters, float32 whatever the tensors are, would be good to 1e-3 instead of 1e-6.
#include "../cuda/monarch_mixer.h"
#include "fft_conv.h"

namespace m2::cuda {
namespace {

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

// What the two directions share; `keep` owns what had to be made contiguous.
MixerArgs mixer_inputs(const char* op, const Tensor& p, const Tensor& u, const Tensor& short_weight,
                       const OptTensor& short_bias, const OptTensor& mask, std::vector<Tensor>& keep) {
  MixerArgs args;
  take_sizes(op, "u", u, true, args);
  check_device(op, "p", p, u);
  require(p.dim() == 3 && p.size(0) == u.size(0) && p.size(1) == u.size(1) && p.size(2) == 3 * u.size(2) &&
              p.scalar_type() == u.scalar_type(),
          op, ": p must have shape (batch, seqlen, 3 * dim) and the dtype of u, ", shape_of(u), ", got ", shape_of(p));
  require(short_weight.dim() == 2 && short_weight.size(1) >= 2 && short_weight.size(1) <= kMaxShortWidth, op,
          ": short_weight must have shape (3 * dim, width) with width 2 .. ", kMaxShortWidth, ", got ",
          shape_of(short_weight));
  args.width = int(short_weight.size(1));
  args.short_weight = mixer_parameter(op, "short_weight", short_weight, {3 * args.dim, args.width}, u, keep);
  args.short_bias = mixer_parameter(op, "short_bias", short_bias, {3 * args.dim}, u, keep);
  if (mask) {
    check_device(op, "mask", *mask, u);
    require(mask->dim() == 2 && mask->size(0) == args.batch && mask->size(1) == args.seqlen &&
                mask->scalar_type() == ScalarType::Bool,
            op, ": mask must be bool of shape (batch, seqlen), got ", shape_of(*mask));
    keep.push_back(torch::stable::contiguous(*mask));
    args.mask = static_cast<const bool*>(keep.back().const_data_ptr());
  }
  args.p = input(p, true);
  return args;
}

// New rows, (batch, dim, seqlen) of the dtype of `like`, if they are wanted.
OptTensor new_rows(const MixerArgs& args, const Tensor& like, bool wanted = true) {
  if (!wanted) return std::nullopt;
  return torch::stable::new_empty(like, {args.batch, args.dim, args.seqlen});
}
Rows<void> rows_of(const OptTensor& x, Element element = Element::f32) {
  if (!x) return {};
  return {x->mutable_data_ptr(), element};
}

void check_mixer_launch(const char* op, const char* kernel, cudaError_t error, const LaunchShape& shape, const Tensor& u) {
  if (error == cudaSuccess) return;
  throw std::runtime_error(text(op, ": launch of ", kernel, " failed: ", cudaGetErrorString(error), " (", shape.blocks,
                                " blocks of ", shape.threads, " threads, ", shape.shared_bytes,
                                " bytes of shared memory, u ", shape_of(u), ", ", device_of(u), ")"));
}

void make_rows(const char* op, const MixerRowsArgs& args, const CurrentDevice& device, const Tensor& u) {
  LaunchShape shape;
  const cudaError_t error = mixer_rows(args, device.stream(), &shape);
  check_mixer_launch(op, "mixer_rows_kernel", error, shape, u);
}

// x2 y + z as (batch, seqlen, dim), dtype of u.
Tensor sum_rows(const char* op, const MixerArgs& mixer, const Rows<void>& y, const Rows<void>& z,
                const CurrentDevice& device, const Tensor& u) {
  Tensor out = torch::stable::new_empty(u, {mixer.batch, mixer.seqlen, mixer.dim});
  MixerSumArgs args;
  args.mixer = mixer, args.out = output(out, true);
  args.y = {y.data, y.element}, args.z = {z.data, z.element};
  LaunchShape shape;
  const cudaError_t error = mixer_sum(args, device.stream(), &shape);
  check_mixer_launch(op, "mixer_sum_kernel", error, shape, u);
  return out;
}

// The arguments of monarch_mixer in ops.cpp. Returns (batch, seqlen, dim), dtype of u.
Tensor monarch_mixer_cuda(const Tensor& p, const Tensor& u, const Tensor& short_weight, const OptTensor& short_bias,
                          const Tensor& spectrum, const OptTensor& skip, const OptTensor& spectrum2,
                          const OptTensor& skip2, const OptTensor& mask) {
  const char* op = "monarch_mixer";
  std::vector<Tensor> keep;
  MixerRowsArgs args;
  args.mixer = mixer_inputs(op, p, u, short_weight, short_bias, mask, keep);
  check_tensor(op, "spectrum", spectrum, u);
  const CurrentDevice device(u);
  OptTensor g = new_rows(args.mixer, spectrum), u_rows = new_rows(args.mixer, u, spectrum2.has_value());
  args.u = input(u, true);
  args.g = rows_of(g), args.u_rows = rows_of(u_rows, args.mixer.element);
  make_rows(op, args, device, u);
  OptTensor z;  // memory that is free again serves what comes next
  if (spectrum2) z = fft_conv_cuda(*u_rows, *spectrum2, skip2, std::nullopt, std::nullopt, false);
  u_rows.reset();
  const OptTensor y = fft_conv_cuda(*g, spectrum, skip, std::nullopt, std::nullopt, false);
  g.reset();
  return sum_rows(op, args.mixer, rows_of(y), rows_of(z, args.mixer.element), device, u);
}

// The arguments and results of monarch_mixer_bwd in ops.cpp: gradients of p and u (contiguous), then float32 ones of
// short_weight, short_bias, spectrum, skip, spectrum2 and skip2; of an absent spectrum2, those of u, spectrum2 and skip2 have
// no elements. Deterministic.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> monarch_mixer_bwd_cuda(
    const Tensor& dout, const Tensor& p, const Tensor& u, const Tensor& short_weight, const OptTensor& short_bias,
    const Tensor& spectrum, const OptTensor& skip, const OptTensor& spectrum2, const OptTensor& skip2,
    const OptTensor& mask) {
  const char* op = "monarch_mixer_bwd";
  std::vector<Tensor> keep;
  MixerRowsArgs args;
  args.mixer = mixer_inputs(op, p, u, short_weight, short_bias, mask, keep);
  check_tensor(op, "spectrum", spectrum, u);
  check_device(op, "dout", dout, u);
  require_same_shape(op, "dout", dout, "u", u);
  const CurrentDevice device(u);
  const Tensor& wide = spectrum;  // a float32 tensor on this device
  OptTensor g = new_rows(args.mixer, wide), x2 = new_rows(args.mixer, wide), d = new_rows(args.mixer, wide);
  OptTensor u_rows = new_rows(args.mixer, wide, spectrum2.has_value());
  args.u = input(u, true), args.dout = input(dout, true);
  args.g = rows_of(g), args.x2 = rows_of(x2), args.dout_rows = rows_of(d), args.u_rows = rows_of(u_rows);
  make_rows(op, args, device, u);

  Tensor du = torch::stable::new_empty(u, {0}), dspectrum2 = torch::stable::new_empty(wide, {0});
  Tensor dskip2 = torch::stable::new_empty(wide, {0});
  if (spectrum2) {
    OptTensor du_rows;
    std::tie(du_rows, dspectrum2, dskip2, std::ignore, std::ignore) =
        fft_conv_bwd_cuda(*d, *u_rows, *spectrum2, skip2, std::nullopt, std::nullopt, false);
    u_rows.reset();
    du = sum_rows(op, args.mixer, {}, rows_of(du_rows), device, u);
  }
  // x2 is the gate after the convolution, so its gradient comes with the others.
  const auto [dg, dspectrum, dskip, none, dx2] =
      fft_conv_bwd_cuda(*d, *g, spectrum, skip, std::nullopt, x2, false);
  g.reset(), x2.reset(), d.reset();

  Tensor dp = torch::stable::new_empty(p, {p.size(0), p.size(1), p.size(2)});
  Tensor dweight = torch::stable::new_empty(wide, {3 * args.mixer.dim, args.mixer.width});
  Tensor dbias = torch::stable::new_empty(wide, {3 * args.mixer.dim});
  MixerBwdArgs last;
  last.mixer = args.mixer;
  last.dg = static_cast<const float*>(dg.const_data_ptr()), last.dx2 = static_cast<const float*>(dx2.const_data_ptr());
  last.dp = output(dp, true);
  last.dweight = floats_of(dweight), last.dbias = floats_of(dbias);
  const Tensor partials = new_work(wide, mixer_bwd_scratch(last));
  last.partials = floats_of(partials);
  LaunchShape shape;
  const cudaError_t error = mixer_bwd(last, device.stream(), &shape);
  check_mixer_launch(op, "mixer_bwd_kernel or the sum after it", error, shape, u);
  return {dp, du, dweight, dbias, dspectrum, dskip, dspectrum2, dskip2};
}

}  // namespace
}  // namespace m2::cuda

M2_CUDA_LIBRARY_IMPL(m) {
  m.impl("monarch_mixer", TORCH_BOX(&m2::cuda::monarch_mixer_cuda));
  m.impl("monarch_mixer_bwd", TORCH_BOX(&m2::cuda::monarch_mixer_bwd_cuda));
}
