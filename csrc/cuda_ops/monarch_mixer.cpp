// CUDA boundary of monarch_mixer, forward and backward, for the sizes that a kernel serves; all else is a composition in
// Python (m2ops/_monarch_mixer.py). Kernels: ../cuda. Test: tests/test_cuda_emulated.py.
#include "../cuda/monarch_mixer.h"
#include "boundary.h"

namespace m2::cuda {
namespace {

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

// What m2ops/_monarch_mixer.py asks on CUDA; not in ../ops.cpp because no other device has it.
M2_CUDA_LIBRARY_FRAGMENT(m) {
  m.def("monarch_mixer_fits(Tensor u, Tensor spectrum) -> bool");
  m.def("monarch_mixer_fused(Tensor p, Tensor u, Tensor short_weight, Tensor? short_bias, Tensor spectrum,"
        " Tensor? skip, Tensor? spectrum2, Tensor? skip2, Tensor? mask) -> Tensor");
  m.def("monarch_mixer_bwd_fits(Tensor u, Tensor spectrum) -> bool");
  m.def("monarch_mixer_bwd_fused(Tensor dout, Tensor p, Tensor u, Tensor short_weight, Tensor? short_bias,"
        " Tensor spectrum, Tensor? skip, Tensor? spectrum2, Tensor? skip2, Tensor? mask)"
        " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
}

M2_CUDA_LIBRARY_IMPL(m) {
  m.impl("monarch_mixer_fits", TORCH_BOX(&m2::cuda::monarch_mixer_fits_cuda));
  m.impl("monarch_mixer_fused", TORCH_BOX(&m2::cuda::monarch_mixer_fused_cuda));
  m.impl("monarch_mixer_bwd_fits", TORCH_BOX(&m2::cuda::monarch_mixer_bwd_fits_cuda));
  m.impl("monarch_mixer_bwd_fused", TORCH_BOX(&m2::cuda::monarch_mixer_bwd_fused_cuda));
}
