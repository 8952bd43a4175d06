// The gradients of monarch_mixer of csrc/cuda under the emulator against float64 sums, term by term; memory ends where
// tensors end. Prints a line per case and a summary; exits with 1 if anything fails.
// Built by csrc/cuda/CMakeLists.txt and by tests/test_cuda_kernels.py.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <stdexcept>
#include <vector>

#include "judge.h"
#include "monarch_mixer_problem.h"

namespace {

using namespace m2::cuda;
using namespace m2::cuda::mixer_test;
using Vector = std::vector<double>;

// What the kernel gives; NaN where it does not write.
struct Gradients {
  Activations dp, du;
  std::vector<float> dweight, dbias, dspectra[2], dskips[2], dk[4];

  explicit Gradients(const Problem& p)
      : dp(p.p), du(p.u), dweight(size_t(3 * p.shape.dim * p.shape.width), NAN), dbias(size_t(3 * p.shape.dim), NAN) {
    std::fill(dp.bytes.begin(), dp.bytes.end(), 0xff), std::fill(du.bytes.begin(), du.bytes.end(), 0xff);
    for (auto& x : dspectra) x.assign(size_t(p.shape.dim * 2 * p.shape.fft_size), NAN);
    for (auto& x : dskips) x.assign(size_t(p.shape.dim), NAN);
    for (auto& x : dk) x.assign(size_t(p.shape.dim * p.shape.taps), NAN);
  }

  void run(const Problem& p) {
    const int64_t n = p.shape.seqlen, dim = p.shape.dim;
    MonarchMixerBwdArgs args;
    args.forward = p.args();
    args.dout = {p.dout.bytes.data(), n * dim, 1, dim};
    args.dp = {dp.bytes.data(), n * 3 * dim, 1, 3 * dim};
    args.dweight = dweight.data(), args.dbias = dbias.data();
    args.dspectrum = dspectra[0].data(), args.dskip = dskips[0].data();
    if (p.shape.residual) {
      args.du = {du.bytes.data(), n * dim, 1, dim};
      args.dspectrum2 = dspectra[1].data(), args.dskip2 = dskips[1].data();
    }
    std::vector<float> scratch(size_t(monarch_mixer_bwd_scratch(args)), NAN);
    args.scratch = scratch.data();
    if (monarch_mixer_bwd(args, nullptr) != cudaSuccess) throw std::runtime_error("monarch_mixer_bwd");
    for (int i = 0; i < (p.shape.residual ? 2 : 1); ++i) {
      FilterSpectrumBwdArgs back;
      back.dim = dim, back.fft_size = p.shape.fft_size, back.dspectrum = dspectra[i].data();
      back.dk = dk[2 * i].data(), back.dk_rev = dk[2 * i + 1].data(), back.taps = back.taps_rev = p.shape.taps;
      if (filter_spectrum_bwd(back, nullptr) != cudaSuccess) throw std::runtime_error("filter_spectrum_bwd");
    }
  }
  bool operator==(const Gradients& other) const {
    bool same = dp.bytes == other.dp.bytes && du.bytes == other.du.bytes && dweight == other.dweight && dbias == other.dbias;
    for (int i = 0; i < 2; ++i) same = same && dspectra[i] == other.dspectra[i] && dskips[i] == other.dskips[i];
    return same;
  }
};

// A sum and the squares of its terms.
struct Sum {
  double value = 0, terms = 0;
  void add(double x) { value += x, terms += x * x; }
};

struct Exact {
  std::vector<Sum> dweight, dbias, dskips[2], dk[4];
};

// One convolution of a channel of a batch entry: the gradient of its input g from that of its result.
Vector backward(const Problem& p, int which, int64_t d, const Vector& g, const Vector& dy, Exact& exact) {
  Vector dg(dy);
  for (size_t t = 0; t < dy.size(); ++t) {
    dg[t] *= p.skips[size_t(which * p.shape.dim + d)];
    exact.dskips[which][size_t(d)].add(dy[t] * g[t]);
  }
  for (int i = 2 * which; i < 2 * which + 2; ++i)
    p.each_tap(i, [&](int64_t t, int64_t s, int64_t m) {
      dg[size_t(s)] += dy[size_t(t)] * double(p.filter(i, d)[m]);
      exact.dk[i][size_t(d * p.shape.taps + m)].value += dy[size_t(t)] * g[size_t(s)];
    });
  return dg;
}

// The short convolution of one channel of p: dx is the gradient of its result.
void judge_short_conv(const Problem& p, const Gradients& got, int64_t b, int64_t channel, const Vector& dx, Exact& exact,
                      Judge& judge) {
  const int64_t n = p.shape.seqlen, width = p.shape.width;
  Vector dp(static_cast<size_t>(n));
  for (int64_t t = 0; t < n; ++t) {
    exact.dbias[size_t(channel)].add(dx[size_t(t)]);
    for (int64_t j = 0; j < width; ++j) {
      const int64_t s = t - width + 1 + j;
      if (s < 0 || !p.real(b, s)) continue;
      exact.dweight[size_t(channel * width + j)].add(dx[size_t(t)] * p.p[p.at(b, s) * 3 * p.shape.dim + channel]);
      dp[size_t(s)] += dx[size_t(t)] * double(p.weight[size_t(channel * width + j)]);
    }
  }
  for (int64_t t = 0; t < n; ++t) judge.see(got.dp[p.at(b, t) * 3 * p.shape.dim + channel], dp[size_t(t)]);
}

bool check(const Case& c) {
  const int64_t n = c.seqlen, dim = c.dim;
  const Problem p(c);
  Gradients got(p);
  got.run(p);
  Exact exact;
  exact.dweight.resize(got.dweight.size()), exact.dbias.resize(got.dbias.size());
  for (auto& x : exact.dskips) x.resize(size_t(dim));
  for (auto& x : exact.dk) x.resize(size_t(dim * c.taps));
  Judge dp, du, taps, filters;
  for (int64_t b = 0; b < c.batch; ++b)
    for (int64_t d = 0; d < dim; ++d) {
      Vector g(static_cast<size_t>(n)), other(g), dout(g), gated(g), dx1(g), dx2(g), dv(g);
      for (int64_t t = 0; t < n; ++t) {
        if (!p.real(b, t)) continue;
        g[size_t(t)] = p.mixed(b, d, t) * p.mixed(b, 2 * dim + d, t);
        other[size_t(t)] = p.u[p.at(b, t) * dim + d], dout[size_t(t)] = p.dout[p.at(b, t) * dim + d];
        gated[size_t(t)] = dout[size_t(t)] * p.mixed(b, dim + d, t);
      }
      const Vector y = p.convolve(0, d, g), dg = backward(p, 0, d, g, gated, exact);
      for (int64_t t = 0; t < n; ++t) {
        dx2[size_t(t)] = dout[size_t(t)] * y[size_t(t)];
        if (!p.real(b, t)) continue;
        dx1[size_t(t)] = dg[size_t(t)] * p.mixed(b, 2 * dim + d, t), dv[size_t(t)] = dg[size_t(t)] * p.mixed(b, d, t);
      }
      judge_short_conv(p, got, b, d, dx1, exact, dp);
      judge_short_conv(p, got, b, dim + d, dx2, exact, dp);
      judge_short_conv(p, got, b, 2 * dim + d, dv, exact, dp);
      if (!c.residual) continue;
      const Vector back = backward(p, 1, d, other, dout, exact);
      for (int64_t t = 0; t < n; ++t) du.see(got.du[p.at(b, t) * dim + d], p.real(b, t) ? back[size_t(t)] : 0.0);
    }
  for (size_t i = 0; i < got.dweight.size(); ++i) taps.see(got.dweight[i], exact.dweight[i].value, exact.dweight[i].terms);
  for (size_t i = 0; i < got.dbias.size(); ++i) taps.see(got.dbias[i], exact.dbias[i].value, exact.dbias[i].terms);
  Judge skips;
  for (int which = 0; which < (c.residual ? 2 : 1); ++which) {
    for (size_t d = 0; d < size_t(dim); ++d)
      skips.see(got.dskips[which][d], exact.dskips[which][d].value, exact.dskips[which][d].terms);
    for (int i = 2 * which; i < 2 * which + 2; ++i)
      for (size_t m = 0; m < got.dk[i].size(); ++m) filters.see(got.dk[i][m], exact.dk[i][m].value);
  }
  const double bound = bound_of(c.element), sums = 1e-6;  // sums over batch and positions stay in float32
  const bool good = dp.good(bound) && (!c.residual || du.good(bound)) && taps.good(sums) && skips.good(sums) &&
                    filters.good(sums);
  std::printf("%s batch %d dim %d seqlen %d fft_size %d width %d%s%s%s element %d: dp %.1e du %.1e taps %.1e skips %.1e "
              "filters %.1e\n",
              good ? "pass" : "FAIL", int(c.batch), int(dim), int(n), int(c.fft_size), c.width,
              c.residual ? " residual" : "", c.masked ? " masked" : "", c.parameters ? "" : " no bias, no skips",
              int(c.element), dp.relative(), c.residual ? du.relative() : 0.0, taps.relative(), skips.relative(),
              filters.relative());
  return good;
}

bool report(bool good, const char* what) {
  std::printf("%s  %s\n", good ? "ok  " : "FAIL", what);
  return good;
}

bool check_determinism() {
  const Problem p({9, 2, 200, 256, 200, 3, true, true});
  Gradients first(p), second(p);
  first.run(p);
  m2::emulator::options().seed = 99;
  second.run(p);
  m2::emulator::options() = {};
  return report(first == second, "same bits whatever the order of the threads");
}

bool check_limits() {
  const Problem p({1, 1, 300, 512, 300, 3, false, false});
  MonarchMixerBwdArgs args;
  args.forward = p.args();
  args.forward.fft_size = 256;
  bool good = report(monarch_mixer_bwd(args, nullptr) == cudaErrorInvalidValue, "a sequence longer than the transform is refused");
  args.forward.fft_size = 32768;
  good = report(monarch_mixer_bwd(args, nullptr) == cudaErrorInvalidValue && !monarch_mixer_bwd_shared_bytes(32768),
                "a transform that no shared memory holds is refused") && good;
  args.forward.fft_size = 512, args.forward.width = 8;
  good = report(monarch_mixer_bwd(args, nullptr) == cudaErrorInvalidValue, "a window of 8 is refused") && good;
  return report(monarch_mixer_bwd_shared_bytes(4096) <= 99 * 1024, "4096 points fit into 99 KB") && good;
}

}  // namespace

int main() {
  std::setvbuf(stdout, nullptr, _IOLBF, 0);  // lines reach a pipe before a crash
  try {
    bool good = true;
    for (const Case& c : {Case{2, 3, 100, 256, 100, 3, true, true}, Case{1, 1, 1, 256, 1, 2, true, false},
                          Case{1, 2, 256, 256, 256, 7, false, false}, Case{2, 2, 255, 256, 255, 4, true, false},
                          Case{3, 1, 63, 256, 63, 5, false, true}, Case{2, 2, 200, 512, 500, 6, true, true},
                          Case{9, 1, 130, 256, 130, 3, true, true, Element::f32, false}})
      good = check(c) && good;
    for (Element element : {Element::f32, Element::f16, Element::bf16})
      for (int64_t size = 256; size <= kMaxFftSize; size *= 2) {
        const bool both = element == Element::f16 || size <= 512;
        good = check({1, 1, size - 3, size, 40, 3, both, true, element}) && good;
        if (size <= 2048) good = check({1, 1, size, size, 40, 7, !both, false, element}) && good;
      }
    good = check_determinism() && good;
    good = check_limits() && good;
    std::puts(good ? "all checks passed" : "some checks FAILED");
    return good ? 0 : 1;
  } catch (const std::exception& error) {
    std::puts(error.what());
    return 1;
  }
}
