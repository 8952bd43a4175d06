// CPU boundary of fft_conv and filter_spectrum: check, allocate, threads, call the row of the kernel table.
// Test: tests/test_fft_conv.py.
#include "boundary.h"

namespace m2 {
namespace {

int64_t fft_size_of(const char* op, const Tensor& spectrum, int64_t dim, int64_t seqlen) {
  STD_TORCH_CHECK(spectrum.dim() == 2 && spectrum.size(0) == dim, op, ": spectrum must have ", dim, " rows");
  const int64_t size = spectrum.size(1) / 2;
  STD_TORCH_CHECK(size >= seqlen && spectrum.size(1) % 2 == 0, op, ": the spectrum serves at most ", size,
                  " positions, got seqlen ", seqlen, "; make it with filter_spectrum(k, k_rev, seqlen)");
  return size;
}

// spectrum = F(theta b) / N with b[m] = k[m], b[N - 1 - j] -= i k_rev[j].
template <class T>
void spectrum_rows(const Tensor& k, const OptTensor& k_rev, int64_t fft_size, T* out) {
  const auto tables = fft_tables<T>(fft_size);
  const auto& kernel = fft_kernels<T>();
  const int64_t dim = k.size(0), taps = std::min(k.size(1), fft_size);
  const int64_t taps_rev = k_rev ? std::min(k_rev->size(1), fft_size - 1) : 0;
  const T* taps_data = static_cast<const T*>(k.const_data_ptr());
  const T* rev_data = k_rev ? static_cast<const T*>(k_rev->const_data_ptr()) : nullptr;
  torch::stable::parallel_for(0, dim, 1, [&](int64_t begin, int64_t end) {
    Workspace<T> row(fft_size), other(2 * fft_size), scratch(tables->plan.scratch_elements());
    for (int64_t c = begin; c < end; ++c) {
      T* spectrum = out + c * 2 * fft_size;
      const T scale = T(1) / T(fft_size);
      for (int64_t m = 0; m < fft_size; ++m) row.get()[m] = m < taps ? taps_data[c * k.size(1) + m] * scale : T(0);
      kernel.forward(*tables, row.get(), spectrum, scratch.get());
      if (!taps_rev) continue;
      for (int64_t m = 0; m < fft_size; ++m) {
        const int64_t j = fft_size - 1 - m;
        row.get()[m] = j < taps_rev ? -rev_data[c * k_rev->size(1) + j] * scale : T(0);
      }
      kernel.forward(*tables, row.get(), other.get(), scratch.get());
      for (int64_t n = 0; n < 2 * fft_size; n += 2 * kLanes)  // spectrum += i * other
        for (int64_t lane = n; lane < n + kLanes; ++lane) {
          spectrum[lane] -= other.get()[lane + kLanes];
          spectrum[lane + kLanes] += other.get()[lane];
        }
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
    Workspace<T> work(2 * fft_size), re(fft_size), im(fft_size), scratch(tables->plan.scratch_elements());
    for (int64_t c = begin; c < end; ++c) {
      std::copy(source + c * 2 * fft_size, source + (c + 1) * 2 * fft_size, work.get());
      kernel.inverse(*tables, work.get(), re.get(), im.get(), scratch.get());
      const T scale = T(1) / T(fft_size);
      for (int64_t m = 0; m < taps; ++m) dk[c * taps + m] = m < fft_size ? re.get()[m] * scale : T(0);
      for (int64_t j = 0; j < taps_rev; ++j)
        dk_rev[c * taps_rev + j] = j < fft_size - 1 ? -im.get()[fft_size - 1 - j] * scale : T(0);
    }
  });
}

Tensor filter_spectrum_cpu(const Tensor& k, const OptTensor& k_rev, int64_t fft_size) {
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
  make_fft_plan(fft_size);
  Tensor out = new_output(k, {k.size(0), 2 * fft_size});
  with_compute_type(type, [&](auto zero) {
    using T = decltype(zero);
    spectrum_rows<T>(taps, reverse, fft_size, static_cast<T*>(out.data_ptr()));
  });
  return out;
}

std::tuple<Tensor, Tensor> filter_spectrum_bwd_cpu(const Tensor& dspectrum, int64_t taps, int64_t taps_rev) {
  STD_TORCH_CHECK(dspectrum.dim() == 2 && dspectrum.size(1) % 2 == 0,
                  "filter_spectrum_bwd: dspectrum must have shape (dim, 2 * fft_size)");
  make_fft_plan(dspectrum.size(1) / 2);
  const Tensor source = parameter("filter_spectrum_bwd", "dspectrum", dspectrum, compute_type(dspectrum), dspectrum.numel());
  Tensor dk = torch::stable::new_empty(dspectrum, {dspectrum.size(0), taps});
  Tensor dk_rev = torch::stable::new_empty(dspectrum, {dspectrum.size(0), taps_rev});
  with_compute_type(dspectrum.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    spectrum_rows_bwd<T>(source, taps, taps_rev, static_cast<T*>(dk.data_ptr()), static_cast<T*>(dk_rev.data_ptr()));
  });
  return {dk, dk_rev};
}

template <class T>
void convolve(const View& u, const T* spectrum, const T* skip, const View& pre, const View& post, const View& out,
              int64_t fft_size) {
  const auto tables = fft_tables<T>(fft_size);
  const auto& kernel = fft_kernels<T>();
  constexpr Dtype own = sizeof(T) == 8 ? Dtype::f64 : Dtype::f32;
  const bool direct = u.time_contiguous && u.dtype == own && u.seqlen == fft_size;
  // Channel-major, so that a thread keeps a spectrum in cache while it walks over the batch.
  torch::stable::parallel_for(0, u.tiles() * u.batch, 1, [&](int64_t begin, int64_t end) {
    Workspace<T> rows(direct ? 0 : u.tile() * fft_size), work(2 * fft_size), scratch(tables->plan.scratch_elements());
    for (int64_t i = begin; i < end; ++i) {
      const int64_t first = i / u.batch * u.tile(), b = i % u.batch, channels = u.channels(first);
      const Block in = u.block(b, first), g1 = pre.block(b, first), g2 = post.block(b, first), y = out.block(b, first);
      if (direct) {
        kernel.convolve(*tables, static_cast<T*>(in.data), spectrum + first * 2 * fft_size, skip ? skip[first] : T(0),
                        static_cast<T*>(g1.data), static_cast<T*>(g2.data), static_cast<T*>(y.data), work.get(),
                        scratch.get());
        continue;
      }
      kernel.gather(in, g1, channels, u.seqlen, fft_size, rows.get());
      for (int64_t c = 0; c < channels; ++c) {
        T* row = rows.get() + c * fft_size;
        kernel.convolve(*tables, row, spectrum + (first + c) * 2 * fft_size, skip ? skip[first + c] : T(0), nullptr,
                        nullptr, row, work.get(), scratch.get());
      }
      kernel.scatter(rows.get(), g2, channels, u.seqlen, fft_size, y);
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
  with_compute_type(type, [&](auto zero) {
    using T = decltype(zero);
    convolve<T>(in, static_cast<const T*>(filter.const_data_ptr()),
                d ? static_cast<const T*>(d->const_data_ptr()) : nullptr, pre, post, y, fft_size);
  });
  return out;
}

// Rows of one tile in the backward pass: gu = u pre and gy = dout post, then the results in their place.
template <class T>
struct BackwardRows {
  Workspace<T> gu, gy, y, work_u, work_y, work, scratch;
  BackwardRows(int64_t tile, int64_t size, int64_t scratch_size)
      : gu(tile * size), gy(tile * size), y(tile * size), work_u(2 * size), work_y(2 * size), work(2 * size),
        scratch(scratch_size) {}
};

// With U = F(theta u pre), D = F(theta dout post): dspectrum = sum over the batch of conj(U) D,
// d(u pre) = Re(conj(theta) F^-1(conj(spectrum) D)) + skip dout post. One owner per channel: deterministic.
template <class T>
void convolve_bwd(const View& dout, const View& u, const T* spectrum, const T* skip, const View& pre, const View& post,
                  const View& du, T* dspectrum, T* dskip, const View& dpre, const View& dpost, int64_t fft_size) {
  const auto tables = fft_tables<T>(fft_size);
  const auto& kernel = fft_kernels<T>();
  torch::stable::parallel_for(0, u.tiles(), 1, [&](int64_t begin, int64_t end) {
    BackwardRows<T> rows(u.tile(), fft_size, tables->plan.scratch_elements());
    T* work = rows.work.get();
    for (int64_t tile = begin; tile < end; ++tile) {
      const int64_t first = tile * u.tile(), channels = u.channels(first);
      std::fill(dspectrum + first * 2 * fft_size, dspectrum + (first + channels) * 2 * fft_size, T(0));
      for (int64_t b = 0; b < u.batch; ++b) {
        const Block in = u.block(b, first), dy = dout.block(b, first), g1 = pre.block(b, first), g2 = post.block(b, first);
        kernel.gather(in, g1, channels, u.seqlen, fft_size, rows.gu.get());
        kernel.gather(dy, g2, channels, u.seqlen, fft_size, rows.gy.get());
        for (int64_t c = 0; c < channels; ++c) {
          T *gu = rows.gu.get() + c * fft_size, *gy = rows.gy.get() + c * fft_size, *y = rows.y.get() + c * fft_size;
          const T* filter = spectrum + (first + c) * 2 * fft_size;
          const T d = skip ? skip[first + c] : T(0);
          kernel.forward(*tables, gu, rows.work_u.get(), rows.scratch.get());
          kernel.forward(*tables, gy, rows.work_y.get(), rows.scratch.get());
          kernel.accumulate(fft_size, rows.work_u.get(), rows.work_y.get(), dspectrum + (first + c) * 2 * fft_size);
          if (dpost.data) {  // the output before the gate, computed again rather than kept
            kernel.multiply(fft_size, rows.work_u.get(), filter, false, work);
            kernel.inverse(*tables, work, y, nullptr, rows.scratch.get());
          }
          double dot = 0;
          for (int64_t t = 0; t < u.seqlen; ++t) dot += double(gu[t]) * double(gy[t]);
          dskip[first + c] = T(double(b ? dskip[first + c] : T(0)) + dot);
          if (dpost.data && d != T(0))
            for (int64_t t = 0; t < u.seqlen; ++t) y[t] += d * gu[t];
          kernel.multiply(fft_size, rows.work_y.get(), filter, true, work);
          kernel.inverse(*tables, work, gu, nullptr, rows.scratch.get());
          if (d != T(0))
            for (int64_t t = 0; t < u.seqlen; ++t) gu[t] += d * gy[t];
        }
        kernel.scatter(rows.gu.get(), g1, channels, u.seqlen, fft_size, du.block(b, first));
        if (dpre.data) kernel.scatter(rows.gu.get(), in, channels, u.seqlen, fft_size, dpre.block(b, first));
        if (dpost.data) kernel.scatter(rows.y.get(), dy, channels, u.seqlen, fft_size, dpost.block(b, first));
      }
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
  Tensor dspectrum = torch::stable::new_zeros(filter, {in.dim, 2 * fft_size});
  Tensor dskip = torch::stable::new_zeros(filter, {in.dim});
  if (u.numel() == 0) return {du, dspectrum, dskip, dpre, dpost};
  const auto out = [&](const Tensor& x, bool wanted) {
    return view_like("fft_conv_bwd", "gradient", wanted ? OptTensor(x) : OptTensor(), in);
  };
  with_compute_type(type, [&](auto zero) {
    using T = decltype(zero);
    convolve_bwd<T>(dy, in, static_cast<const T*>(filter.const_data_ptr()),
                    d ? static_cast<const T*>(d->const_data_ptr()) : nullptr, pre, post, out(du, true),
                    static_cast<T*>(dspectrum.data_ptr()), static_cast<T*>(dskip.data_ptr()),
                    out(dpre, pregate.has_value()), out(dpost, postgate.has_value()), fft_size);
  });
  return {du, dspectrum, dskip, dpre, dpost};
}

}  // namespace
}  // namespace m2

STABLE_TORCH_LIBRARY_IMPL(m2ops, CPU, m) {
  m.impl("filter_spectrum", TORCH_BOX(&m2::filter_spectrum_cpu));
  m.impl("filter_spectrum_bwd", TORCH_BOX(&m2::filter_spectrum_bwd_cpu));
  m.impl("fft_conv", TORCH_BOX(&m2::fft_conv_cpu));
  m.impl("fft_conv_bwd", TORCH_BOX(&m2::fft_conv_bwd_cpu));
}
