// monarch_mixer of csrc/cuda under the emulator against float64 sums, term by term; memory ends where tensors end.
// Prints a line per case and a summary; exits with 1 if anything fails.
// Built by csrc/cuda/CMakeLists.txt and by tests/test_cuda_kernels.py.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <memory>
#include <random>
#include <vector>

#include "../cuda/element.cuh"
#include "../cuda/monarch_mixer.h"

namespace {

using namespace m2::cuda;

struct Case {
  int64_t batch, dim, seqlen, fft_size, taps;
  int width;
  bool residual, masked;
  Element element = Element::f32;
  bool parameters = true;  // bias and skips are there
};

double bound_of(Element element) {  // docs/architecture.md, numerics
  return element == Element::f32 ? 1e-6 : element == Element::f16 ? 1e-3 : 2.5e-3;
}

std::mt19937 random_engine(7);

std::unique_ptr<float[]> random_values(int64_t count, double scale = 1.0) {
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
    for (int64_t i = 0; i < count; ++i)
      if (element == Element::f32) write_element<false>(element, bytes.data(), i, normal(random_engine));
      else write_element<true>(element, bytes.data(), i, normal(random_engine));
  }
  double operator[](int64_t i) const {
    return element == Element::f32 ? read_element<false>(element, bytes.data(), i)
                                   : read_element<true>(element, bytes.data(), i);
  }
};

std::unique_ptr<float[]> spectrum_of(const Case& c, const float* k, const float* k_rev) {
  std::unique_ptr<float[]> out(new float[size_t(c.dim * 2 * c.fft_size)]);
  FilterSpectrumArgs args;
  args.dim = c.dim, args.fft_size = c.fft_size, args.spectrum = out.get();
  args.k = k, args.taps = args.stride_k_dim = c.taps;
  args.k_rev = k_rev, args.taps_rev = args.stride_k_rev_dim = c.taps;
  if (filter_spectrum_fwd(args, nullptr) != cudaSuccess) throw std::runtime_error("filter_spectrum_fwd");
  return out;
}

std::vector<double> convolve(const std::vector<double>& g, const float* k, const float* k_rev, int64_t taps, double skip) {
  const int64_t n = int64_t(g.size());
  std::vector<double> y(g.size());
  for (int64_t t = 0; t < n; ++t) {
    double sum = skip * g[size_t(t)];
    for (int64_t s = std::max<int64_t>(0, t - taps + 1); s <= t; ++s) sum += g[size_t(s)] * double(k[t - s]);
    for (int64_t s = t + 1; s < std::min(n, t + 1 + taps); ++s) sum += g[size_t(s)] * double(k_rev[s - t - 1]);
    y[size_t(t)] = sum;
  }
  return y;
}

bool check(const Case& c) {
  const int64_t n = c.seqlen, dim = c.dim;
  const double scale = 1.0 / std::sqrt(double(c.taps)), present = c.parameters ? 1.0 : 0.0;
  const Activations p(c.element, c.batch * n * 3 * dim), u(c.element, c.batch * n * dim);
  Activations out(c.element, c.batch * n * dim);
  const auto weight = random_values(3 * dim * c.width), k = random_values(4 * dim * c.taps, scale);
  const auto bias = random_values(3 * dim, present), skips = random_values(2 * dim, present);
  const auto filter = [&](int i) { return k.get() + i * dim * c.taps; };
  const auto first = spectrum_of(c, filter(0), filter(1)), second = spectrum_of(c, filter(2), filter(3));
  std::unique_ptr<bool[]> mask(new bool[size_t(c.batch * n)]);
  for (int64_t i = 0; i < c.batch * n; ++i) mask[size_t(i)] = !c.masked || i % n < n - i / n - 1;

  MonarchMixerArgs args;
  args.batch = c.batch, args.dim = dim, args.seqlen = n, args.fft_size = c.fft_size, args.width = c.width;
  args.element = c.element;
  args.p = {p.bytes.data(), n * 3 * dim, 1, 3 * dim};
  args.u = {u.bytes.data(), n * dim, 1, dim}, args.out = {out.bytes.data(), n * dim, 1, dim};
  args.short_weight = weight.get(), args.short_bias = c.parameters ? bias.get() : nullptr;
  args.spectrum = first.get(), args.skip = c.parameters ? skips.get() : nullptr;
  if (c.residual) args.spectrum2 = second.get(), args.skip2 = c.parameters ? skips.get() + dim : nullptr;
  if (c.masked) args.mask = mask.get();
  if (monarch_mixer_fwd(args, nullptr) != cudaSuccess) return false;

  double error = 0.0, off = 0.0, norm = 0.0;
  for (int64_t b = 0; b < c.batch; ++b)
    for (int64_t d = 0; d < dim; ++d) {
      const auto real = [&](int64_t t) { return mask[size_t(b * n + t)]; };
      const auto mixed = [&](int64_t channel, int64_t t) {
        double sum = bias[size_t(channel)];
        for (int64_t j = 0; j < c.width; ++j) {
          const int64_t s = t - c.width + 1 + j;
          if (s >= 0 && real(s))
            sum += double(weight[size_t(channel * c.width + j)]) * p[(b * n + s) * 3 * dim + channel];
        }
        return sum;
      };
      std::vector<double> g(static_cast<size_t>(n)), other(static_cast<size_t>(n));
      for (int64_t t = 0; t < n; ++t) {
        g[size_t(t)] = real(t) ? mixed(d, t) * mixed(2 * dim + d, t) : 0.0;
        other[size_t(t)] = real(t) ? u[(b * n + t) * dim + d] : 0.0;
      }
      const auto y = convolve(g, filter(0) + d * c.taps, filter(1) + d * c.taps, c.taps, skips[size_t(d)]);
      const auto z = convolve(other, filter(2) + d * c.taps, filter(3) + d * c.taps, c.taps, skips[size_t(dim + d)]);
      for (int64_t t = 0; t < n; ++t) {
        const double got = out[(b * n + t) * dim + d];
        const double sum = y[size_t(t)] * mixed(dim + d, t) + (c.residual ? z[size_t(t)] : 0.0);
        const double exact = real(t) ? sum : 0.0;
        error += (got - exact) * (got - exact);
        off += (1.005 * got - exact) * (1.005 * got - exact);
        norm += exact * exact;
      }
    }
  const double bound = bound_of(c.element);
  const bool good = std::sqrt(error / norm) <= bound && std::sqrt(off / norm) > bound;
  std::printf("%s batch %d dim %d seqlen %d fft_size %d width %d%s%s%s element %d: %.1e\n", good ? "pass" : "FAIL",
              int(c.batch), int(dim), int(n), int(c.fft_size), c.width, c.residual ? " residual" : "",
              c.masked ? " masked" : "", c.parameters ? "" : " no bias, no skips", int(c.element),
              std::sqrt(error / norm));
  return good;
}

}  // namespace

int main() {
  try {
    bool good = true;
    for (const Case& c : {Case{1, 1, 1, 256, 1, 2, true, false}, Case{2, 3, 100, 256, 100, 3, true, true},
                          Case{1, 2, 256, 256, 256, 7, false, false}, Case{2, 2, 255, 256, 255, 4, true, false},
                          Case{3, 1, 63, 256, 63, 5, false, true}, Case{2, 2, 200, 512, 500, 6, true, true},
                          Case{2, 2, 130, 256, 130, 3, true, true, Element::f32, false}})
      good = check(c) && good;
    for (Element element : {Element::f32, Element::f16, Element::bf16})
      for (int64_t size = 256; size <= 16384; size *= 2) {
        good = check({1, 2, size - 3, size, 40, 3, true, true, element}) && good;
        good = check({1, 1, size, size, 40, 3, false, false, element}) && good;
      }
    std::puts(good ? "all checks passed" : "some checks FAILED");
    return good ? 0 : 1;
  } catch (const std::exception& error) {
    std::puts(error.what());
    return 1;
  }
}
