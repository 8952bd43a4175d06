// The kernels of monarch_mixer of csrc/cuda under the emulator, each against float64 sums, term by term; memory ends where
// tensors end, and what lies under the mask is NaN. The whole operator: tests/cuda/test_cuda_emulated.py.
// Prints a line per case and a summary; exits with 1 if anything fails.
// Built by csrc/testing/CMakeLists.txt, run by tests/cuda/test_cuda_kernels.py.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <random>
#include <stdexcept>
#include <vector>

#include "../cuda/element.cuh"
#include "../cuda/monarch_mixer.h"
#include "judge.h"

namespace {

using namespace m2::cuda;
using Vector = std::vector<double>;

struct Case {
  int64_t batch, dim, seqlen;
  int width;
  bool masked;
  Element element = Element::f32;
  bool gaps = false;  // between positions, so that nothing is aligned
  bool bias = true;
};

double bound_of(Element element) {  // docs/architecture.md, numerics
  return element == Element::f32 ? 1e-6 : element == Element::f16 ? 1e-3 : 2.5e-3;
}

std::mt19937 random_engine(7);

// Elements that end where their memory ends, 0xff.. at first.
struct Elements {
  Element element;
  std::vector<unsigned char> bytes;

  Elements(Element type, int64_t count) : element(type), bytes(size_t(count) * element_bytes(type), 0xff) {}
  void* data() { return bytes.data(); }
  void set(int64_t i, float x) {
    if (element == Element::f32) write_element<false>(element, bytes.data(), i, x);
    else write_element<true>(element, bytes.data(), i, x);
  }
  double operator[](int64_t i) const {
    return element == Element::f32 ? read_element<false>(element, bytes.data(), i)
                                   : read_element<true>(element, bytes.data(), i);
  }
};

std::vector<float> random_floats(int64_t count) {
  std::normal_distribution<float> normal;
  std::vector<float> out(static_cast<size_t>(count));
  for (float& x : out) x = normal(random_engine);
  return out;
}

// A random (batch, seqlen, channels) tensor; NaN under the mask and in the gaps.
struct Tensor {
  const Case& c;
  int64_t channels, pitch;
  Elements values;

  Tensor(const Case& shape, int64_t channels_, bool random = true)
      : c(shape), channels(channels_), pitch(channels_ + (shape.gaps ? 1 : 0)),
        values(shape.element, shape.batch * shape.seqlen * pitch - (shape.gaps ? 1 : 0)) {
    std::normal_distribution<float> normal;
    for (int64_t b = 0; random && b < c.batch; ++b)
      for (int64_t t = 0; t < c.seqlen; ++t)
        for (int64_t d = 0; d < channels && real(c, b, t); ++d) values.set(at(b, t, d), normal(random_engine));
  }
  static bool real(const Case& c, int64_t b, int64_t t) { return !c.masked || t < c.seqlen - b - 1; }
  int64_t at(int64_t b, int64_t t, int64_t d) const { return (b * c.seqlen + t) * pitch + d; }
  // 0 where nothing is real.
  double operator()(int64_t b, int64_t t, int64_t d) const {
    return t >= 0 && t < c.seqlen && real(c, b, t) ? values[at(b, t, d)] : 0.0;
  }
  AnyStrided<void> view() { return {values.data(), c.seqlen * pitch, 1, pitch}; }
  AnyStrided<const void> input() { return {values.data(), c.seqlen * pitch, 1, pitch}; }
};

struct Problem {
  Case c;
  Tensor p, u, dout;
  std::vector<float> weight, bias;
  std::vector<char> mask;  // bool as the kernels read it

  explicit Problem(const Case& shape)
      : c(shape), p(c, 3 * c.dim), u(c, c.dim), dout(c, c.dim),
        weight(random_floats(3 * c.dim * c.width)), bias(random_floats(3 * c.dim)) {
    if (!c.bias) bias.assign(bias.size(), 0.0f);
    for (int64_t b = 0; b < c.batch; ++b)
      for (int64_t t = 0; t < c.seqlen; ++t) mask.push_back(Tensor::real(c, b, t));
  }
  MixerArgs args() {
    MixerArgs args;
    args.element = c.element;
    args.batch = c.batch, args.dim = c.dim, args.seqlen = c.seqlen, args.width = c.width;
    args.p = p.input(), args.short_weight = weight.data();
    if (c.bias) args.short_bias = bias.data();
    if (c.masked) args.mask = reinterpret_cast<const bool*>(mask.data());
    return args;
  }
  int64_t rows() const { return c.batch * c.dim * c.seqlen; }
  int64_t row(int64_t b, int64_t d, int64_t t) const { return (b * c.dim + d) * c.seqlen + t; }
  // The short convolution of a channel of p.
  double mixed(int64_t b, int64_t channel, int64_t t) const {
    double sum = bias[size_t(channel)];
    for (int64_t j = 0; j < c.width; ++j) sum += weight[size_t(channel * c.width + j)] * p(b, t - c.width + 1 + j, channel);
    return sum;
  }
  double value(int64_t b, int64_t d, int64_t t) const {
    return Tensor::real(c, b, t) ? mixed(b, 2 * c.dim + d, t) : 0.0;
  }
  template <class Run>
  void each(const Run& run) const {
    for (int64_t b = 0; b < c.batch; ++b)
      for (int64_t d = 0; d < c.dim; ++d)
        for (int64_t t = 0; t < c.seqlen; ++t) run(b, d, t);
  }
};

void require(cudaError_t error, const char* what) {
  if (error != cudaSuccess) throw std::runtime_error(what);
}

// All rows at once, two of float32 and two of `type`, or the other way round.
bool check_rows(Problem& p, Element type) {
  const Element wide = Element::f32;
  Elements g(type, p.rows()), x2(wide, p.rows()), u(type, p.rows()), dout(wide, p.rows());
  MixerRowsArgs args;
  args.mixer = p.args();
  args.u = p.u.input(), args.dout = p.dout.input();
  args.g = {g.data(), type}, args.x2 = {x2.data(), wide}, args.u_rows = {u.data(), type};
  args.dout_rows = {dout.data(), wide};
  require(mixer_rows(args, nullptr), "mixer_rows");
  Judge product, other;
  bool same = true;
  p.each([&](int64_t b, int64_t d, int64_t t) {
    const int64_t i = p.row(b, d, t);
    product.see(g[i], p.value(b, d, t) * p.mixed(b, d, t));
    other.see(x2[i], p.mixed(b, p.c.dim + d, t));
    same = same && u[i] == p.u(b, t, d) && dout[i] == p.dout(b, t, d);
  });
  MixerRowsArgs few;
  few.mixer = args.mixer, few.u = args.u;
  Elements again(type, p.rows());
  few.u_rows = {again.data(), type};
  require(mixer_rows(few, nullptr), "mixer_rows of u");
  const bool good = product.good(bound_of(type)) && other.good(bound_of(wide)) && same && again.bytes == u.bytes;
  std::printf("  rows of element %d: v x1 %.1e x2 %.1e, copies %s\n", int(type), product.relative(), other.relative(),
              same ? "exact" : "WRONG");
  return good;
}

bool check_sum(Problem& p, Element type) {
  bool good = true;
  for (const bool gated : {true, false}) {
    Elements y(Element::f32, p.rows()), z(type, p.rows());
    const auto ys = random_floats(p.rows()), zs = random_floats(p.rows());
    for (int64_t i = 0; i < p.rows(); ++i) y.set(i, ys[size_t(i)]), z.set(i, zs[size_t(i)]);
    Tensor out(p.c, p.c.dim, false);
    MixerSumArgs args;
    args.mixer = p.args(), args.out = out.view();
    if (gated) args.y = {y.data(), Element::f32};
    if (!gated || p.c.width % 2) args.z = {z.data(), type};
    require(mixer_sum(args, nullptr), "mixer_sum");
    Judge judge;
    p.each([&](int64_t b, int64_t d, int64_t t) {
      const int64_t i = p.row(b, d, t);
      double exact = args.z.data ? z[i] : 0.0;
      if (gated) exact += p.mixed(b, p.c.dim + d, t) * y[i];
      judge.see(out.values[out.at(b, t, d)], Tensor::real(p.c, b, t) ? exact : 0.0);
    });
    std::printf("  sum of rows of element %d%s: %.1e\n", int(type), gated ? ", gated" : "", judge.relative());
    good = judge.good(bound_of(p.c.element)) && good;
  }
  return good;
}

// What mixer_bwd gives; NaN where it does not write.
struct Gradients {
  Tensor dp;
  std::vector<float> dweight, dbias;

  Gradients(Problem& p, const std::vector<float>& dg, const std::vector<float>& dx2)
      : dp(p.c, 3 * p.c.dim, false), dweight(p.weight.size(), NAN), dbias(p.bias.size(), NAN) {
    MixerBwdArgs args;
    args.mixer = p.args();
    args.dg = dg.data(), args.dx2 = dx2.data(), args.dp = dp.view();
    args.dweight = dweight.data(), args.dbias = dbias.data();
    std::vector<float> partials(size_t(mixer_bwd_scratch(args)), NAN);
    args.partials = partials.data();
    require(mixer_bwd(args, nullptr), "mixer_bwd");
  }
  bool operator==(const Gradients& other) const {
    return dp.values.bytes == other.dp.values.bytes && dweight == other.dweight && dbias == other.dbias;
  }
};

bool check_gradients(Problem& p) {
  const Case& c = p.c;
  const auto dg = random_floats(p.rows()), dx2 = random_floats(p.rows());
  const Gradients got(p, dg, dx2);
  ++m2::emulator::options().seed;  // another order of the threads
  const bool repeats = got == Gradients(p, dg, dx2);
  Judge dp, taps;
  for (int64_t channel = 0; channel < 3 * c.dim; ++channel) {
    const int64_t d = channel % c.dim, which = channel / c.dim;
    Vector sums(size_t(c.width + 1)), terms(sums);
    const auto add = [&](int64_t i, double x) { sums[size_t(i)] += x, terms[size_t(i)] += x * x; };
    for (int64_t b = 0; b < c.batch; ++b) {
      Vector back(static_cast<size_t>(c.seqlen));
      for (int64_t t = 0; t < c.seqlen; ++t) {
        if (!Tensor::real(c, b, t)) continue;
        const double g = dg[size_t(p.row(b, d, t))];
        const double dx = which == 0   ? g * p.mixed(b, 2 * c.dim + d, t)
                          : which == 1 ? double(dx2[size_t(p.row(b, d, t))])
                                       : g * p.mixed(b, d, t);
        add(c.width, dx);
        for (int64_t j = 0; j < c.width; ++j) {
          const int64_t s = t - c.width + 1 + j;
          add(j, dx * p.p(b, s, channel));
          if (s >= 0 && Tensor::real(c, b, s)) back[size_t(s)] += dx * p.weight[size_t(channel * c.width + j)];
        }
      }
      for (int64_t t = 0; t < c.seqlen; ++t) dp.see(got.dp.values[got.dp.at(b, t, channel)], back[size_t(t)]);
    }
    for (int64_t j = 0; j < c.width; ++j)
      taps.see(got.dweight[size_t(channel * c.width + j)], sums[size_t(j)], terms[size_t(j)]);
    taps.see(got.dbias[size_t(channel)], sums[size_t(c.width)], terms[size_t(c.width)]);
  }
  std::printf("  gradients: dp %.1e taps %.1e, %s\n", dp.relative(), taps.relative(),
              repeats ? "the same bits again" : "OTHER BITS in another order");
  return dp.good(bound_of(c.element)) && taps.good(1e-6) && repeats;
}

bool check(const Case& c) {
  Problem p(c);
  std::printf("batch %d dim %d seqlen %d width %d element %d%s%s%s\n", int(c.batch), int(c.dim), int(c.seqlen),
              c.width, int(c.element), c.masked ? " masked" : "", c.gaps ? " gaps" : "", c.bias ? "" : " no bias");
  bool good = check_rows(p, Element::f32) && check_sum(p, Element::f32) && check_gradients(p);
  if (c.element != Element::f32) good = check_rows(p, c.element) && check_sum(p, c.element) && good;
  if (!good) std::puts("FAIL");
  return good;
}

bool report(bool good, const char* what) {
  std::printf("%s  %s\n", good ? "ok  " : "FAIL", what);
  return good;
}

bool check_infinities() {
  Problem p({1, 1, 200, 3, false, Element::bf16, false, false});
  p.p.values.set(p.p.at(0, 100, 0), INFINITY);
  Elements g(Element::f32, p.rows());
  MixerRowsArgs args;
  args.mixer = p.args();
  args.g = {g.data(), Element::f32};
  require(mixer_rows(args, nullptr), "mixer_rows");
  bool good = true;
  for (int64_t t = 0; t < 200; ++t) good = good && std::isfinite(g[t]) == (t < 100 || t > 102);
  return report(good, "an infinity reaches as many positions as there are taps");
}

bool check_limits() {
  Problem p({1, 1, 9, 3, false, Element::bf16});
  Elements x(Element::f16, p.rows());
  MixerRowsArgs args;
  args.mixer = p.args(), args.g = {x.data(), Element::f16};
  bool good = report(mixer_rows(args, nullptr) == cudaErrorInvalidValue, "rows of another 16-bit type are refused");
  MixerBwdArgs back;
  back.mixer = p.args(), back.mixer.width = 1;
  good = report(mixer_bwd(back, nullptr) == cudaErrorInvalidValue, "a window of 1 is refused") && good;
  MixerSumArgs sum;
  sum.mixer = p.args(), sum.mixer.width = 8;
  return report(mixer_sum(sum, nullptr) == cudaErrorInvalidValue, "a window of 8 is refused") && good;
}

}  // namespace

int main() {
  std::setvbuf(stdout, nullptr, _IOLBF, 0);  // lines reach a pipe before a crash
  try {
    bool good = true;
    for (Element element : {Element::f32, Element::f16, Element::bf16})
      for (const Case& c : {Case{2, 32, 64, 3, true}, Case{1, 40, 200, 2, false}, Case{2, 5, 67, 7, true},
                            Case{2, 33, 65, 4, false}, Case{1, 8, 130, 5, true}, Case{9, 3, 72, 6, true}}) {
        Case one = c;
        one.element = element, one.bias = c.width != 2, one.gaps = c.width == 4;
        good = check(one) && good;
      }
    good = check({4, 1, 1, 3, false, Element::bf16}) && good;
    good = check({40, 1, 64, 3, true, Element::f16}) && good;  // tiles for several blocks
    good = check_infinities() && good;
    good = check_limits() && good;
    std::puts(good ? "all checks passed" : "some checks FAILED");
    return good ? 0 : 1;
  } catch (const std::exception& error) {
    std::puts(error.what());
    return 1;
  }
}
