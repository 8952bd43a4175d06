// CPU boundary of fft_conv and filter_spectrum: check, allocate, threads, call the row of the kernel table.
// Test: tests/ops/test_fft_conv.py.
#include "boundary.h"
#include "toeplitz.h"

namespace m2 {
namespace {

int64_t fft_size_of(const char* op, const Tensor& spectrum, int64_t dim, int64_t seqlen) {
  STD_TORCH_CHECK(spectrum.dim() == 2 && spectrum.size(0) == dim, op, ": spectrum must have ", dim, " rows");
  const int64_t size = spectrum.size(1) / 2;
  STD_TORCH_CHECK(size >= seqlen && spectrum.size(1) % 2 == 0, op, ": the spectrum serves at most ", size,
                  " positions, got seqlen ", seqlen, "; make it with filter_spectrum(k, k_rev, seqlen)");
  return size;
}

// Elements from one gathered row to the next: rows a power of two apart would fall into the same sets of the cache.
int64_t row_pitch(int64_t fft_size) { return fft_size + kLanes; }

// spectrum = F(theta b) / N with b[m] = k[m], b[N - 1 - j] -= i k_rev[j].
template <class T>
void spectrum_rows(const Tensor& k, const OptTensor& k_rev, int64_t fft_size, T* out) {
  const auto tables = fft_tables<T>(fft_size);
  const auto& kernel = fft_kernels<T>();
  const int64_t dim = k.size(0), taps = std::min(k.size(1), fft_size);
  const int64_t taps_rev = k_rev ? std::min(k_rev->size(1), fft_size - 1) : 0;
  const T* taps_data = static_cast<const T*>(k.const_data_ptr());
  const T* rev_data = k_rev ? static_cast<const T*>(k_rev->const_data_ptr()) : nullptr;
  const T scale = T(1) / T(fft_size);
  torch::stable::parallel_for(0, dim, 1, [&](int64_t begin, int64_t end) {
    const KeptWorkspace<T> memory(2 * fft_size + tables->plan.scratch_elements());
    T *re = memory.get(), *im = re + fft_size, *scratch = im + fft_size;
    for (int64_t c = begin; c < end; ++c) {
      const T *now = taps_data + c * k.size(1), *future = taps_rev ? rev_data + c * k_rev->size(1) : nullptr;
      for (int64_t m = 0; m < taps; ++m) re[m] = now[m] * scale;
      std::fill(re + taps, re + fft_size, T(0));
      std::fill(im, im + fft_size - taps_rev, T(0));
      for (int64_t j = 0; j < taps_rev; ++j) im[fft_size - 1 - j] = -future[j] * scale;
      kernel.forward_complex(*tables, re, taps_rev ? im : nullptr, out + c * 2 * fft_size, scratch);
    }
  });
}

template <class T>
void spectrum_rows_bwd(const Tensor& dspectrum, int64_t taps, int64_t taps_rev, T* dk, T* dk_rev) {
  const int64_t dim = dspectrum.size(0), fft_size = dspectrum.size(1) / 2;
  const auto tables = fft_tables<T>(fft_size);
  const auto& kernel = fft_kernels<T>();
  const T* source = static_cast<const T*>(dspectrum.const_data_ptr());
  torch::stable::parallel_for(0, dim, 1, [&](int64_t begin, int64_t end) {
    const KeptWorkspace<T> memory(4 * fft_size + tables->plan.scratch_elements());
    T *work = memory.get(), *re = work + 2 * fft_size, *im = re + fft_size, *scratch = im + fft_size;
    const T scale = T(1) / T(fft_size);
    for (int64_t c = begin; c < end; ++c) {
      std::copy(source + c * 2 * fft_size, source + (c + 1) * 2 * fft_size, work);
      kernel.inverse(*tables, work, re, taps_rev ? im : nullptr, scratch);
      for (int64_t m = 0; m < taps; ++m) dk[c * taps + m] = m < fft_size ? re[m] * scale : T(0);
      for (int64_t j = 0; j < taps_rev; ++j)
        dk_rev[c * taps_rev + j] = j < fft_size - 1 ? -im[fft_size - 1 - j] * scale : T(0);
    }
  });
}

// Writes the spectrum of a filter to `out`, (dim, 2 * fft_size), rows of a larger tensor perhaps.
void filter_spectrum_into_cpu(const Tensor& k, const OptTensor& k_rev, Tensor out) {
  const ScalarType type = k.scalar_type();
  STD_TORCH_CHECK(k.dim() == 2 && (type == ScalarType::Float || type == ScalarType::Double),
                  "filter_spectrum: k must have shape (dim, taps) and be float32 or float64");
  const Tensor taps = parameter("filter_spectrum", "k", k, type, k.numel());
  OptTensor reverse;
  if (k_rev) {
    STD_TORCH_CHECK(k_rev->dim() == 2 && k_rev->size(0) == k.size(0), "filter_spectrum: k_rev must have ", k.size(0),
                    " rows");
    reverse = parameter("filter_spectrum", "k_rev", *k_rev, type, k_rev->numel());
  }
  STD_TORCH_CHECK(out.is_cpu() && out.scalar_type() == type && out.dim() == 2 && out.size(0) == k.size(0) &&
                      out.size(1) % 2 == 0 && out.stride(1) == 1 && (out.size(0) == 1 || out.stride(0) == out.size(1)),
                  "filter_spectrum: out must be contiguous, of the type of k, with ", k.size(0), " rows");
  const int64_t fft_size = out.size(1) / 2;
  make_fft_plan(fft_size);
  with_compute_type(type, [&](auto zero) {
    using T = decltype(zero);
    spectrum_rows<T>(taps, reverse, fft_size, static_cast<T*>(out.data_ptr()));
  });
}

Tensor empty_spectrum_cpu(const Tensor& like, int64_t dim, int64_t fft_size) {
  return new_output(like, {dim, 2 * fft_size});
}

Tensor filter_spectrum_cpu(const Tensor& k, const OptTensor& k_rev, int64_t fft_size) {
  make_fft_plan(fft_size);
  Tensor out = empty_spectrum_cpu(k, k.size(0), fft_size);
  filter_spectrum_into_cpu(k, k_rev, out);
  return out;
}

std::tuple<Tensor, Tensor> filter_spectrum_bwd_cpu(const Tensor& dspectrum, int64_t taps, int64_t taps_rev) {
  STD_TORCH_CHECK(dspectrum.dim() == 2 && dspectrum.size(1) % 2 == 0,
                  "filter_spectrum_bwd: dspectrum must have shape (dim, 2 * fft_size)");
  make_fft_plan(dspectrum.size(1) / 2);
  const Tensor source = parameter("filter_spectrum_bwd", "dspectrum", dspectrum, compute_type(dspectrum), dspectrum.numel());
  Tensor dk = new_output(dspectrum, {dspectrum.size(0), taps});
  Tensor dk_rev = new_output(dspectrum, {dspectrum.size(0), taps_rev});
  with_compute_type(dspectrum.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    spectrum_rows_bwd<T>(source, taps, taps_rev, static_cast<T*>(dk.data_ptr()), static_cast<T*>(dk_rev.data_ptr()));
  });
  return {dk, dk_rev};
}

// The order in which rows are worked on: groups of tiles whose spectra stay in L2 together, in a group one batch entry
// after the other, in an entry the tiles as they lie in memory. One tile with the whole batch would keep its spectrum in L1
// but jump from page to page.
struct Order {
  int64_t batch, tiles, group;

  Order(const View& u, int64_t spectrum_bytes)
      : batch(u.batch), tiles(u.tiles()),
        group(std::clamp(kGroupBytes / (spectrum_bytes * u.tile()), int64_t{1}, std::max(u.tiles(), int64_t{1}))) {}
  int64_t count() const { return tiles * batch; }
  // The i-th piece of work.
  struct Piece {
    int64_t b, tile;
  };
  Piece at(int64_t i) const {
    const int64_t first = i / (group * batch) * group, rest = i - first * batch;
    const int64_t width = std::min(group, tiles - first);
    return {rest / width, first + rest % width};
  }

 private:
  static constexpr int64_t kGroupBytes = int64_t{1} << 16;
};

// Rows up to this transform lie in memory one after the other as they are worked on: the hardware fetches them ahead.
constexpr int64_t kStreamed = 256;

template <class T>
void convolve(const View& u, const T* spectrum, const T* skip, const View& pre, const View& post, const View& out,
              int64_t fft_size) {
  const auto tables = fft_tables<T>(fft_size);
  const auto& kernel = fft_kernels<T>();
  const int64_t pitch = row_pitch(fft_size), gathered = u.time_contiguous ? 0 : u.tile() * pitch;
  const Order order(u, 2 * fft_size * int64_t(sizeof(T)));
  torch::stable::parallel_for(0, order.count(), 1, [&](int64_t begin, int64_t end) {
    const KeptWorkspace<T> memory(gathered + 2 * fft_size + tables->plan.scratch_elements());
    T *rows = memory.get(), *work = rows + gathered, *scratch = work + 2 * fft_size;
    for (int64_t i = begin; i < end; ++i) {
      const auto [b, tile] = order.at(i);
      const int64_t first = tile * u.tile(), channels = u.channels(first);
      const Block in = u.block(b, first), g1 = pre.block(b, first), g2 = post.block(b, first), y = out.block(b, first);
      if (u.time_contiguous) {
        const auto [next, c] = order.at(std::min(i + 1, end - 1));
        Ahead ahead{};
        if (fft_size > kStreamed) ahead = {{y.data, g2.data, u.block(next, c).data, pre.block(next, c).data}};
        kernel.convolve_signal(*tables, u.dtype, {in.data, g1.data, u.seqlen}, spectrum + first * 2 * fft_size,
                               skip ? skip[first] : T(0), {{y.data, nullptr}, {g2.data, nullptr}, u.seqlen},
                               ahead, work, scratch);
        continue;
      }
      kernel.gather(in, g1, channels, u.seqlen, pitch, rows);
      for (int64_t c = 0; c < channels; ++c) {
        T* row = rows + c * pitch;
        kernel.convolve(*tables, row, spectrum + (first + c) * 2 * fft_size, skip ? skip[first + c] : T(0), nullptr,
                        nullptr, row, work, scratch);
      }
      kernel.scatter(rows, g2, channels, u.seqlen, pitch, y);
    }
  });
}

Tensor fft_conv_cpu(const Tensor& u, const Tensor& spectrum, const OptTensor& skip, const OptTensor& pregate,
                    const OptTensor& postgate, bool channels_last) {
  const View in = view("fft_conv", "u", u, channels_last);
  const View pre = view_like("fft_conv", "pregate", pregate, in), post = view_like("fft_conv", "postgate", postgate, in);
  const int64_t fft_size = fft_size_of("fft_conv", spectrum, in.dim, in.seqlen);
  const ScalarType type = compute_type(u);
  const Tensor filter = parameter("fft_conv", "spectrum", spectrum, type, in.dim * 2 * fft_size);
  OptTensor d;
  if (skip) d = parameter("fft_conv", "skip", *skip, type, in.dim);
  Tensor out = new_output(u, {u.size(0), u.size(1), u.size(2)});
  if (out.numel() == 0) return out;
  const View y = view("fft_conv", "out", out, channels_last);
  if (convolve_with_tiles({in, pre, post, y}, filter, d, fft_size)) return out;
  with_compute_type(type, [&](auto zero) {
    using T = decltype(zero);
    convolve<T>(in, static_cast<const T*>(filter.const_data_ptr()),
                d ? static_cast<const T*>(d->const_data_ptr()) : nullptr, pre, post, y, fft_size);
  });
  return out;
}

// Tensors of the backward pass; data of dpre and dpost is null where there is no such gate.
struct Gradients {
  const View &du, &dpre, &dpost;
};

struct Row {
  int64_t b, c;
};

// Backward of one batch element of one channel whose positions are contiguous; `next` is worked on after it.
template <class T>
void backward_row(const FftTables<T>& tables, const View& dout, const View& u, const View& pre, const View& post,
                  const Gradients& out, int64_t b, int64_t c, Row next, const T* spectrum, T skip, T* dspectrum, T* work,
                  T* scratch) {
  const int64_t n = u.seqlen;
  const auto at = [c](const View& x, int64_t row) { return x.block(row, c).data; };
  const auto ahead = [next](const View& x) { return x.block(next.b, next.c).data; };
  fft_kernels<T>().backward_signal(
      tables, u.dtype, {at(u, b), at(pre, b), n}, {at(dout, b), at(post, b), n}, spectrum, skip, dspectrum,
      {{at(out.du, b), at(out.dpre, b)}, {at(pre, b), at(u, b)}, n}, {{at(out.dpost, b), nullptr}, {at(dout, b), nullptr}, n},
      {{at(out.dpost, b), at(out.du, b), at(out.dpre, b), ahead(u), ahead(pre), ahead(dout), ahead(post)}}, work, scratch);
}

// The same for a tile of channels that lie side by side.
template <class T>
void backward_tile(const FftTables<T>& tables, const View& dout, const View& u, const View& pre, const View& post,
                   const Gradients& out, int64_t b, int64_t first, const T* spectrum, const T* skip, T* dspectrum, T* work,
                   T* scratch, T* rows) {
  const auto& kernel = fft_kernels<T>();
  const int64_t size = tables.plan.size, pitch = row_pitch(size), channels = u.channels(first);
  const Dtype own = sizeof(T) == 8 ? Dtype::f64 : Dtype::f32;
  T *gu = rows, *gy = gu + u.tile() * pitch, *y = gy + u.tile() * pitch;
  const Block in = u.block(b, first), dy = dout.block(b, first), g1 = pre.block(b, first), g2 = post.block(b, first);
  kernel.gather(in, g1, channels, u.seqlen, pitch, gu);
  kernel.gather(dy, g2, channels, u.seqlen, pitch, gy);
  for (int64_t c = 0; c < channels; ++c) {
    const int64_t row = c * pitch, filter = (first + c) * 2 * size;
    kernel.backward_signal(tables, own, {gu + row, nullptr, size}, {gy + row, nullptr, size}, spectrum + filter,
                           skip ? skip[first + c] : T(0), dspectrum + filter, {{gu + row, nullptr}, {}, size},
                           {{out.dpost.data ? y + row : nullptr, nullptr}, {}, size}, {}, work, scratch);
  }
  kernel.scatter(gu, g1, channels, u.seqlen, pitch, out.du.block(b, first));
  if (out.dpre.data) kernel.scatter(gu, in, channels, u.seqlen, pitch, out.dpre.block(b, first));
  if (out.dpost.data) kernel.scatter(y, dy, channels, u.seqlen, pitch, out.dpost.block(b, first));
}

// With U = F(theta u pre), D = F(theta dout post): dspectrum = sum over the batch of conj(U) D,
// d(u pre) = Re(conj(theta) F^-1(conj(spectrum) D)) + skip dout post. dskip = sum of u pre dout post, which by Parseval
// is the mean of Re(dspectrum). One owner per channel: deterministic.
template <class T>
void convolve_bwd(const View& dout, const View& u, const T* spectrum, const T* skip, const View& pre, const View& post,
                  const Gradients& out, T* dspectrum, T* dskip, int64_t fft_size) {
  const auto tables = fft_tables<T>(fft_size);
  const int64_t gathered = u.time_contiguous ? 0 : 3 * u.tile() * row_pitch(fft_size);
  const int64_t group = Order(u, 2 * 2 * fft_size * int64_t(sizeof(T))).group;  // spectrum and its gradient
  torch::stable::parallel_for(0, u.tiles(), 1, [&](int64_t begin, int64_t end) {
    const KeptWorkspace<T> memory(gathered + 4 * fft_size + tables->plan.scratch_elements());
    T *rows = memory.get(), *work = rows + gathered, *scratch = work + 4 * fft_size;
    for (int64_t tile = begin; tile < end; tile += group) {
      const int64_t first = tile * u.tile(), last = std::min(std::min(tile + group, end) * u.tile(), u.dim);
      std::fill(dspectrum + first * 2 * fft_size, dspectrum + last * 2 * fft_size, T(0));
      for (int64_t b = 0; b < u.batch; ++b)
        for (int64_t c = first; c < last; c += u.tile())
          if (u.time_contiguous)
            backward_row<T>(*tables, dout, u, pre, post, out, b, c,
                            c + 1 < last ? Row{b, c + 1} : Row{std::min(b + 1, u.batch - 1), first},
                            spectrum + c * 2 * fft_size, skip ? skip[c] : T(0), dspectrum + c * 2 * fft_size, work, scratch);
          else
            backward_tile<T>(*tables, dout, u, pre, post, out, b, c, spectrum, skip, dspectrum, work, scratch, rows);
      for (int64_t c = first; c < last; ++c) dskip[c] = skip_gradient(*tables, dspectrum + c * 2 * fft_size);
    }
  });
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> fft_conv_bwd_cpu(const Tensor& dout, const Tensor& u,
                                                                    const Tensor& spectrum, const OptTensor& skip,
                                                                    const OptTensor& pregate, const OptTensor& postgate,
                                                                    bool channels_last) {
  const View in = view("fft_conv_bwd", "u", u, channels_last), dy = view_like("fft_conv_bwd", "dout", dout, in);
  const View pre = view_like("fft_conv_bwd", "pregate", pregate, in);
  const View post = view_like("fft_conv_bwd", "postgate", postgate, in);
  const int64_t fft_size = fft_size_of("fft_conv_bwd", spectrum, in.dim, in.seqlen);
  const ScalarType type = compute_type(u);
  const Tensor filter = parameter("fft_conv_bwd", "spectrum", spectrum, type, in.dim * 2 * fft_size);
  OptTensor d;
  if (skip) d = parameter("fft_conv_bwd", "skip", *skip, type, in.dim);
  const auto like = [&](bool wanted) {
    return wanted ? new_output(u, {u.size(0), u.size(1), u.size(2)}) : torch::stable::new_empty(u, {0});
  };
  Tensor du = like(true), dpre = like(pregate.has_value()), dpost = like(postgate.has_value());
  if (u.numel() == 0)
    return {du, torch::stable::new_zeros(filter, {in.dim, 2 * fft_size}), torch::stable::new_zeros(filter, {in.dim}), dpre,
            dpost};
  Tensor dspectrum = new_output(filter, {in.dim, 2 * fft_size}), dskip = torch::stable::new_empty(filter, {in.dim});
  const auto out = [&](const Tensor& x, bool wanted) {
    return view_like("fft_conv_bwd", "gradient", wanted ? OptTensor(x) : OptTensor(), in);
  };
  const View gu = out(du, true), gpre = out(dpre, pregate.has_value()), gpost = out(dpost, postgate.has_value());
  with_compute_type(type, [&](auto zero) {
    using T = decltype(zero);
    convolve_bwd<T>(dy, in, static_cast<const T*>(filter.const_data_ptr()),
                    d ? static_cast<const T*>(d->const_data_ptr()) : nullptr, pre, post, {gu, gpre, gpost},
                    static_cast<T*>(dspectrum.data_ptr()), static_cast<T*>(dskip.data_ptr()), fft_size);
  });
  return {du, dspectrum, dskip, dpre, dpost};
}

}  // namespace
}  // namespace m2

STABLE_TORCH_LIBRARY_IMPL(m2ops, CPU, m) {
  m.impl("filter_spectrum", TORCH_BOX(&m2::filter_spectrum_cpu));
  m.impl("_empty_spectrum", TORCH_BOX(&m2::empty_spectrum_cpu));
  m.impl("_filter_spectrum_into", TORCH_BOX(&m2::filter_spectrum_into_cpu));
  m.impl("filter_spectrum_bwd", TORCH_BOX(&m2::filter_spectrum_bwd_cpu));
  m.impl("fft_conv", TORCH_BOX(&m2::fft_conv_cpu));
  m.impl("fft_conv_bwd", TORCH_BOX(&m2::fft_conv_bwd_cpu));
}
