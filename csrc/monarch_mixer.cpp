// CPU boundary of monarch_mixer: short convolution, gates and both long convolutions of a cache line of channels of one
// batch row at a time, so that p and u are read once and what lies between stays in the thread's workspace.
// Test: tests/ops/test_monarch_mixer.py.
#include "boundary.h"

namespace m2 {
namespace {

// One of the two long convolutions: the spectrum of each channel and its skip.
template <class T>
struct Filter {
  int64_t size = 0;  // of the transform; 0 if there is no such convolution
  const T *spectrum = nullptr, *skip = nullptr;
  const T* row(int64_t c) const { return spectrum + c * 2 * size; }
  T factor(int64_t c) const { return skip ? skip[c] : T(0); }
};

// The checked operands; parameters in the computing dtype.
struct Operands {
  View p, u;
  ScalarType type;
  int width;
  Tensor weight, spectrum;
  OptTensor bias, skip, spectrum2, skip2, mask;

  template <class T>
  static const T* data(const OptTensor& x) {
    return x ? static_cast<const T*>(x->const_data_ptr()) : nullptr;
  }
  template <class T>
  Filter<T> filter() const {
    return {spectrum.size(1) / 2, data<T>(spectrum), data<T>(skip)};
  }
  template <class T>
  Filter<T> residual() const {
    return spectrum2 ? Filter<T>{spectrum2->size(1) / 2, data<T>(spectrum2), data<T>(skip2)} : Filter<T>{};
  }
  // Channels from `first` on of batch row b, `channels` of them where there are as many, with rows of `row_size` elements.
  template <class T>
  MixerTile<T> tile(int64_t b, int64_t first, int64_t channels, int64_t row_size, int64_t pitch) const {
    MixerTile<T> t{std::min(channels, u.dim - first), u.seqlen, row_size, pitch, width, {}, {}, {}, nullptr};
    for (int slice = 0; slice < 3; ++slice) {
      const int64_t c = slice * u.dim + first;
      t.p[slice] = p.block(b, c);
      t.weight[slice] = data<T>(weight) + c * width;
      t.bias[slice] = bias ? data<T>(bias) + c : nullptr;
    }
    if (mask) t.mask = data<bool>(mask) + b * u.seqlen;
    return t;
  }
};

Tensor spectrum_of(const char* op, const Tensor& x, ScalarType type, const View& u) {
  STD_TORCH_CHECK(x.dim() == 2 && x.size(0) == u.dim && x.size(1) % 2 == 0 && x.size(1) / 2 >= u.seqlen, op,
                  ": a spectrum must have ", u.dim, " rows and serve ", u.seqlen, " positions, got ", x.size(0),
                  " rows for at most ", x.size(1) / 2, "; make it with filter_spectrum(k, k_rev, seqlen)");
  make_fft_plan(x.size(1) / 2);
  return parameter(op, "spectrum", x, type, x.numel());
}

Operands operands(const char* op, const Tensor& p, const Tensor& u, const Tensor& weight, const OptTensor& bias,
                  const Tensor& spectrum, const OptTensor& skip, const OptTensor& spectrum2, const OptTensor& skip2,
                  const OptTensor& mask) {
  const View in = view(op, "p", p, true), direct = view(op, "u", u, true);
  STD_TORCH_CHECK(in.dtype == direct.dtype && in.batch == direct.batch && in.seqlen == direct.seqlen &&
                      in.dim == 3 * direct.dim, op, ": p must have the dtype of u and the shape (batch, seqlen, 3 * dim)");
  STD_TORCH_CHECK(weight.dim() == 2 && weight.size(0) == in.dim && weight.size(1) >= 2 && weight.size(1) <= 7, op,
                  ": short_weight must have shape (3 * dim, width) with width 2 .. 7");
  const ScalarType type = compute_type(u);
  const auto vector = [&](const char* name, const OptTensor& x, int64_t size) {
    return x ? OptTensor(parameter(op, name, *x, type, size)) : OptTensor();
  };
  Operands o{in, direct, type, int(weight.size(1)), parameter(op, "short_weight", weight, type, weight.numel()),
             spectrum_of(op, spectrum, type, direct), vector("short_bias", bias, in.dim),
             vector("skip", skip, direct.dim), {}, vector("skip2", skip2, direct.dim), {}};
  if (spectrum2) o.spectrum2 = spectrum_of(op, *spectrum2, type, direct);
  STD_TORCH_CHECK(!mask || (mask->dim() == 2 && mask->size(0) == in.batch && mask->size(1) == in.seqlen), op,
                  ": mask must have shape (batch, seqlen)");
  if (mask) o.mask = parameter(op, "mask", *mask, ScalarType::Bool, in.batch * in.seqlen);
  return o;
}

// Rows of the channels of a tile, a little apart so that equal positions of them do not fall into one set of the cache.
template <class T>
struct Layout {
  int64_t row_size, pitch, scratch;
  std::shared_ptr<const FftTables<T>> tables, tables2;
  Layout(const Filter<T>& filter, const Filter<T>& residual)
      : row_size(std::max(filter.size, residual.size)), pitch(row_size + kLanes), tables(fft_tables<T>(filter.size)) {
    if (residual.size) tables2 = fft_tables<T>(residual.size);
    scratch = tables->plan.scratch_elements();
    if (tables2) scratch = std::max(scratch, tables2->plan.scratch_elements());
  }
};

// Channels worked on together: a cache line of each position.
int64_t span(const View& u) { return u.dtype == Dtype::bf16 || u.dtype == Dtype::f16 ? kMixerChannels : kLanes; }

template <class T>
void mix(const Operands& o, const View& out) {
  const Filter<T> filter = o.filter<T>(), residual = o.residual<T>();
  const Layout<T> layout(filter, residual);
  const auto& fft = fft_kernels<T>();
  const auto& mixer = mixer_kernels<T>();
  const int64_t step = span(out), spans = (out.dim + step - 1) / step, block = step * layout.pitch;
  // Channel-major, so that a thread keeps its spectra in cache while it walks over the batch.
  torch::stable::parallel_for(0, spans * out.batch, 1, [&](int64_t begin, int64_t end) {
    const KeptWorkspace<T> memory(2 * block + 2 * layout.row_size + layout.scratch);
    T *g = memory.get(), *x2 = g + block, *work = x2 + block, *scratch = work + 2 * layout.row_size;
    const auto convolve = [&](const FftTables<T>& tables, const Filter<T>& f, int64_t c, T* row, const T* post) {
      fft.convolve(tables, row, f.row(c), f.factor(c), nullptr, post, row, work, scratch);
    };
    for (int64_t i = begin; i < end; ++i) {
      const int64_t b = i % out.batch, first = i / out.batch * step;
      const MixerTile<T> tile = o.tile<T>(b, first, step, layout.row_size, layout.pitch);
      mixer.gates(tile, {nullptr, out.dtype, 1, 0, false}, g, x2);
      for (int64_t c = 0; c < tile.channels; ++c)
        convolve(*layout.tables, filter, first + c, g + c * layout.pitch, x2 + c * layout.pitch);
      if (residual.size) {  // x2 has done its duty
        mixer.gather(tile, o.u.block(b, first), x2);
        for (int64_t c = 0; c < tile.channels; ++c)
          convolve(*layout.tables2, residual, first + c, x2 + c * layout.pitch, nullptr);
      }
      mixer.scatter_sum(tile, g, residual.size ? x2 : nullptr, out.block(b, first));
    }
  });
}

Tensor monarch_mixer_cpu(const Tensor& p, const Tensor& u, const Tensor& weight, const OptTensor& bias,
                         const Tensor& spectrum, const OptTensor& skip, const OptTensor& spectrum2,
                         const OptTensor& skip2, const OptTensor& mask) {
  const Operands o = operands("monarch_mixer", p, u, weight, bias, spectrum, skip, spectrum2, skip2, mask);
  Tensor out = new_output(u, {u.size(0), u.size(1), u.size(2)});
  if (out.numel() == 0) return out;
  const View y = view("monarch_mixer", "out", out, true);
  with_compute_type(o.type, [&](auto zero) { mix<decltype(zero)>(o, y); });
  return out;
}

// The gradients in the order of the operands they belong to; empty where there is no residual convolution.
struct GradientTensors {
  Tensor dp, du, dweight, dbias, dspectrum, dskip, dspectrum2, dskip2;
};

// Both rows of one channel through a convolution backward: x, its input, becomes its output if `product`; dy, the
// gradient of its output, becomes that of its input. The gradients of filter and skip are added up over the batch.
template <class T>
struct ConvolutionBackward {
  const FftTables<T>& tables;
  const Filter<T>& filter;
  T *dspectrum, *dskip, *work, *scratch;

  void operator()(int64_t c, bool first, bool last, bool product, T* x, T* dy) const {
    const int64_t size = filter.size;
    T* sum = dspectrum + c * 2 * size;
    if (first) std::fill(sum, sum + 2 * size, T(0));
    fft_kernels<T>().backward_signal(tables, sizeof(T) == 8 ? Dtype::f64 : Dtype::f32, {x, nullptr, size},
                                     {dy, nullptr, size}, filter.row(c), filter.factor(c), sum, {{dy, nullptr}, {}, size},
                                     {{product ? x : nullptr, nullptr}, {}, size}, {}, work, scratch);
    if (last) dskip[c] = skip_gradient(tables, sum);
  }
};

// With g = x1 v, y = conv(g) and e = dout: conv runs backward with e x2, the residual convolution with e, and the gates
// and the short convolution with what comes back. One owner per channel, batch rows in order: deterministic.
template <class T>
void mix_bwd(const Operands& o, const View& dout, const GradientTensors& grads) {
  const Filter<T> filter = o.filter<T>(), residual = o.residual<T>();
  const Layout<T> layout(filter, residual);
  const auto& mixer = mixer_kernels<T>();
  const View dp = view("monarch_mixer_bwd", "dp", grads.dp, true);
  const View du = view_like("monarch_mixer_bwd", "du", residual.size ? OptTensor(grads.du) : OptTensor(), o.u);
  const auto data = [](const Tensor& x) { return static_cast<T*>(x.data_ptr()); };
  T *dweight = data(grads.dweight), *dbias = data(grads.dbias);
  const int64_t size = layout.row_size, step = span(o.u), block = step * layout.pitch;
  torch::stable::parallel_for(0, (o.u.dim + step - 1) / step, 1, [&](int64_t begin, int64_t end) {
    const KeptWorkspace<T> memory(2 * block + 4 * size + layout.scratch);
    T *x = memory.get(), *dy = x + block, *work = dy + block, *scratch = work + 4 * size;
    const ConvolutionBackward<T> gated{*layout.tables, filter, data(grads.dspectrum), data(grads.dskip), work,
                                       scratch};
    const ConvolutionBackward<T> direct{layout.tables2 ? *layout.tables2 : *layout.tables, residual,
                                        data(grads.dspectrum2), data(grads.dskip2), work, scratch};
    const auto rows = [&](const ConvolutionBackward<T>& back, const MixerTile<T>& tile, int64_t first, int64_t b,
                          bool product) {
      for (int64_t c = 0; c < tile.channels; ++c)
        back(first + c, b == 0, b + 1 == o.u.batch, product, x + c * layout.pitch, dy + c * layout.pitch);
    };
    for (int64_t first = begin * step; first < std::min(end * step, o.u.dim); first += step)
      for (int64_t b = 0; b < o.u.batch; ++b) {
        const MixerTile<T> tile = o.tile<T>(b, first, step, size, layout.pitch);
        const Block e = dout.block(b, first);
        if (residual.size) {
          mixer.gather(tile, o.u.block(b, first), x);
          mixer.gather(tile, e, dy);
          rows(direct, tile, first, b, false);
          mixer.scatter_sum(tile, dy, nullptr, du.block(b, first));
        }
        mixer.gates(tile, e, x, dy);
        rows(gated, tile, first, b, true);
        MixerGradients<T> sums;
        for (int slice = 0; slice < 3; ++slice) {
          const int64_t c = slice * o.u.dim + first;
          sums.dp[slice] = dp.block(b, c), sums.dweight[slice] = dweight + c * o.width, sums.dbias[slice] = dbias + c;
        }
        mixer.gates_bwd(tile, e, x, dy, sums);
      }
  });
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> monarch_mixer_bwd_cpu(
    const Tensor& dout, const Tensor& p, const Tensor& u, const Tensor& weight, const OptTensor& bias,
    const Tensor& spectrum, const OptTensor& skip, const OptTensor& spectrum2, const OptTensor& skip2,
    const OptTensor& mask) {
  const char* op = "monarch_mixer_bwd";
  const Operands o = operands(op, p, u, weight, bias, spectrum, skip, spectrum2, skip2, mask);
  const View dy = view_like(op, "dout", dout, o.u);
  const int64_t dim = o.u.dim;
  GradientTensors g{new_output(p, {p.size(0), p.size(1), p.size(2)}),
              spectrum2 ? new_output(u, {u.size(0), u.size(1), u.size(2)}) : torch::stable::new_empty(u, {0}),
              torch::stable::new_zeros(o.weight, {3 * dim, o.width}), torch::stable::new_zeros(o.weight, {3 * dim}),
              new_output(o.spectrum, {dim, o.spectrum.size(1)}), torch::stable::new_zeros(o.spectrum, {dim}),
              spectrum2 ? new_output(o.spectrum, {dim, o.spectrum2->size(1)}) : torch::stable::new_empty(o.spectrum, {0}),
              torch::stable::new_zeros(o.spectrum, {spectrum2 ? dim : 0})};
  if (u.numel() == 0) {
    torch::stable::zero_(g.dspectrum), torch::stable::zero_(g.dspectrum2);
  } else {
    with_compute_type(o.type, [&](auto zero) { mix_bwd<decltype(zero)>(o, dy, g); });
  }
  return {g.dp, g.du, g.dweight, g.dbias, g.dspectrum, g.dskip, g.dspectrum2, g.dskip2};
}

}  // namespace
}  // namespace m2

STABLE_TORCH_LIBRARY_IMPL(m2ops, CPU, m) {
  m.impl("monarch_mixer", TORCH_BOX(&m2::monarch_mixer_cpu));
  m.impl("monarch_mixer_bwd", TORCH_BOX(&m2::monarch_mixer_bwd_cpu));
}
