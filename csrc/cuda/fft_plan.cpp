#include "fft_plan.h"

#include <cmath>

namespace m2::cuda {

const FftPlan* find_fft_plan(int64_t size) {
  for (const FftPlan& plan : kFftPlans)
    if (plan.size == size) return &plan;
  return nullptr;
}

std::vector<float> fft_table(const FftPlan& plan) {
  constexpr double kPi = 3.14159265358979323846;
  std::vector<float> table;
  table.reserve(2 * size_t(plan.table_entries()));
  for (int pass = 0; pass + 1 < plan.passes; ++pass) {
    const int length = plan.length(pass), step = plan.step(pass);
    for (int q = 0; q < plan.radix[pass]; ++q)
      for (int j = 0; j < step; ++j) {
        const double quarter_turns = -double(4 * int64_t(q) * j - (pass == 0 ? j : 0)) / length;
        table.push_back(float(std::cos(kPi / 2 * quarter_turns)));
        table.push_back(float(std::sin(kPi / 2 * quarter_turns)));
      }
  }
  return table;
}

}  // namespace m2::cuda
