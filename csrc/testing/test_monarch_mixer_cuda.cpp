// monarch_mixer of csrc/cuda under the emulator against float64 sums, term by term; memory ends where tensors end.
// Prints a line per case and a summary; exits with 1 if anything fails.
// Built by csrc/cuda/CMakeLists.txt and by tests/test_cuda_emulated.py.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <memory>
#include <random>
#include <vector>

#include "../cuda/monarch_mixer.h"

namespace {

using namespace m2::cuda;

constexpr double kTolerance = 1e-6;  // float32 bound of docs/architecture.md
constexpr int64_t kSize = 256;

struct Case {
  int64_t batch, dim, seqlen;
  int width;
  bool residual, masked;
};

std::mt19937 random_engine(7);

std::unique_ptr<float[]> random_values(int64_t count, double scale = 1.0) {
  std::normal_distribution<float> normal(0.0f, float(scale));
  std::unique_ptr<float[]> out(new float[size_t(count)]);
  for (int64_t i = 0; i < count; ++i) out[size_t(i)] = normal(random_engine);
  return out;
}

std::unique_ptr<float[]> spectrum_of(const Case& c, const float* k, const float* k_rev) {
  std::unique_ptr<float[]> out(new float[size_t(c.dim * 2 * kSize)]);
  FilterSpectrumArgs args;
  args.dim = c.dim, args.fft_size = kSize, args.spectrum = out.get();
  args.k = k, args.taps = args.stride_k_dim = c.seqlen;
  args.k_rev = k_rev, args.taps_rev = args.stride_k_rev_dim = c.seqlen;
  if (filter_spectrum_fwd(args, nullptr) != cudaSuccess) throw std::runtime_error("filter_spectrum_fwd");
  return out;
}

std::vector<double> convolve(const std::vector<double>& g, const float* k, const float* k_rev, double skip) {
  std::vector<double> y(g.size());
  for (size_t t = 0; t < g.size(); ++t) {
    y[t] = skip * g[t];
    for (size_t s = 0; s < g.size(); ++s) y[t] += g[s] * double(s <= t ? k[t - s] : k_rev[s - t - 1]);
  }
  return y;
}

bool check(const Case& c) {
  const int64_t n = c.seqlen, dim = c.dim;
  const double scale = 1.0 / std::sqrt(double(n));
  const auto p = random_values(c.batch * n * 3 * dim), u = random_values(c.batch * n * dim);
  const auto weight = random_values(3 * dim * c.width), bias = random_values(3 * dim), skips = random_values(2 * dim);
  const auto k = random_values(4 * dim * n, scale), out = random_values(c.batch * n * dim);
  const auto filter = [&](int i) { return k.get() + i * dim * n; };
  const auto first = spectrum_of(c, filter(0), filter(1)), second = spectrum_of(c, filter(2), filter(3));
  std::unique_ptr<bool[]> mask(new bool[size_t(c.batch * n)]);
  for (int64_t i = 0; i < c.batch * n; ++i) mask[size_t(i)] = !c.masked || i % n < n - i / n - 1;

  MonarchMixerArgs args;
  args.batch = c.batch, args.dim = dim, args.seqlen = n, args.fft_size = kSize, args.width = c.width;
  args.p = {p.get(), n * 3 * dim, 1, 3 * dim};
  args.u = {u.get(), n * dim, 1, dim}, args.out = {out.get(), n * dim, 1, dim};
  args.short_weight = weight.get(), args.short_bias = bias.get();
  args.spectrum = first.get(), args.skip = skips.get();
  if (c.residual) args.spectrum2 = second.get(), args.skip2 = skips.get() + dim;
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
            sum += double(weight[size_t(channel * c.width + j)]) * p[size_t((b * n + s) * 3 * dim + channel)];
        }
        return sum;
      };
      std::vector<double> g(static_cast<size_t>(n)), other(static_cast<size_t>(n));
      for (int64_t t = 0; t < n; ++t) {
        g[size_t(t)] = real(t) ? mixed(d, t) * mixed(2 * dim + d, t) : 0.0;
        other[size_t(t)] = real(t) ? double(u[size_t((b * n + t) * dim + d)]) : 0.0;
      }
      const auto y = convolve(g, filter(0) + d * n, filter(1) + d * n, skips[size_t(d)]);
      const auto z = convolve(other, filter(2) + d * n, filter(3) + d * n, skips[size_t(dim + d)]);
      for (int64_t t = 0; t < n; ++t) {
        const double got = out[size_t((b * n + t) * dim + d)];
        const double sum = y[size_t(t)] * mixed(dim + d, t) + (c.residual ? z[size_t(t)] : 0.0);
        const double exact = real(t) ? sum : 0.0;
        error += (got - exact) * (got - exact);
        off += (1.001 * got - exact) * (1.001 * got - exact);
        norm += exact * exact;
      }
    }
  const bool good = std::sqrt(error / norm) <= kTolerance && std::sqrt(off / norm) > kTolerance;
  std::printf("%s batch %d dim %d seqlen %d width %d%s%s: %.1e\n", good ? "pass" : "FAIL", int(c.batch), int(dim),
              int(n), c.width, c.residual ? " residual" : "", c.masked ? " masked" : "", std::sqrt(error / norm));
  return good;
}

}  // namespace

int main() {
  try {
    bool good = true;
    for (const Case& c : {Case{1, 1, 1, 2, true, false}, Case{2, 3, 100, 3, true, true},
                          Case{1, 2, 256, 7, false, false}, Case{2, 2, 255, 4, true, false},
                          Case{3, 1, 63, 5, false, true}})
      good = check(c) && good;
    std::puts(good ? "all checks passed" : "some checks FAILED");
    return good ? 0 : 1;
  } catch (const std::exception& error) {
    std::puts(error.what());
    return 1;
  }
}
