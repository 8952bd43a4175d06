// fft_conv and filter_spectrum of csrc/cuda under the emulator, against a direct float64 convolution of the same
// float32 inputs. Prints a line per case and a summary; exits with 1 if anything fails.
// Built by csrc/cuda/CMakeLists.txt and by tests/cuda/test_cuda_kernels.py.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <limits>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "../cuda/dft.cuh"
#include "../cuda/fft_conv.h"
#include "../cuda/fft_plan.h"

namespace {

using m2::cuda::FftConvArgs;
using m2::cuda::FilterSpectrumArgs;
using m2::cuda::AnyStrided;

constexpr double kTolerance = 1e-6;  // float32 bound of docs/architecture.md: relative L2 of every row

struct Case {
  int64_t batch, dim, seqlen, fft_size, taps, taps_rev;
  bool gated = false, skip = false, channels_last = false, padded = false;  // padded: gaps between and inside rows
};

std::string describe(const Case& c) {
  char text[160];
  std::snprintf(text, sizeof text, "batch %d dim %d seqlen %5d fft_size %5d taps %5d + %5d%s%s%s%s", int(c.batch),
                int(c.dim), int(c.seqlen), int(c.fft_size), int(c.taps), int(c.taps_rev), c.gated ? " gated" : "",
                c.skip ? " skip" : "", c.channels_last ? " channels-last" : "", c.padded ? " strided" : "");
  return text;
}

std::mt19937 random_engine(7);

std::vector<float> random_values(int64_t count, float scale = 1.0f) {
  std::normal_distribution<float> normal(0.0f, scale);
  std::vector<float> out(count);
  for (float& x : out) x = normal(random_engine);
  return out;
}

// A strided (batch, dim, seqlen) tensor in memory that holds nothing else but NaN.
struct Tensor {
  Case shape;
  int64_t stride_batch, stride_dim, stride_seq;
  std::vector<float> data;

  explicit Tensor(const Case& c) : shape(c) {
    const int64_t inner = c.padded ? 2 : 1, gap = c.padded ? 3 : 0;
    stride_seq = c.channels_last ? inner * c.dim + gap : inner;
    stride_dim = c.channels_last ? inner : inner * c.seqlen + gap;
    stride_batch = (c.channels_last ? stride_seq * c.seqlen : stride_dim * c.dim) + gap;
    data.assign(size_t(c.batch * stride_batch), std::numeric_limits<float>::quiet_NaN());
  }
  int64_t offset(int64_t b, int64_t d, int64_t t) const { return b * stride_batch + d * stride_dim + t * stride_seq; }
  float& at(int64_t b, int64_t d, int64_t t) { return data[size_t(offset(b, d, t))]; }
  float at(int64_t b, int64_t d, int64_t t) const { return data[size_t(offset(b, d, t))]; }
  template <class T>
  AnyStrided<T> view(T* pointer) const {
    return {pointer, stride_batch, stride_dim, stride_seq};
  }
  template <class F>
  void each(F f) {
    for (int64_t b = 0; b < shape.batch; ++b)
      for (int64_t d = 0; d < shape.dim; ++d)
        for (int64_t t = 0; t < shape.seqlen; ++t) f(b, d, t);
  }
  void randomize() {
    std::normal_distribution<float> normal;
    each([&](int64_t b, int64_t d, int64_t t) { at(b, d, t) = normal(random_engine); });
  }
};

struct Problem {
  Case shape;
  Tensor u, pregate, postgate, out;
  std::vector<float> k, k_rev, skip, spectrum;

  explicit Problem(const Case& c)
      : shape(c), u(c), pregate(c), postgate(c), out(c), k(random_values(c.dim * c.taps)),
        k_rev(random_values(c.dim * c.taps_rev)), skip(random_values(c.dim)),
        spectrum(size_t(c.dim * 2 * c.fft_size), std::numeric_limits<float>::quiet_NaN()) {
    u.randomize();
    pregate.randomize();
    postgate.randomize();
  }

  FilterSpectrumArgs filter_args() {
    FilterSpectrumArgs args;
    args.dim = shape.dim;
    args.fft_size = shape.fft_size;
    args.k = k.data();
    args.taps = args.stride_k_dim = shape.taps;
    if (shape.taps_rev) args.k_rev = k_rev.data();
    args.taps_rev = args.stride_k_rev_dim = shape.taps_rev;
    args.spectrum = spectrum.data();
    return args;
  }

  FftConvArgs conv_args() {
    FftConvArgs args;
    args.batch = shape.batch;
    args.dim = shape.dim;
    args.seqlen = shape.seqlen;
    args.fft_size = shape.fft_size;
    args.u = u.view<const void>(u.data.data());
    if (shape.gated) {
      args.pregate = pregate.view<const void>(pregate.data.data());
      args.postgate = postgate.view<const void>(postgate.data.data());
    }
    args.spectrum = spectrum.data();
    if (shape.skip) args.skip = skip.data();
    args.out = out.view<void>(out.data.data());
    return args;
  }

  void run() {
    if (filter_spectrum_fwd(filter_args(), nullptr) != cudaSuccess) throw std::runtime_error("filter_spectrum_fwd");
    if (fft_conv_fwd(conv_args(), nullptr) != cudaSuccess) throw std::runtime_error("fft_conv_fwd");
  }

  // The definition, term by term.
  std::vector<double> exact(int64_t b, int64_t d) const {
    std::vector<double> g(size_t(shape.seqlen)), y(size_t(shape.seqlen));
    for (int64_t t = 0; t < shape.seqlen; ++t)
      g[t] = double(u.at(b, d, t)) * (shape.gated ? double(pregate.at(b, d, t)) : 1.0);
    for (int64_t t = 0; t < shape.seqlen; ++t) {
      double sum = shape.skip ? skip[d] * g[t] : 0.0;
      for (int64_t s = std::max<int64_t>(0, t - shape.taps + 1); s <= t; ++s) sum += k[d * shape.taps + t - s] * g[s];
      for (int64_t s = t + 1; s < std::min(shape.seqlen, t + 1 + shape.taps_rev); ++s)
        sum += k_rev[d * shape.taps_rev + s - t - 1] * g[s];
      y[t] = shape.gated ? sum * double(postgate.at(b, d, t)) : sum;
    }
    return y;
  }
};

// Relative L2 error of the worst row; NaN anywhere counts as infinite.
double worst_error(const Problem& problem, const Tensor& out) {
  double worst = 0;
  for (int64_t b = 0; b < problem.shape.batch; ++b)
    for (int64_t d = 0; d < problem.shape.dim; ++d) {
      const std::vector<double> exact = problem.exact(b, d);
      double difference = 0, norm = 0;
      for (int64_t t = 0; t < problem.shape.seqlen; ++t) {
        difference += std::pow(double(out.at(b, d, t)) - exact[t], 2);
        norm += exact[t] * exact[t];
      }
      const double error = std::sqrt(difference / norm);
      worst = std::isnan(error) ? std::numeric_limits<double>::infinity() : std::max(worst, error);
    }
  return worst;
}

// True if nothing but the elements of the tensor was written.
bool gaps_untouched(Tensor& out) {
  size_t elements = 0, written = 0;
  out.each([&](int64_t, int64_t, int64_t) { ++elements; });
  for (float x : out.data) written += !std::isnan(x);
  return written == elements;
}

int failures = 0;

void report(bool passed, const std::string& what) {
  std::printf("%s  %s\n", passed ? "ok  " : "FAIL", what.c_str());
  if (!passed) ++failures;
}

void check_case(const Case& c) {
  try {
    Problem problem(c);
    problem.run();
    const double error = worst_error(problem, problem.out);
    char text[40];
    std::snprintf(text, sizeof text, "  error %.1e", error);
    const bool clean = gaps_untouched(problem.out);
    report(error <= kTolerance && clean, describe(c) + text + (clean ? "" : ", wrote outside of the output"));
  } catch (const std::exception& error) {
    report(false, describe(c) + ": " + error.what());
  }
}

void check_values() {
  const int64_t lengths[][2] = {{1, 256},     {2, 256},     {3, 256},     {63, 256},    {129, 256},  {255, 256},
                                {256, 256},   {257, 512},   {512, 512},   {1000, 1024}, {1024, 1024}, {1025, 2048},
                                {2048, 2048}};
  for (const auto& [seqlen, fft_size] : lengths)
    for (bool bidirectional : {false, true})
      for (bool gated : {false, true}) {
        const int64_t taps_rev = bidirectional ? std::max<int64_t>(1, seqlen - 1) : 0;
        check_case({2, 3, seqlen, fft_size, seqlen, taps_rev, gated, gated});
      }
  check_case({1, 1, 4097, 8192, 1000, 999, true, true});
  check_case({1, 1, 4096, 4096, 4096, 4095, true, true});
  check_case({1, 1, 16384, 16384, 512, 300, true, true});
  for (bool channels_last : {false, true})
    for (bool padded : {false, true})
      check_case({2, 3, 129, 256, 129, 128, true, true, channels_last, padded});
  check_case({2, 2, 200, 1024, 200, 199, true, true});   // a spectrum for longer sequences
  check_case({2, 2, 300, 512, 7, 2, true, true});        // few taps
  check_case({2, 2, 256, 256, 1000, 1000, true, true});  // more taps than lags
  check_case({2, 2, 256, 256, 256, 256, false, false});  // the last reverse tap reaches no position
}

// The comparison must reject what a broken kernel might produce.
void check_comparison() {
  Problem problem({2, 3, 1000, 1024, 1000, 999, true, true});
  problem.run();
  Tensor zeros = problem.out, damaged = problem.out;
  zeros.each([&](int64_t b, int64_t d, int64_t t) { zeros.at(b, d, t) = 0.0f; });
  report(worst_error(problem, zeros) > 100 * kTolerance, "negative control: zeros are rejected");
  damaged.at(1, 2, 500) += 0.01f;  // of values around 30
  report(worst_error(problem, damaged) > kTolerance, "negative control: one value off by 3e-4 of its size is rejected");
  damaged = problem.out;
  damaged.each([&](int64_t b, int64_t d, int64_t t) { damaged.at(b, d, t) *= 1.00001f; });
  report(worst_error(problem, damaged) > kTolerance, "negative control: all values off by 1e-5 are rejected");
  Problem shifted = problem;  // reverse taps one lag too close: the other convention in use
  for (int64_t d = 0; d < 3; ++d)
    for (int64_t j = 0; j + 1 < 999; ++j) shifted.k_rev[d * 999 + j] = problem.k_rev[d * 999 + j + 1];
  report(worst_error(shifted, problem.out) > 100 * kTolerance, "negative control: k_rev off by one lag is rejected");
}

void check_determinism() {
  Problem problem({2, 3, 1000, 1024, 1000, 999, true, true});
  problem.run();
  const std::vector<float> first = problem.out.data;
  m2::emulator::options().seed = 99;
  problem.run();
  report(first == problem.out.data, "same bits whatever the order of the threads");
}

void check_non_finite() {
  Problem problem({1, 2, 300, 512, 300, 299});
  problem.u.at(0, 1, 17) = std::numeric_limits<float>::infinity();
  problem.run();
  bool first_finite = true, second_finite = true;
  for (int64_t t = 0; t < 300; ++t) {
    first_finite = first_finite && std::isfinite(problem.out.at(0, 0, t));
    second_finite = second_finite && std::isfinite(problem.out.at(0, 1, t));
  }
  report(first_finite && !second_finite, "an infinite input shows in its own row and in no other");
}

void check_limits() {
  using m2::cuda::fft_conv_fwd;
  Problem problem({1, 1, 300, 512, 300, 0});
  FftConvArgs args = problem.conv_args();
  args.fft_size = 300;
  report(fft_conv_fwd(args, nullptr) == cudaErrorInvalidValue, "a size that is no power of two is refused");
  args.fft_size = 256;
  report(fft_conv_fwd(args, nullptr) == cudaErrorInvalidValue, "a sequence longer than the transform is refused");
  args.fft_size = 512;
  args.batch = int64_t(1) << 40;
  report(fft_conv_fwd(args, nullptr) == cudaErrorInvalidValue, "more rows than a grid has blocks are refused");
  args.batch = 1;
  args.element = m2::cuda::Element::bf16;
  report(fft_conv_fwd(args, nullptr) == cudaErrorInvalidValue, "16 bits, which tensor cores serve, are refused");
  args.element = m2::cuda::Element::f32;
  args.batch = 0;
  report(fft_conv_fwd(args, nullptr) == cudaSuccess, "an empty batch is no work");

  int64_t size = 0;
  report(m2::cuda::max_fft_size(&size) == cudaSuccess && size == 16384, "227 KB a block: up to 16384 points");
  m2::emulator::options().shared_bytes_per_block = 99 * 1024;
  report(m2::cuda::max_fft_size(&size) == cudaSuccess && size == 8192, "99 KB a block: up to 8192 points");
  m2::cuda::LaunchShape shape;
  args.batch = 1;
  args.fft_size = 16384;
  report(fft_conv_fwd(args, nullptr, &shape) == cudaErrorInvalidConfiguration && shape.blocks == 1 &&
             shape.shared_bytes == m2::cuda::shared_bytes_needed(16384),
         "99 KB a block: a launch of 16384 points returns its error and its shape");
  m2::emulator::options() = {};
}

void check_tables() {
  bool rounded = true;
  for (int i = 0; i <= 64; ++i)
    rounded = rounded && (i == 64 ? m2::cuda::cos_128th(i) == 0.0f
                                  : m2::cuda::cos_128th(i) == float(std::cos(3.14159265358979323846 * i / 128)));
  report(rounded, "the constants of the butterflies are rounded correctly");
  for (const m2::cuda::FftPlan& plan : m2::cuda::kFftPlans)
    report(m2::cuda::fft_table(plan).size() == 2 * size_t(plan.table_entries()) && plan.step(plan.passes - 1) == 1,
           "plan of " + std::to_string(plan.size) + " points: the passes split it completely");
  report(!m2::cuda::find_fft_plan(768) && !m2::cuda::find_fft_plan(32768), "no plan for 768 or 32768 points");
}

}  // namespace

int main() {
  std::setvbuf(stdout, nullptr, _IOLBF, 0);  // lines reach a pipe before a crash
  for (void (*check)() :
       {check_tables, check_values, check_comparison, check_determinism, check_non_finite, check_limits}) {
    try {
      check();
    } catch (const std::exception& error) {
      report(false, error.what());
    }
  }
  std::printf(failures ? "%d checks failed\n" : "all checks passed\n", failures);
  return failures != 0;
}
