// Twiddle tables on the device. Test: csrc/testing/test_fft_conv_cuda.cpp.
#pragma once
#include <functional>
#include <vector>

#include "common.cuh"
#include "fft_plan.h"

namespace m2::cuda {

// The table of that number on the current device, made and copied there on first use and kept for the life of the process.
// Thread-safe; may be called while a stream is being captured into a graph.
cudaError_t device_table(int number, const std::function<std::vector<float>()>& make, const float** table);

// That of `plan`, whose number is its size.
cudaError_t device_table(const FftPlan& plan, const Complex** table);

}  // namespace m2::cuda
