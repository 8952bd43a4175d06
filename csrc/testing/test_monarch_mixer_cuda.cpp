// monarch_mixer of csrc/cuda under the emulator against float64 sums, term by term; memory ends where tensors end.
// Prints a line per case and a summary; exits with 1 if anything fails.
// Built by csrc/cuda/CMakeLists.txt and by tests/test_cuda_kernels.py.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <vector>

#include "monarch_mixer_problem.h"

namespace {

using namespace m2::cuda;
using namespace m2::cuda::mixer_test;

bool check(const Case& c) {
  const int64_t n = c.seqlen, dim = c.dim;
  const Problem p(c);
  Activations out(c.element, c.batch * n * dim);
  MonarchMixerArgs args = p.args();
  args.out = {out.bytes.data(), n * dim, 1, dim};
  if (monarch_mixer_fwd(args, nullptr) != cudaSuccess) return false;

  double error = 0.0, off = 0.0, norm = 0.0;
  for (int64_t b = 0; b < c.batch; ++b)
    for (int64_t d = 0; d < dim; ++d) {
      std::vector<double> g(static_cast<size_t>(n)), other(static_cast<size_t>(n));
      for (int64_t t = 0; t < n; ++t) {
        g[size_t(t)] = p.real(b, t) ? p.mixed(b, d, t) * p.mixed(b, 2 * dim + d, t) : 0.0;
        other[size_t(t)] = p.real(b, t) ? p.u[p.at(b, t) * dim + d] : 0.0;
      }
      const auto y = p.convolve(0, d, g), z = p.convolve(1, d, other);
      for (int64_t t = 0; t < n; ++t) {
        const double got = out[p.at(b, t) * dim + d];
        const double sum = y[size_t(t)] * p.mixed(b, dim + d, t) + (c.residual ? z[size_t(t)] : 0.0);
        const double exact = p.real(b, t) ? sum : 0.0;
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
