// A random sequence mixer for test_monarch_mixer_cuda.cpp and test_monarch_mixer_bwd_cuda.cpp: tensors that end where
// their memory ends, NaN under the mask, and in float64 what both tests need.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <random>
#include <stdexcept>
#include <vector>

#include "../cuda/element.cuh"
#include "../cuda/monarch_mixer.h"

namespace m2::cuda::mixer_test {

struct Case {
  int64_t batch, dim, seqlen, fft_size, taps;
  int width;
  bool residual, masked;
  Element element = Element::f32;
  bool parameters = true;  // bias and skips are there
};

inline double bound_of(Element element) {  // docs/architecture.md, numerics
  return element == Element::f32 ? 1e-6 : element == Element::f16 ? 1e-3 : 2.5e-3;
}

inline std::mt19937 random_engine(7);

inline std::unique_ptr<float[]> random_values(int64_t count, double scale = 1.0) {
  std::normal_distribution<float> normal(0.0f, float(scale));
  std::unique_ptr<float[]> out(new float[size_t(count)]);
  for (int64_t i = 0; i < count; ++i) out[size_t(i)] = normal(random_engine);
  return out;
}

// Random elements that end where their memory ends.
struct Activations {
  Element element;
  std::vector<unsigned char> bytes;

  Activations(Element type, int64_t count) : element(type), bytes(size_t(count) * element_bytes(type)) {
    std::normal_distribution<float> normal;
    for (int64_t i = 0; i < count; ++i) set(i, normal(random_engine));
  }
  void set(int64_t i, float x) {
    if (element == Element::f32) write_element<false>(element, bytes.data(), i, x);
    else write_element<true>(element, bytes.data(), i, x);
  }
  double operator[](int64_t i) const {
    return element == Element::f32 ? read_element<false>(element, bytes.data(), i)
                                   : read_element<true>(element, bytes.data(), i);
  }
};

struct Problem {
  Case shape;
  Activations p, u, dout;
  std::unique_ptr<float[]> weight, bias, k, skips, spectra[2];
  std::unique_ptr<bool[]> mask;

  explicit Problem(const Case& c)
      : shape(c), p(c.element, c.batch * c.seqlen * 3 * c.dim), u(c.element, c.batch * c.seqlen * c.dim),
        dout(c.element, c.batch * c.seqlen * c.dim), weight(random_values(3 * c.dim * c.width)),
        bias(random_values(3 * c.dim, c.parameters ? 1.0 : 0.0)),
        k(random_values(4 * c.dim * c.taps, 1.0 / std::sqrt(double(c.taps)))),
        skips(random_values(2 * c.dim, c.parameters ? 1.0 : 0.0)), mask(new bool[size_t(c.batch * c.seqlen)]) {
    const int64_t n = c.seqlen;
    for (int64_t i = 0; i < c.batch * n; ++i) {
      mask[size_t(i)] = !c.masked || i % n < n - i / n - 1;
      if (mask[size_t(i)]) continue;
      for (int64_t j = 0; j < 3 * c.dim; ++j) p.set(i * 3 * c.dim + j, NAN);
      for (int64_t j = 0; j < c.dim; ++j) u.set(i * c.dim + j, NAN), dout.set(i * c.dim + j, NAN);
    }
    for (int i = 0; i < 2; ++i) {
      spectra[i].reset(new float[size_t(c.dim * 2 * c.fft_size)]);
      FilterSpectrumArgs args;
      args.dim = c.dim, args.fft_size = c.fft_size, args.spectrum = spectra[i].get();
      args.k = filter(2 * i, 0), args.taps = args.stride_k_dim = c.taps;
      args.k_rev = filter(2 * i + 1, 0), args.taps_rev = args.stride_k_rev_dim = c.taps;
      if (filter_spectrum_fwd(args, nullptr) != cudaSuccess) throw std::runtime_error("filter_spectrum_fwd");
    }
  }

  // k, k_rev, k2, k2_rev of a channel.
  const float* filter(int i, int64_t d) const { return k.get() + (i * shape.dim + d) * shape.taps; }
  bool real(int64_t b, int64_t t) const { return mask[size_t(b * shape.seqlen + t)]; }
  int64_t at(int64_t b, int64_t t) const { return b * shape.seqlen + t; }

  MonarchMixerArgs args() const {
    const int64_t n = shape.seqlen, dim = shape.dim;
    MonarchMixerArgs args;
    args.batch = shape.batch, args.dim = dim, args.seqlen = n, args.fft_size = shape.fft_size, args.width = shape.width;
    args.element = shape.element;
    args.p = {p.bytes.data(), n * 3 * dim, 1, 3 * dim};
    args.u = {u.bytes.data(), n * dim, 1, dim};
    args.short_weight = weight.get(), args.short_bias = shape.parameters ? bias.get() : nullptr;
    args.spectrum = spectra[0].get(), args.skip = shape.parameters ? skips.get() : nullptr;
    if (shape.residual) args.spectrum2 = spectra[1].get();
    if (shape.residual && shape.parameters) args.skip2 = skips.get() + dim;
    if (shape.masked) args.mask = mask.get();
    return args;
  }

  // The short convolution of a channel of p at position t.
  double mixed(int64_t b, int64_t channel, int64_t t) const {
    double sum = bias[size_t(channel)];
    for (int64_t j = 0; j < shape.width; ++j) {
      const int64_t s = t - shape.width + 1 + j;
      if (s >= 0 && real(b, s))
        sum += double(weight[size_t(channel * shape.width + j)]) * p[at(b, s) * 3 * shape.dim + channel];
    }
    return sum;
  }

  // Calls run(t, s, tap) for every pair of positions that a filter's taps join: k forward in time, k_rev (i odd) back.
  template <class Run>
  void each_tap(int i, const Run& run) const {
    const int64_t n = shape.seqlen, back = i % 2;
    for (int64_t m = 0; m < std::min(n - back, shape.taps); ++m)
      for (int64_t t = 0; t + m + back < n; ++t)
        if (back) run(t, t + m + 1, m);
        else run(t + m, t, m);
  }

  std::vector<double> convolve(int which, int64_t d, const std::vector<double>& g) const {
    std::vector<double> y(g);
    for (double& x : y) x *= skips[size_t(which * shape.dim + d)];
    for (int i = 2 * which; i < 2 * which + 2; ++i)
      each_tap(i, [&](int64_t t, int64_t s, int64_t m) { y[size_t(t)] += g[size_t(s)] * double(filter(i, d)[m]); });
    return y;
  }
};

}  // namespace m2::cuda::mixer_test
