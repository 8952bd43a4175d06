// CPU boundary of short_conv. Test: tests/ops/test_short_conv.py.
#include "boundary.h"

namespace m2 {
namespace {

int width_of(const char* op, const Tensor& weight, int64_t dim) {
  STD_TORCH_CHECK(weight.dim() == 2 && weight.size(0) == dim && weight.size(1) >= 2 && weight.size(1) <= 7, op,
                  ": weight must have shape (dim, width) with dim ", dim, " and width 2 .. 7");
  return int(weight.size(1));
}

Tensor short_conv_cpu(const Tensor& x, const Tensor& weight, const OptTensor& bias, bool channels_last) {
  const View in = view("short_conv", "x", x, channels_last);
  const int width = width_of("short_conv", weight, in.dim);
  const ScalarType type = compute_type(x);
  const Tensor taps = parameter("short_conv", "weight", weight, type, in.dim * width);
  OptTensor offset;
  if (bias) offset = parameter("short_conv", "bias", *bias, type, in.dim);
  Tensor out = new_output(x, {x.size(0), x.size(1), x.size(2)});
  if (out.numel() == 0) return out;
  const View y = view("short_conv", "out", out, channels_last);
  with_compute_type(type, [&](auto zero) {
    using T = decltype(zero);
    const auto& kernel = short_conv_kernels<T>();
    const T* w = static_cast<const T*>(taps.const_data_ptr());
    const T* b = offset ? static_cast<const T*>(offset->const_data_ptr()) : nullptr;
    torch::stable::parallel_for(0, in.tiles() * in.batch, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t row = i / in.tiles(), first = i % in.tiles() * in.tile();
        kernel.forward({in.channels(first), in.seqlen, width}, in.block(row, first), w + first * width,
                       b ? b + first : nullptr, y.block(row, first));
      }
    });
  });
  return out;
}

std::tuple<Tensor, Tensor, Tensor> short_conv_bwd_cpu(const Tensor& dout, const Tensor& x, const Tensor& weight,
                                                      bool channels_last) {
  const View in = view("short_conv_bwd", "x", x, channels_last), dy = view_like("short_conv_bwd", "dout", dout, in);
  const int width = width_of("short_conv_bwd", weight, in.dim);
  const ScalarType type = compute_type(x);
  const Tensor taps = parameter("short_conv_bwd", "weight", weight, type, in.dim * width);
  Tensor dx = new_output(x, {x.size(0), x.size(1), x.size(2)});
  Tensor dweight = torch::stable::new_zeros(taps, {in.dim, width}), dbias = torch::stable::new_zeros(taps, {in.dim});
  if (x.numel() == 0) return {dx, dweight, dbias};
  const View dx_view = view("short_conv_bwd", "dx", dx, channels_last);
  with_compute_type(type, [&](auto zero) {
    using T = decltype(zero);
    const auto& kernel = short_conv_kernels<T>();
    const T* w = static_cast<const T*>(taps.const_data_ptr());
    T *dw = static_cast<T*>(dweight.data_ptr()), *db = static_cast<T*>(dbias.data_ptr());
    // One owner per channel, batch rows in order: deterministic.
    torch::stable::parallel_for(0, in.tiles(), 1, [&](int64_t begin, int64_t end) {
      for (int64_t tile = begin; tile < end; ++tile)
        for (int64_t row = 0; row < in.batch; ++row) {
          const int64_t first = tile * in.tile();
          kernel.backward({in.channels(first), in.seqlen, width}, in.block(row, first),
                          w + first * width, dy.block(row, first), dx_view.block(row, first),
                          dw + first * width, db + first);
        }
    });
  });
  return {dx, dweight, dbias};
}

}  // namespace
}  // namespace m2

STABLE_TORCH_LIBRARY_IMPL(m2ops, CPU, m) {
  m.impl("short_conv", TORCH_BOX(&m2::short_conv_cpu));
  m.impl("short_conv_bwd", TORCH_BOX(&m2::short_conv_bwd_cpu));
}
