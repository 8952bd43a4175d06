// blockdiag_glu of csrc/cuda under the emulator against float64 sums over the same rounded inputs.
// Prints a line per case and a summary; exits with 1 if anything fails.
// Built by csrc/cuda/CMakeLists.txt and by tests/cuda/test_cuda_kernels.py.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <memory>
#include <random>
#include <vector>

#include "../cuda/blockdiag_glu.h"
#include "../cuda/element.cuh"

namespace {

using namespace m2::cuda;

struct Case {
  int64_t tokens;
  int blocks_in, in, blocks_out, out, inner;
  bool bias;
};

std::mt19937 random_engine(7);

// `count` random elements that end where their memory ends.
template <class T>
struct Buffer {
  std::unique_ptr<T, void (*)(void*)> memory{nullptr, &std::free};
  explicit Buffer(size_t count, float scale) : memory(static_cast<T*>(std::malloc(count * sizeof(T))), &std::free) {
    std::normal_distribution<float> normal(0.0f, scale);
    for (size_t i = 0; i < count; ++i) memory.get()[i] = from_float<T>(scale > 0 ? normal(random_engine) : NAN);
  }
  double operator[](int64_t i) const { return to_float(memory.get()[i]); }
};

template <class T>
bool check(const Case& c, const char* type, Element element, double tolerance) {
  const int64_t hidden = int64_t(c.blocks_out) * c.inner, dim = int64_t(c.blocks_in) * c.in, stride = dim + 8;
  const int64_t rows_in = 2 * hidden / c.blocks_in, width = int64_t(c.blocks_out) * c.out;
  const Buffer<T> x(size_t(c.tokens * stride), 1.0f), w_in(size_t(2 * hidden * c.in), 0.3f);
  const Buffer<T> w_out(size_t(width * c.inner), 0.3f), bias(size_t(width), 1.0f);
  const Buffer<T> result(size_t(c.tokens * width), 0.0f);
  BlockdiagGluArgs args;
  args.element = element, args.tokens = c.tokens;
  args.blocks_in = c.blocks_in, args.rows_in = int(rows_in), args.in = c.in;
  args.blocks_out = c.blocks_out, args.out = c.out, args.inner = c.inner;
  args.stride_x = stride;
  args.x = x.memory.get(), args.w_in = w_in.memory.get(), args.w_out = w_out.memory.get();
  args.bias = c.bias ? bias.memory.get() : nullptr;
  args.result = result.memory.get();
  LaunchShape shape;
  if (blockdiag_glu_fwd(args, nullptr, &shape) != cudaSuccess) return false;

  double error = 0.0, halved = 0.0, norm = 0.0;
  std::vector<double> h(size_t(2 * hidden), 0.0);
  for (int64_t token = 0; token < c.tokens; ++token) {
    for (int64_t i = 0; i < 2 * hidden; ++i) {
      h[size_t(i)] = 0.0;
      for (int64_t k = 0; k < c.in; ++k)
        h[size_t(i)] += x[token * stride + i / rows_in * c.in + k] * w_in[i * c.in + k];
    }
    for (int64_t i = 0; i < hidden; ++i)
      h[size_t(i)] = 0.5 * h[size_t(i)] * (1.0 + std::erf(h[size_t(i)] / std::sqrt(2.0))) * h[size_t(hidden + i)];
    for (int64_t o = 0; o < width; ++o) {
      double exact = c.bias ? bias[o] : 0.0;
      for (int64_t k = 0; k < c.inner; ++k) exact += h[size_t(o / c.out * c.inner + k)] * w_out[o * c.inner + k];
      const double got = result[token * width + o];
      error += (got - exact) * (got - exact);
      halved += (0.98 * got - exact) * (0.98 * got - exact);
      norm += exact * exact;
    }
  }
  error = std::sqrt(error / norm);
  const bool good = error <= tolerance && std::sqrt(halved / norm) > tolerance;
  std::printf("%s %s tokens %d: %d x %d -> %d x %d -> %d x %d%s, %d threads: %.1e\n", good ? "pass" : "FAIL", type,
              int(c.tokens), c.blocks_in, c.in, c.blocks_out, c.inner, c.blocks_out, c.out, c.bias ? " bias" : "",
              shape.threads, error);
  return good;
}

int run() {
  const Case cases[] = {{1, 1, 16, 1, 8, 32, false},      {37, 4, 32, 4, 40, 64, true},  {130, 2, 48, 2, 72, 32, true},
                        {17, 4, 192, 4, 192, 32, true},
                        {20, 4, 240, 4, 240, 64, false}, {33, 1, 64, 2, 64, 96, true},
                        {70, 2, 128, 2, 128, 64, false}, {18, 1, 256, 1, 256, 32, true}};
  bool good = true;
  for (const size_t shared : {227, 163, 99}) {  // other numbers of threads; in 99 KB at most 128 channels and 128 outputs
    m2::emulator::options().shared_bytes_per_block = shared * 1024;
    random_engine.seed(7);  // the same values
    for (const Case& c : cases) {
      if (shared == 99 && c.in > 128) continue;
      good = check<Half>(c, "float16 ", Element::f16, 1e-3) && good;
      good = check<Bfloat>(c, "bfloat16", Element::bf16, 2.5e-3) && good;
    }
  }
  BlockdiagGluArgs wide;  // M2-BERT of dim 1536: 384 channels a block
  wide.tokens = 1, wide.blocks_in = 4, wide.rows_in = 3072, wide.in = 384, wide.blocks_out = 4, wide.out = 384;
  wide.inner = 1536, wide.stride_x = 1536;
  bool serves = true;
  good = blockdiag_glu_serves(wide, &serves) == cudaSuccess && !serves && good;
  good = blockdiag_glu_fwd(wide, nullptr) == cudaErrorInvalidValue && good;
  std::puts(good ? "all checks passed" : "some checks FAILED");
  return good ? 0 : 1;
}

}  // namespace

int main() {
  try {
    return run();
  } catch (const std::exception& error) {
    std::puts(error.what());
    return 1;
  }
}
