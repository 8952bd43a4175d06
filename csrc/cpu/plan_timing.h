// How long a convolution takes under a plan, for the search over plans (m2ops/_plans.py). Test: tests/ops/test_plan.py.
#pragma once
#include "../plan/fft_plan.h"

namespace m2 {

// Seconds of one float32 convolution with both gates, one thread, the row of kernels in use; signals and spectra come from
// memory, as in a batch of one.
double time_convolution(const FftPlan&);

}  // namespace m2
