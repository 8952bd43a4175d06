#include "plan_timing.h"

#include <algorithm>
#include <chrono>
#include <vector>

#include "isa.h"
#include "kernels.h"

namespace m2 {

double time_convolution(const FftPlan& plan) {
  constexpr int64_t kPoints = int64_t{1} << 19;  // 14 MB of signals, gates and spectra: more than a core's L2 holds
  const int64_t size = plan.size, rows = std::max<int64_t>(kPoints / size, 1);
  const auto tables = make_fft_tables<float>(plan);
  std::vector<float> signals(4 * rows * size, 1.0f), spectra(2 * rows * size, 1.0f / float(size));
  std::vector<float> work(2 * size), scratch(plan.scratch_elements());
  const auto& kernel = fft_kernels<float>();
  float *u = signals.data(), *pre = u + rows * size, *post = pre + rows * size, *out = post + rows * size;
  const auto convolve = [&](int64_t row) {
    const int64_t at = row * size, next = std::min(row + 1, rows - 1) * size;
    kernel.convolve_signal(*tables, Dtype::f32, {u + at, pre + at, size}, spectra.data() + 2 * at, 0.5f,
                           {{out + at, nullptr}, {post + at, nullptr}, size},
                           {{out + at, post + at, u + next, pre + next}}, work.data(), scratch.data());
  };
  convolve(0);
  const auto start = std::chrono::steady_clock::now();
  for (int64_t row = 0; row < rows; ++row) convolve(row);
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() / double(rows);
}

}  // namespace m2
