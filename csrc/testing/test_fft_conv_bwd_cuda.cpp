// fft_conv and filter_spectrum of csrc/cuda with their gradients, short and long, under the emulator against float64
// sums, term by term, of the same rounded inputs; memory ends where tensors end. Prints a line per case and a summary;
// exits with 1 if anything fails.
// Built by csrc/cuda/CMakeLists.txt and by tests/cuda/test_cuda_kernels.py.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <limits>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "../cuda/dft.cuh"
#include "../cuda/element.cuh"
#include "../cuda/fft_conv.h"
#include "../cuda/fft_conv_long.h"
#include "../cuda/fft_conv_mma.h"
#include "../cuda/fft_conv_mma_bwd.h"
#include "judge.h"

namespace {

using namespace m2::cuda;

enum Gates { kNone, kPre, kPost, kBoth };

struct Case {
  int64_t batch, dim, seqlen, fft_size, taps, taps_rev;
  Element element = Element::f32;
  Gates gates = kBoth;
  bool channels_last = false;
  int64_t points = kWorkPoints;  // of a long transform, at a time
  bool skip = true;

  bool pre() const { return gates & kPre; }
  bool post() const { return gates & kPost; }
};

std::mt19937 random_engine(11);

double bound_of(Element element) {  // docs/architecture.md, numerics
  return element == Element::f32 ? 1e-6 : element == Element::f16 ? 1e-3 : 2.5e-3;
}

// A tensor over batch, dim and seqlen of some element type; untouched elements are NaN.
struct Tensor {
  Case shape;
  std::vector<unsigned char> bytes;

  explicit Tensor(const Case& c, bool random = true)
      : shape(c), bytes(size_t(c.batch * c.dim * c.seqlen) * element_bytes(c.element), 0xff) {
    std::normal_distribution<float> normal;
    for (int64_t i = 0; random && i < c.batch * c.dim * c.seqlen; ++i) write(i, normal(random_engine));
  }
  bool narrow() const { return shape.element != Element::f32; }
  void multiply(float factor) {
    for (int64_t i = 0; i < shape.batch * shape.dim * shape.seqlen; ++i) write(i, factor * read(i));
  }
  float read(int64_t i) const {
    return narrow() ? read_element<true>(shape.element, bytes.data(), i)
                    : read_element<false>(shape.element, bytes.data(), i);
  }
  void write(int64_t i, float x) {
    if (narrow()) write_element<true>(shape.element, bytes.data(), i, x);
    else write_element<false>(shape.element, bytes.data(), i, x);
  }
  double at(int64_t b, int64_t d, int64_t t) const {
    return read(b * stride_batch() + d * stride_dim() + t * stride_seq());
  }
  int64_t stride_batch() const { return shape.dim * shape.seqlen; }
  int64_t stride_dim() const { return shape.channels_last ? 1 : shape.seqlen; }
  int64_t stride_seq() const { return shape.channels_last ? shape.dim : 1; }
  AnyStrided<const void> input() const { return {bytes.data(), stride_batch(), stride_dim(), stride_seq()}; }
  AnyStrided<void> output() { return {bytes.data(), stride_batch(), stride_dim(), stride_seq()}; }
};

std::vector<float> random_values(int64_t count, float scale) {
  std::normal_distribution<float> normal(0.0f, scale);
  std::vector<float> out(size_t(std::max<int64_t>(count, 0)));
  for (float& x : out) x = normal(random_engine);
  return out;
}

struct Problem {
  Case shape;
  Tensor u, pre, post, dout, out, du, dpre, dpost;
  std::vector<float> k, k_rev, skip, spectrum, dspectrum, dk, dk_rev, dskip;

  explicit Problem(const Case& c)
      : shape(c), u(c), pre(c), post(c), dout(c), out(c, false), du(c, false), dpre(c, false), dpost(c, false),
        k(random_values(c.dim * c.taps, scale(c))), k_rev(random_values(c.dim * c.taps_rev, scale(c))),
        skip(random_values(c.dim, c.skip ? 1.0f : 0.0f)), spectrum(size_t(c.dim * 2 * c.fft_size), NAN), dspectrum(spectrum),
        dk(k.size(), NAN), dk_rev(k_rev.size(), NAN), dskip(size_t(c.dim), NAN) {}
  static float scale(const Case& c) { return 1.0f / std::sqrt(float(std::min(c.taps, c.seqlen))); }

  FftConvBwdArgs args() {
    FftConvBwdArgs args;
    args.batch = shape.batch, args.dim = shape.dim, args.seqlen = shape.seqlen, args.fft_size = shape.fft_size;
    args.element = shape.element;
    args.dout = dout.input(), args.u = u.input(), args.du = du.output();
    if (shape.pre()) args.pregate = pre.input(), args.dpregate = dpre.output();
    if (shape.post()) args.postgate = post.input(), args.dpostgate = dpost.output();
    args.spectrum = spectrum.data(), args.skip = shape.skip ? skip.data() : nullptr;
    args.dspectrum = dspectrum.data(), args.dskip = dskip.data();
    return args;
  }

  FftConvArgs forward_args() {
    FftConvArgs args;
    args.batch = shape.batch, args.dim = shape.dim, args.seqlen = shape.seqlen, args.fft_size = shape.fft_size;
    args.element = shape.element;
    args.u = u.input(), args.out = out.output();
    if (shape.pre()) args.pregate = pre.input();
    if (shape.post()) args.postgate = post.input();
    args.spectrum = spectrum.data(), args.skip = shape.skip ? skip.data() : nullptr;
    return args;
  }
  FilterSpectrumArgs filter_args() {
    FilterSpectrumArgs filter;
    filter.dim = shape.dim, filter.fft_size = shape.fft_size, filter.spectrum = spectrum.data();
    filter.k = k.data(), filter.taps = filter.stride_k_dim = shape.taps;
    filter.k_rev = shape.taps_rev ? k_rev.data() : nullptr, filter.taps_rev = filter.stride_k_rev_dim = shape.taps_rev;
    return filter;
  }
  FilterSpectrumBwdArgs filter_bwd_args() {
    FilterSpectrumBwdArgs back;
    back.dim = shape.dim, back.fft_size = shape.fft_size, back.dspectrum = dspectrum.data();
    back.dk = dk.data(), back.taps = shape.taps, back.dk_rev = dk_rev.data(), back.taps_rev = shape.taps_rev;
    return back;
  }

  void run() {
    const auto memory = [](int64_t floats) { return std::vector<float>(size_t(floats), NAN); };
    const auto must = [](cudaError_t error, const char* what) {
      if (error != cudaSuccess) throw std::runtime_error(what);
    };
    FftConvBwdArgs conv = args();
    const bool tensor_cores = fft_conv_mma_serves(forward_args()), tensor_cores_bwd = fft_conv_mma_bwd_serves(conv);
    auto forward_scratch = memory(fft_conv_mma_scratch(forward_args()));
    int64_t largest = 0;
    must(max_fft_size(&largest), "max_fft_size");
    if (shape.fft_size > largest) {
      const int64_t points = shape.points;
      must(filter_spectrum_long_fwd(filter_args(), nullptr), "filter_spectrum_long_fwd");
      auto work = memory(fft_conv_long_work(forward_args(), points));
      if (tensor_cores) must(fft_conv_mma_fwd(forward_args(), forward_scratch.data(), nullptr), "fft_conv_mma_fwd");
      else must(fft_conv_long_fwd(forward_args(), work.data(), nullptr, nullptr, points), "fft_conv_long_fwd");
      work = memory(fft_conv_long_bwd_work(conv, points));
      must(fft_conv_long_bwd(conv, work.data(), nullptr, nullptr, points), "fft_conv_long_bwd");
      work = memory(filter_spectrum_long_bwd_work(shape.dim, shape.fft_size, points));
      must(filter_spectrum_long_bwd(filter_bwd_args(), work.data(), nullptr, nullptr, points), "filter_spectrum_long_bwd");
      return;
    }
    must(filter_spectrum_fwd(filter_args(), nullptr), "filter_spectrum_fwd");
    if (tensor_cores) must(fft_conv_mma_fwd(forward_args(), forward_scratch.data(), nullptr), "fft_conv_mma_fwd");
    else must(fft_conv_fwd(forward_args(), nullptr), "fft_conv_fwd");
    auto scratch = memory(tensor_cores_bwd ? fft_conv_mma_bwd_scratch(conv) : fft_conv_bwd_scratch(conv));
    conv.scratch = scratch.data();
    must((tensor_cores_bwd ? fft_conv_mma_bwd : fft_conv_bwd)(conv, nullptr, nullptr), "fft_conv_bwd");
    must(filter_spectrum_bwd(filter_bwd_args(), nullptr), "filter_spectrum_bwd");
  }
};

struct Judges {
  Judge out, du, dpre, dpost, dk, dk_rev, dskip;
};

// One row: its exact gradients of input and gates; its share of the filter's is added to the sums.
void judge_row(const Problem& p, int64_t b, int64_t d, std::vector<double>& dk, std::vector<double>& dk_rev, double& dskip,
               double& dskip_terms, Judges& judges) {
  const int64_t n = p.shape.seqlen;
  std::vector<double> g(static_cast<size_t>(n)), gy(g);
  for (int64_t t = 0; t < n; ++t) {
    g[size_t(t)] = p.u.at(b, d, t) * (p.shape.pre() ? p.pre.at(b, d, t) : 1.0);
    gy[size_t(t)] = p.dout.at(b, d, t) * (p.shape.post() ? p.post.at(b, d, t) : 1.0);
    dskip += g[size_t(t)] * gy[size_t(t)];
    dskip_terms += std::pow(g[size_t(t)] * gy[size_t(t)], 2);
  }
  std::vector<double> y(g), v(gy);
  for (double& x : y) x *= p.skip[size_t(d)];
  for (double& x : v) x *= p.skip[size_t(d)];
  const auto tap = [&](int64_t t, int64_t s, double h, double& dh) {
    y[size_t(t)] += h * g[size_t(s)];
    v[size_t(s)] += h * gy[size_t(t)];
    dh += gy[size_t(t)] * g[size_t(s)];
  };
  for (int64_t m = 0; m < std::min(n, p.shape.taps); ++m)
    for (int64_t t = m; t < n; ++t) tap(t, t - m, p.k[size_t(d * p.shape.taps + m)], dk[size_t(m)]);
  for (int64_t j = 0; j < std::min(n - 1, p.shape.taps_rev); ++j)
    for (int64_t t = 0; t + j + 1 < n; ++t)
      tap(t, t + j + 1, p.k_rev[size_t(d * p.shape.taps_rev + j)], dk_rev[size_t(j)]);
  for (int64_t t = 0; t < n; ++t) {
    judges.du.see(p.du.at(b, d, t), v[size_t(t)] * (p.shape.pre() ? p.pre.at(b, d, t) : 1.0));
    judges.out.see(p.out.at(b, d, t), y[size_t(t)] * (p.shape.post() ? p.post.at(b, d, t) : 1.0));
    if (p.shape.pre()) judges.dpre.see(p.dpre.at(b, d, t), v[size_t(t)] * p.u.at(b, d, t));
    if (p.shape.post()) judges.dpost.see(p.dpost.at(b, d, t), y[size_t(t)] * p.dout.at(b, d, t));
  }
}

// The kernels' results for a problem against the exact ones.
bool check(Problem& p) {
  const Case& c = p.shape;
  p.run();
  Judges judges;
  for (int64_t d = 0; d < c.dim; ++d) {
    std::vector<double> dk(size_t(c.taps)), dk_rev(size_t(c.taps_rev));
    double dskip = 0, dskip_terms = 0;
    for (int64_t b = 0; b < c.batch; ++b) judge_row(p, b, d, dk, dk_rev, dskip, dskip_terms, judges);
    for (int64_t m = 0; m < c.taps; ++m) judges.dk.see(p.dk[size_t(d * c.taps + m)], dk[size_t(m)]);
    for (int64_t j = 0; j < c.taps_rev; ++j) judges.dk_rev.see(p.dk_rev[size_t(d * c.taps_rev + j)], dk_rev[size_t(j)]);
    judges.dskip.see(p.dskip[size_t(d)], dskip, dskip_terms);
  }
  // Sums over batch and positions stay in float32; of what is transformed in float16, those of the filter are as good as that.
  const double bound = bound_of(c.element), taps = fft_conv_mma_bwd_serves(p.args()) ? 1e-3 : 1e-6;
  bool good = judges.out.good(bound) && judges.du.good(bound) && judges.dk.good(taps) && judges.dskip.good(1e-6);
  if (c.pre()) good = good && judges.dpre.good(bound);
  if (c.post()) good = good && judges.dpost.good(bound);
  if (c.taps_rev && c.seqlen > 1) good = good && judges.dk_rev.good(taps);
  const auto error = [](const Judge& j) { return j.norm > 0 ? std::sqrt(j.error / j.norm) : 0.0; };
  const char* names[] = {"", " pregate", " postgate", " gated"};
  std::printf("%s  batch %d dim %d seqlen %d fft_size %d taps %d + %d%s%s%s element %d: out %.1e du %.1e dpre %.1e dpost %.1e dk %.1e "
              "dk_rev %.1e dskip %.1e\n",
              good ? "ok  " : "FAIL", int(c.batch), int(c.dim), int(c.seqlen), int(c.fft_size), int(c.taps),
              int(c.taps_rev), names[c.gates], c.skip ? "" : " no skip", c.channels_last ? " channels-last" : "", int(c.element),
              error(judges.out), error(judges.du), error(judges.dpre), error(judges.dpost), error(judges.dk), error(judges.dk_rev),
              error(judges.dskip));
  return good;
}

bool check(const Case& c) {
  Problem p(c);
  return check(p);
}

bool report(bool good, const char* what) {
  std::printf("%s  %s\n", good ? "ok  " : "FAIL", what);
  return good;
}

bool check_determinism() {
  bool same = true;
  for (Element element : {Element::f32, Element::bf16})
    for (const Case& c : {Case{9, 2, 300, 512, 300, 299, element}, Case{1, 1, 5000, 8192, 9, 9, element}}) {
      Problem p(c);
      p.run();
      const Problem first = p;
      m2::emulator::options().seed = 99;
      p.run();
      m2::emulator::options() = {};
      same = same && first.du.bytes == p.du.bytes && first.dpre.bytes == p.dpre.bytes &&
             first.dpost.bytes == p.dpost.bytes && first.dk == p.dk && first.dk_rev == p.dk_rev &&
             first.dskip == p.dskip && first.dspectrum == p.dspectrum;
    }
  return report(same, "same bits whatever the order of the threads");
}

// Rows, products with gates and spectra that float16 does not hold, whose gradients the tensors' type does; of two batch
// entries one is small.
bool check_range() {
  struct Scales {
    Element element;
    float u, pre, post, dout, k;
  };
  bool good = true;
  for (const Scales& s : {Scales{Element::bf16, 1e20f, 1, 1, 1e-10f, 1}, Scales{Element::bf16, 1e-20f, 1, 1e10f, 1e5f, 1},
                          Scales{Element::bf16, 1e5f, 1e5f, 1e5f, 1e5f, 1e-15f}, Scales{Element::f16, 1e3f, 1e3f, 1, 1, 1e-5f},
                          Scales{Element::f16, 1, 1, 1e3f, 1e3f, 1e-5f}, Scales{Element::f16, 1e-1f, 1e-1f, 1e-1f, 1e-1f, 1e5f}}) {
    Problem p({2, 1, 500, 512, 500, 499, s.element});
    p.u.multiply(s.u), p.pre.multiply(s.pre), p.post.multiply(s.post), p.dout.multiply(s.dout);
    for (float& x : p.k) x *= s.k;
    for (float& x : p.k_rev) x *= s.k;
    for (float& x : p.skip) x *= s.k;
    for (int64_t t = 0; t < 500; ++t) p.u.write(t, 0.01f * p.u.read(t)), p.dout.write(t, 0.01f * p.dout.read(t));
    good = check(p) && good;
  }
  // All energy in few frequencies, sums as large as can be: y[t] = 100 u (t + 1), and the same backwards for the rest.
  for (int64_t size = 256; size <= 16384; size *= 2) {
    Problem p({1, 1, size, size, size, 0, Element::bf16, kNone, false, kWorkPoints, false});
    for (int64_t t = 0; t < size; ++t) p.u.write(t, 60000.0f), p.dout.write(t, 60000.0f), p.k[size_t(t)] = 100.0f;
    p.run();
    Judge du, dk;
    const double x = p.u.read(0);
    for (int64_t t = 0; t < size; ++t) {
      du.see(p.du.read(t), 100.0 * x * double(size - t));
      dk.see(p.dk[size_t(t)], x * x * double(size - t));
    }
    good = report(du.good(2.5e-3) && dk.good(1e-3), "equal values, whose sums are the largest possible") && good;
  }
  return good;
}

// Zeros, infinities and NaN of 16-bit rows: what is not finite shows where it should and nowhere else.
bool check_specials() {
  bool good = true;
  const auto count = [](const Tensor& x, int64_t b, const auto& is) {
    int64_t found = 0;
    for (int64_t t = 0; t < x.shape.seqlen; ++t) found += is(x.at(b, 0, t));
    return found;
  };
  const auto finite = [](double x) { return std::isfinite(x); };
  for (const float bad : {INFINITY, NAN})
    for (const bool of_dout : {false, true}) {
      Problem p({3, 1, 300, 512, 300, 299, Element::bf16});
      for (int64_t t = 0; t < 300; ++t) p.u.write(t, 0.0f), p.dout.write(t, 0.0f);
      (of_dout ? p.dout : p.u).write(300 + 17, bad);  // of the second batch entry
      p.run();
      bool as_wanted = true;
      for (const Tensor* x : {&p.du, &p.dpre, &p.dpost}) {
        const auto zero = [](double value) { return value == 0.0; };
        const bool whole = (x == &p.dpost) != of_dout;  // all of the row comes from it, else one position
        as_wanted = as_wanted && count(*x, 0, zero) == 300 && count(*x, 2, finite) == 300;
        if (whole) as_wanted = as_wanted && count(*x, 1, finite) == 0;
        else as_wanted = as_wanted && count(*x, 1, finite) == (x == &p.du ? 300 : 299);
      }
      for (const auto* x : {&p.dk, &p.dk_rev, &p.dskip})
        for (const float value : *x) as_wanted = as_wanted && !std::isfinite(value);
      good = report(as_wanted, "a value that is not finite shows in its own row and in the sums") && good;
    }
  return good;
}

// The least shared memory that GPUs have: one and two passes through global memory, several chunks of rows.
bool check_long() {
  m2::emulator::options().shared_bytes_per_block = 99 * 1024;
  bool good = true;
  LongFftPlan plan;
  good = report(find_long_plan(16384, &plan) == cudaSuccess && plan.passes == 1 && plan.row == 1024 &&
                    find_long_plan(262144, &plan) == cudaSuccess && plan.passes == 2 && plan.row == 1024,
                "99 KB a block: 16,384 points in one pass and 262,144 in two, rows of 1,024");
  good = report(find_long_plan(8192, &plan) != cudaSuccess && find_long_plan(3 << 14, &plan) != cudaSuccess,
                "no rows below 1,024 points, no sizes but powers of two") && good;
  for (const Case& c : {Case{1, 1, 16384, 16384, 700, 600}, Case{1, 2, 9000, 16384, 70, 0, Element::f32, kNone},
                        Case{1, 2, 10001, 16384, 100, 99, Element::bf16, kBoth, true},
                        Case{1, 1, 300, 16384, 17000, 16500, Element::f16},  // more taps than lags
                        Case{3, 2, 16384, 16384, 30, 20, Element::f32, kBoth, true, 2 * 16384},
                        Case{3, 1, 16384, 16384, 30, 20, Element::f32, kBoth, false, 2 * 16384},
                        Case{1, 1, 170000, 262144, 30, 20, Element::bf16}})
    good = check(c) && good;
  m2::emulator::options() = {};
  good = report(find_long_plan(32768, &plan) == cudaSuccess && plan.passes == 1 && plan.row == 2048 &&
                    find_long_plan(1 << 22, &plan) == cudaSuccess && plan.passes == 3 && plan.row == 1024,
                "227 KB a block: 32,768 points in one pass and 4,194,304 in three") && good;
  return check({1, 1, 32768, 32768, 40, 30}) && good;
}

// Every size of transform that shared memory holds and every size of rows of longer ones, in every type of elements, both
// layouts in turn.
bool check_sizes() {
  bool good = true;
  for (Element element : {Element::f32, Element::f16, Element::bf16}) {
    bool last = element == Element::f16;
    for (int64_t size = 256; size <= 131072; size *= 2, last = !last) {
      const int64_t batch = size <= 4096 ? 2 : 1;
      good = check({batch, 1, size - (last ? 3 : 0), size, 40, 30, element, kBoth, last}) && good;
    }
  }
  return check({1, 1, 262144, 262144, 20, 10}) && good;
}

// Gates, skip and direction in every combination for each kind of kernel and type of elements.
bool check_choices() {
  bool good = true;
  for (Element element : {Element::f32, Element::f16, Element::bf16})
    for (int choice = 0; choice < 16; ++choice) {
      const Gates gates = Gates(choice % 4);
      const bool skip = choice & 4, reverse = choice & 8;
      for (bool last : {false, true})
        good = check({2, 2, 130, 256, 130, reverse ? 129 : 0, element, gates, last, kWorkPoints, skip}) && good;
      if (skip == reverse) continue;  // half of them, of longer sequences
      m2::emulator::options().shared_bytes_per_block = 99 * 1024;
      for (int64_t size : {8192, 16384})
        good = check({1, 1, 5000, size, 30, reverse ? 20 : 0, element, gates, skip, kWorkPoints, skip}) && good;
      m2::emulator::options() = {};
    }
  return good;
}

// No batch entries: the gradients of filter and skip are zeros.
bool check_empty() {
  Problem p({0, 1, 40, 512, 9, 9, Element::bf16});
  p.run();
  const auto zeros = [](const std::vector<float>& x) { return std::all_of(x.begin(), x.end(), [](float y) { return y == 0; }); };
  return report(zeros(p.dspectrum) && zeros(p.dk) && zeros(p.dk_rev) && zeros(p.dskip), "of no batch entries, zeros");
}

bool check_limits() {
  Problem p({1, 1, 300, 512, 300, 0});
  FftConvBwdArgs args = p.args();
  args.fft_size = 256;
  bool good = report(fft_conv_bwd(args, nullptr) == cudaErrorInvalidValue, "a sequence longer than the transform is refused");
  args.fft_size = 600;
  good = report(fft_conv_bwd(args, nullptr) == cudaErrorInvalidValue, "a size that is no power of two is refused") && good;
  args.fft_size = 512;
  args.batch = int64_t(1) << 40;
  good = report(fft_conv_bwd(args, nullptr) == cudaErrorInvalidValue, "more rows than a grid has blocks are refused") && good;
  args = p.args();
  good = report(!fft_conv_mma_bwd_serves(args) && fft_conv_mma_bwd(args, nullptr) == cudaErrorInvalidValue,
                "tensor cores refuse float32") && good;
  args.element = Element::f16;
  good = report(fft_conv_bwd(args, nullptr) == cudaErrorInvalidValue && fft_conv_mma_bwd_serves(args),
                "16 bits are for tensor cores") && good;
  args.seqlen = 513;
  good = report(fft_conv_mma_bwd(args, nullptr) == cudaErrorInvalidValue, "nor do they take too long a sequence") && good;
  const auto serves = [&](int64_t size, size_t kilobytes) {
    m2::emulator::options().shared_bytes_per_block = kilobytes * 1024;
    args.fft_size = size;
    const bool answer = fft_conv_mma_bwd_serves(args);
    m2::emulator::options() = {};
    return answer;
  };
  good = report(serves(16384, 163) && !serves(16384, 99) && serves(8192, 99) && !serves(32768, 227),
                "16,384 points with 163 KB a block, 8,192 with 99 KB") && good;
  return good;
}

}  // namespace

int main() {
  std::setvbuf(stdout, nullptr, _IOLBF, 0);  // lines reach a pipe before a crash
  bool good = true;
  try {
    good = check_empty();
    for (const Case& c : {
             // Blocks that walk over several rows or slabs, whole and not, and parts of a batch; with and without 8 at a time.
             Case{5, 2, 1001, 1024, 1001, 999, Element::bf16, kNone}, Case{8, 1, 600, 8192, 20, 10, Element::bf16},
             Case{9, 2, 129, 256, 129, 128, Element::f16}, Case{8, 1, 40, 4096, 9, 9, Element::f16},
             Case{2, 3, 129, 256, 129, 128, Element::bf16, kBoth, true}, Case{1, 2, 1025, 2048, 1025, 9, Element::f16},
             Case{1, 1, 1, 256, 1, 1}, Case{2, 3, 2, 256, 2, 2}, Case{2, 2, 63, 256, 63, 62, Element::f32, kNone},
             Case{9, 3, 129, 256, 129, 128}, Case{2, 2, 256, 256, 256, 255}, Case{8, 1, 257, 512, 257, 256},
             Case{3, 2, 1000, 1024, 1000, 999}, Case{2, 1, 2048, 2048, 2048, 2047}, Case{2, 1, 4096, 4096, 700, 300},
             Case{9, 1, 4097, 8192, 100, 99}, Case{1, 1, 16384, 16384, 100, 50}, Case{2, 2, 300, 512, 7, 2},
             Case{2, 2, 200, 256, 500, 600},  // more taps than lags
             Case{2, 3, 129, 256, 129, 128, Element::f32, kBoth, true}})
      good = check(c) && good;
    good = check_determinism() && good;
    good = check_range() && good;
    good = check_specials() && good;
    good = check_long() && good;
    good = check_sizes() && good;
    good = check_choices() && good;
    good = check_limits() && good;
  } catch (const std::exception& error) {
    good = report(false, error.what());
  }
  std::puts(good ? "all checks passed" : "some checks FAILED");
  return !good;
}
