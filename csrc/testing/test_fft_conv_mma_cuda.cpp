// fft_conv of csrc/cuda on tensor cores under the emulator against float64 sums, term by term, of the same rounded inputs;
// inputs that float16 could not hold; memory ends where tensors end. Prints a line per case and a summary; exits with 1 if
// anything fails. Built by csrc/cuda/CMakeLists.txt and by tests/cuda/test_cuda_kernels.py.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <limits>
#include <random>
#include <stdexcept>
#include <vector>

#include "../cuda/dft.cuh"
#include "../cuda/element.cuh"
#include "../cuda/fft_conv_long.h"
#include "../cuda/fft_conv_mma.h"

namespace {

using namespace m2::cuda;

struct Case {
  int64_t batch, dim, seqlen, fft_size, taps, taps_rev;
  Element element = Element::bf16;
  bool gated = true, channels_last = false;
  double scale_u = 1.0, scale_pre = 1.0, scale_post = 1.0, scale_k = 1.0;
};

std::mt19937 random_engine(5);

double bound_of(Element element) { return element == Element::f16 ? 1e-3 : 2.5e-3; }  // docs/architecture.md, numerics

// A 16-bit tensor over batch, dim and seqlen; untouched elements are NaN.
struct Tensor {
  Case shape;
  std::vector<uint16_t> bits;

  explicit Tensor(const Case& c, double scale) : shape(c), bits(size_t(c.batch * c.dim * c.seqlen), 0xffff) {
    std::normal_distribution<float> normal(0.0f, float(scale));
    for (size_t i = 0; scale > 0 && i < bits.size(); ++i) write(int64_t(i), normal(random_engine));
  }
  void write(int64_t i, float x) { write_element<true>(shape.element, bits.data(), i, x); }
  int64_t at(int64_t b, int64_t d, int64_t t) const { return b * shape.dim * shape.seqlen + d * stride_dim() + t * stride_seq(); }
  double get(int64_t b, int64_t d, int64_t t) const { return read_element<true>(shape.element, bits.data(), at(b, d, t)); }
  int64_t stride_dim() const { return shape.channels_last ? 1 : shape.seqlen; }
  int64_t stride_seq() const { return shape.channels_last ? shape.dim : 1; }
  AnyStrided<const void> input() const { return {bits.data(), shape.dim * shape.seqlen, stride_dim(), stride_seq()}; }
  AnyStrided<void> output() { return {bits.data(), shape.dim * shape.seqlen, stride_dim(), stride_seq()}; }
};

std::vector<float> random_values(int64_t count, double scale) {
  std::normal_distribution<float> normal(0.0f, float(scale));
  std::vector<float> out(static_cast<size_t>(count));
  for (float& x : out) x = normal(random_engine);
  return out;
}

struct Problem {
  Case shape;
  Tensor u, pre, post, out;
  std::vector<float> k, k_rev, skip, spectrum, scratch;

  explicit Problem(const Case& c)
      : shape(c), u(c, c.scale_u), pre(c, c.scale_pre), post(c, c.scale_post), out(c, 0.0),
        k(random_values(c.dim * c.taps, c.scale_k / std::sqrt(double(std::min(c.taps, c.seqlen))))),
        k_rev(random_values(c.dim * c.taps_rev, c.scale_k / std::sqrt(double(c.taps)))),
        skip(random_values(c.dim, c.scale_k)), spectrum(size_t(c.dim * 2 * c.fft_size), NAN), scratch(size_t(c.dim * (c.fft_size + 1)), NAN) {}

  FftConvArgs args() {
    FftConvArgs args;
    args.batch = shape.batch, args.dim = shape.dim, args.seqlen = shape.seqlen, args.fft_size = shape.fft_size;
    args.element = shape.element;
    args.u = u.input(), args.out = out.output();
    if (shape.gated) args.pregate = pre.input(), args.postgate = post.input();
    args.spectrum = spectrum.data(), args.skip = shape.gated ? skip.data() : nullptr;
    return args;
  }

  void run() {
    FilterSpectrumArgs filter;
    filter.dim = shape.dim, filter.fft_size = shape.fft_size, filter.spectrum = spectrum.data();
    filter.k = k.data(), filter.taps = filter.stride_k_dim = shape.taps;
    filter.k_rev = shape.taps_rev ? k_rev.data() : nullptr, filter.taps_rev = filter.stride_k_rev_dim = shape.taps_rev;
    int64_t largest = 0;
    if (max_fft_size(&largest) != cudaSuccess) throw std::runtime_error("max_fft_size");
    const cudaError_t error = shape.fft_size <= largest ? filter_spectrum_fwd(filter, nullptr)
                                                        : filter_spectrum_long_fwd(filter, nullptr);
    if (error != cudaSuccess) throw std::runtime_error("filter_spectrum");
    if (fft_conv_mma_fwd(args(), scratch.data(), nullptr) != cudaSuccess) throw std::runtime_error("fft_conv_mma_fwd");
  }

  std::vector<double> exact(int64_t b, int64_t d) const {
    const int64_t n = shape.seqlen;
    std::vector<double> g(static_cast<size_t>(n)), y(g);
    for (int64_t t = 0; t < n; ++t) g[size_t(t)] = u.get(b, d, t) * (shape.gated ? pre.get(b, d, t) : 1.0);
    for (int64_t t = 0; t < n; ++t) {
      double sum = shape.gated ? double(skip[size_t(d)]) * g[size_t(t)] : 0.0;
      for (int64_t s = std::max<int64_t>(0, t - shape.taps + 1); s <= t; ++s)
        sum += double(k[size_t(d * shape.taps + t - s)]) * g[size_t(s)];
      for (int64_t s = t + 1; s < std::min(n, t + 1 + shape.taps_rev); ++s)
        sum += double(k_rev[size_t(d * shape.taps_rev + s - t - 1)]) * g[size_t(s)];
      y[size_t(t)] = shape.gated ? sum * post.get(b, d, t) : sum;
    }
    return y;
  }
};

bool report(bool good, const char* what) {
  std::printf("%s  %s\n", good ? "ok  " : "FAIL", what);
  return good;
}

// The worst row must be within the bound, and would not be if it were half a percent off (two of a few values, whose
// rounding may make up for less) or zero.
bool check(const Case& c) {
  const double wrong = c.seqlen < 16 ? 1.02 : 1.005;
  Problem p(c);
  p.run();
  double worst = 0, rounding = 0, least_off = 1e30;
  for (int64_t b = 0; b < c.batch; ++b)
    for (int64_t d = 0; d < c.dim; ++d) {
      const std::vector<double> exact = p.exact(b, d);
      Tensor rounded(c, 0.0);
      double error = 0, off = 0, least = 0, norm = 0;
      for (int64_t t = 0; t < c.seqlen; ++t) {
        const double got = p.out.get(b, d, t), want = exact[size_t(t)];
        rounded.write(0, float(want));
        error += (got - want) * (got - want);
        off += (wrong * got - want) * (wrong * got - want);
        least += std::pow(rounded.get(0, 0, 0) - want, 2);
        norm += want * want;
      }
      worst = std::isnan(error) ? std::numeric_limits<double>::infinity() : std::max(worst, std::sqrt(error / norm));
      rounding = std::max(rounding, std::sqrt(least / norm));
      least_off = std::min(least_off, std::sqrt(off / norm));
    }
  // A row of a few values can be rounded worse than the bound says of many.
  const double bound = std::max(bound_of(c.element), 1.25 * rounding);
  const bool good = worst <= bound && least_off > bound;
  std::printf("%s  batch %d dim %d seqlen %d fft_size %d taps %d + %d%s%s %s: error %.1e, of rounding alone %.1e\n",
              good ? "ok  " : "FAIL", int(c.batch), int(c.dim), int(c.seqlen), int(c.fft_size), int(c.taps),
              int(c.taps_rev), c.gated ? " gated" : "", c.channels_last ? " channels-last" : "",
              c.element == Element::f16 ? "float16" : "bfloat16", worst, rounding);
  return good;
}

bool check_values() {
  // Of the longer ones first: what a barrier protects in them is looked for with each barrier left out.
  bool good = check({1, 1, 600, 8192, 20, 10, Element::f16});
  good = check({1, 1, 600, 16384, 20, 10, Element::f16}) && good;
  random_engine.seed(5);
  for (Element element : {Element::f16, Element::bf16}) {
    for (const auto& [seqlen, size] : {std::pair<int, int>{1, 256}, {63, 256}, {256, 256}, {257, 512}, {512, 512},
                                       {1000, 1024}, {2047, 2048}, {4096, 4096}})
      good = check({seqlen > 2000 ? 1 : 2, seqlen > 2000 ? 1 : 3, seqlen, size, seqlen, std::max(seqlen - 1, 0), element}) &&
             good;
    // Blocks that walk over several slabs of 16, 8, .. 1 rows and several channels; the last slab of a channel is not full.
    for (const auto& [batch, dim, seqlen, size] :
         {std::array<int, 4>{35, 5, 256, 256}, {19, 3, 200, 256}, {9, 4, 504, 512}, {6, 3, 1024, 1024}, {5, 2, 1033, 2048},
          {3, 3, 2048, 2048}, {3, 2, 4096, 4096}, {1, 7, 2600, 4096}})
      for (const bool gated : {true, false})
        good = check({batch, dim, seqlen, size, 40, gated ? 30 : 0, element, gated}) && good;
    good = check({21, 5, 130, 256, 130, 100, element, true, true}) && good;
    for (const size_t shared : {227, 99}) {  // in 99 KB the spectrum of 16384 points is one of several kernels
      m2::emulator::options().shared_bytes_per_block = shared * 1024;
      for (const auto& [seqlen, size] : {std::pair<int, int>{5000, 8192}, {8192, 8192}, {9001, 16384}, {16384, 16384}})
        good = check({1, 2, seqlen, size, 400, 300, element}) && good;
      good = check({1, 2, 12000, 16384, 300, 0, element, false, true}) && good;
    }
    m2::emulator::options() = {};
    for (int seqlen : {17000, 32768}) good = check({1, 2, seqlen, 32768, 400, 300, element}) && good;
    good = check({2, 1, 20001, 32768, 300, 0, element, false, true}) && good;
    good = check({2, 3, 200, 256, 200, 0, element, false, true}) && good;  // causal, no gates, no skip
    good = check({2, 3, 700, 1024, 900, 800, element, true, true}) && good;
  }
  return good;
}

// Inputs, products with the gate, spectra and sums beyond 65504, or below what float16 holds, whose results exist.
bool check_range() {
  bool good = true;
  good = check({1, 2, 1000, 1024, 1000, 999, Element::bf16, true, false, 1e20, 1.0, 1e-8, 1.0}) && good;
  good = check({1, 2, 1000, 1024, 1000, 999, Element::bf16, true, false, 1e-20, 1.0, 1.0, 1.0}) && good;
  good = check({1, 2, 4096, 4096, 4096, 0, Element::bf16, true, false, 1e10, 1e10, 1.0, 1e-15}) && good;
  good = check({1, 2, 500, 512, 500, 499, Element::f16, true, false, 1e4, 1e3, 1.0, 1e-6}) && good;
  good = check({1, 2, 500, 512, 500, 499, Element::f16, true, false, 1.0, 1.0, 1e-2, 1e5}) && good;
  // All energy in few frequencies, sums as large as can be.
  Problem equal({1, 1, 4096, 4096, 4096, 0, Element::bf16, false});
  for (int64_t t = 0; t < 4096; ++t) equal.u.write(t, 60000.0f), equal.k[size_t(t)] = 100.0f;
  equal.run();
  const std::vector<double> exact = equal.exact(0, 0);
  double error = 0, norm = 0;
  for (int64_t t = 0; t < 4096; ++t)
    error += std::pow(equal.out.get(0, 0, t) - exact[size_t(t)], 2), norm += std::pow(exact[size_t(t)], 2);
  good = report(std::sqrt(error / norm) <= 2.5e-3, "equal values, whose sums are the largest possible") && good;
  for (int64_t size : {8192, 16384, 32768}) {  // the same of more points, in closed form
    Problem more({1, 1, size, size, size, 0, Element::bf16, false});
    for (int64_t t = 0; t < size; ++t) more.u.write(t, 60000.0f), more.k[size_t(t)] = 100.0f;
    more.run();
    const double step = 100.0 * more.u.get(0, 0, 0);
    error = norm = 0;
    for (int64_t t = 0; t < size; ++t)
      error += std::pow(more.out.get(0, 0, t) - step * double(t + 1), 2), norm += std::pow(step * double(t + 1), 2);
    good = report(std::sqrt(error / norm) <= 2.5e-3, "equal values, of more points") && good;
  }
  return good;
}

bool check_specials() {
  Problem zero({2, 1, 300, 512, 300, 299});
  std::fill(zero.u.bits.begin(), zero.u.bits.begin() + 300, uint16_t(0));
  zero.u.write(zero.u.at(1, 0, 17), INFINITY);
  zero.run();
  bool zeros = true, finite = false;
  for (int64_t t = 0; t < 300; ++t) {
    zeros = zeros && zero.out.get(0, 0, t) == 0.0;
    finite = finite || std::isfinite(zero.out.get(1, 0, t));
  }
  bool good = report(zeros && !finite, "a row of zeros gives zeros, an infinite input makes all of its row not finite");
  Problem nan({2, 1, 300, 512, 300, 299});
  nan.u.write(nan.u.at(0, 0, 3), NAN);
  nan.run();
  bool other = true, own = false;
  for (int64_t t = 0; t < 300; ++t) {
    other = other && std::isfinite(nan.out.get(1, 0, t));
    own = own || std::isfinite(nan.out.get(0, 0, t));
  }
  good = report(other && !own, "NaN shows in its own row and in no other") && good;
  Problem p({2, 2, 1000, 1024, 1000, 999});
  p.run();
  const auto first = p.out.bits;
  m2::emulator::options().seed = 99;
  p.run();
  m2::emulator::options() = {};
  good = report(first == p.out.bits, "same bits whatever the order of the threads") && good;
  FftConvArgs args = p.args();
  args.element = Element::f32;
  good = report(fft_conv_mma_fwd(args, p.scratch.data(), nullptr) == cudaErrorInvalidValue, "float32 is refused") && good;
  args.element = Element::f16, args.fft_size = 65536;
  good = report(!fft_conv_mma_serves(args) && fft_conv_mma_fwd(args, p.scratch.data(), nullptr) == cudaErrorInvalidValue,
                "65536 points are refused") && good;
  args.fft_size = 32768;
  for (int shared : {99, 163, 227}) {
    m2::emulator::options().shared_bytes_per_block = size_t(shared) * 1024;
    good = report(fft_conv_mma_serves(args) == (shared > 99), "32768 points are served with 163 KB a block or more") && good;
  }
  m2::emulator::options() = {};
  args.fft_size = 16384;
  good = report(fft_conv_mma_serves(args), "16384 points are served") && good;
  m2::emulator::options().shared_bytes_per_block = 64 * 1024;
  good = report(!fft_conv_mma_serves(args), "16384 points are not served with 64 KB a block") && good;
  m2::emulator::options().shared_bytes_per_block = 99 * 1024;
  args.fft_size = 8192;
  good = report(fft_conv_mma_serves(args), "8192 points are served with 99 KB a block") && good;
  args.fft_size = 4096;
  good = report(fft_conv_mma_serves(args), "4096 points are served with 99 KB a block") && good;
  m2::emulator::options() = {};
  return good;
}

}  // namespace

int main() {
  std::setvbuf(stdout, nullptr, _IOLBF, 0);  // lines reach a pipe before a crash
  bool good = true;
  for (bool (*part)() : {check_values, check_range, check_specials}) {
    try {
      good = part() && good;
    } catch (const std::exception& error) {
      good = report(false, error.what());
    }
  }
  std::puts(good ? "all checks passed" : "some checks FAILED");
  return !good;
}
