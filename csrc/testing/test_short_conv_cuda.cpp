// short_conv of csrc/cuda under the emulator, forward and backward, against float64 sums over the same rounded inputs.
// Prints a line per case and a summary; exits with 1 if anything fails.
// Built by csrc/cuda/CMakeLists.txt and by tests/cuda/test_cuda_kernels.py.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <vector>

#include "../cuda/element.cuh"
#include "../cuda/short_conv.h"

namespace {

using namespace m2::cuda;

struct Case {
  int64_t batch, dim, seqlen;
  int width;
  bool channels_last = false, padded = false;  // padded: gaps, nothing aligned
  bool bias = true;
};

std::mt19937 random_engine(7);

// A strided (batch, dim, seqlen) tensor; what lies between its elements is NaN. Ends where its memory ends.
template <class T>
struct Tensor {
  AnyStrided<void> view;
  std::unique_ptr<T, void (*)(void*)> memory{nullptr, &std::free};
  const Case& c;

  Tensor(const Case& shape, bool random) : c(shape) {
    const int64_t inner = c.padded ? 2 : 1;
    view.stride_seq = c.channels_last ? inner * c.dim : inner;
    view.stride_dim = c.channels_last ? inner : inner * c.seqlen;
    view.stride_batch = inner * c.dim * c.seqlen;
    const size_t count = size_t(view.stride_batch * c.batch);
    memory.reset(static_cast<T*>(std::malloc(count * sizeof(T) + 1)));
    view.data = memory.get();
    for (size_t i = 0; i < count; ++i) memory.get()[i] = from_float<T>(NAN);
    std::normal_distribution<float> normal;
    for (int64_t i = 0; random && i < c.batch * c.dim * c.seqlen; ++i)
      *at(i / c.seqlen / c.dim, i / c.seqlen % c.dim, i % c.seqlen) = from_float<T>(normal(random_engine));
  }
  T* at(int64_t b, int64_t d, int64_t t) const {
    return memory.get() + b * view.stride_batch + d * view.stride_dim + t * view.stride_seq;
  }
  double value(int64_t b, int64_t d, int64_t t) const { return t < 0 || t >= c.seqlen ? 0.0 : to_float(*at(b, d, t)); }
  AnyStrided<const void> input() const { return {view.data, view.stride_batch, view.stride_dim, view.stride_seq}; }
};

// Relative L2 distance; also that of zeros and of a result moved by one place, which must be far off.
struct Distance {
  double error = 0.0, shifted = 0.0, norm = 0.0, last = 0.0;
  void add(double got, double exact) {
    error += (got - exact) * (got - exact);
    shifted += (last - exact) * (last - exact);
    norm += exact * exact;
    last = got;
  }
  bool passes(double tolerance) const { return std::sqrt(error / norm) <= tolerance; }
  bool rejects_shifted(double tolerance) const { return std::sqrt(shifted / norm) > tolerance; }
};

template <class T>
bool check(const Case& c, const char* type, Element element, double tolerance) {
  const Tensor<T> x(c, true), dout(c, true), out(c, false), dx(c, false);
  std::normal_distribution<float> normal;
  std::vector<float> weight(size_t(c.dim * c.width)), bias(size_t(c.dim), 0.0f);
  for (float& w : weight) w = normal(random_engine);
  for (float& w : bias) w = c.bias ? normal(random_engine) : 0.0f;

  ShortConvArgs forward{element, c.batch, c.dim, c.seqlen, c.width, x.input(), weight.data(),
                       c.bias ? bias.data() : nullptr, out.view};
  ShortConvBwdArgs backward{element,      c.batch,   c.dim,         c.seqlen, c.width,
                            dout.input(), x.input(), weight.data(), dx.view};
  std::vector<float> dweight(weight.size(), NAN), dbias(bias.size(), NAN);
  std::vector<float> partials(size_t(short_conv_bwd_scratch(backward)), NAN);
  backward.dweight = dweight.data(), backward.dbias = dbias.data(), backward.partials = partials.data();
  if (short_conv_fwd(forward, nullptr) != cudaSuccess || short_conv_bwd(backward, nullptr) != cudaSuccess) return false;
  const std::vector<float> first = dweight;
  ++m2::emulator::options().seed;  // another order of the threads
  if (short_conv_bwd(backward, nullptr) != cudaSuccess) return false;

  Distance y, gx, gw, gb;
  for (int64_t d = 0; d < c.dim; ++d) {
    std::vector<double> taps(size_t(c.width), 0.0);
    double offset = 0.0;
    for (int64_t b = 0; b < c.batch; ++b)
      for (int64_t t = 0; t < c.seqlen; ++t) {
        double sum = bias[size_t(d)], back = 0.0;
        for (int j = 0; j < c.width; ++j) {
          const double w = weight[size_t(d * c.width + j)];
          sum += w * x.value(b, d, t - c.width + 1 + j);
          back += w * dout.value(b, d, t + c.width - 1 - j);
          taps[size_t(j)] += dout.value(b, d, t) * x.value(b, d, t - c.width + 1 + j);
        }
        offset += dout.value(b, d, t);
        y.add(out.value(b, d, t), sum);
        gx.add(dx.value(b, d, t), back);
      }
    for (int j = 0; j < c.width; ++j) gw.add(dweight[size_t(d * c.width + j)], taps[size_t(j)]);
    gb.add(dbias[size_t(d)], offset);
  }
  constexpr double kSums = 1e-6;  // of the gradients of the weights, float32 in every case
  bool good = first == dweight && y.passes(tolerance) && gx.passes(tolerance) && gw.passes(kSums) && gb.passes(kSums);
  good = good && y.rejects_shifted(tolerance) && gx.rejects_shifted(tolerance) && gw.rejects_shifted(kSums);
  std::printf("%s %s batch %d dim %d seqlen %d width %d%s%s: %.1e %.1e %.1e %.1e\n", good ? "pass" : "FAIL", type,
              int(c.batch), int(c.dim), int(c.seqlen), c.width, c.channels_last ? " channels-last" : "",
              c.padded ? " strided" : "", std::sqrt(y.error / y.norm), std::sqrt(gx.error / gx.norm),
              std::sqrt(gw.error / gw.norm), std::sqrt(gb.error / gb.norm));
  return good;
}

}  // namespace

int main() {
  std::vector<Case> cases = {{4, 99, 1, 2},          {2, 3, 7, 3},           {1, 2, 8, 4, true},
                        {2, 3, 129, 5},         {2, 40, 63, 6, true},   {3, 2, 1000, 7},
                        {1, 5, 20000, 3},       {2, 33, 300, 3, true},  {2, 3, 65, 4, false, true},
                        {2, 3, 65, 7, true, true}};
  for (int width = 2; width <= 7; ++width)
    for (const bool last : {false, true})
      for (const bool padded : {false, true}) cases.push_back({2, 5, 48, width, last, padded, width % 2 == 0});
  bool good = true;
  for (const Case& c : cases) {
    good = check<float>(c, "float32 ", Element::f32, 1e-6) && good;
    good = check<Half>(c, "float16 ", Element::f16, 1e-3) && good;
    good = check<Bfloat>(c, "bfloat16", Element::bf16, 2.5e-3) && good;
  }
  std::puts(good ? "all checks passed" : "some checks FAILED");
  return good ? 0 : 1;
}
