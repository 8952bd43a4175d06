// The taps of a short convolution as threads hold them, for short_conv.cu and the mixer.
#pragma once
#include "common.cuh"
#include "short_conv.h"

namespace m2::cuda {

constexpr int kPast = kMaxShortWidth - 1;
constexpr int kShortSums = kMaxShortWidth + 1;  // gradients of a channel: taps, bias

// taps[7 - width + j] = weight[d][j]; the others stay 0 and unused.
__device__ __forceinline__ void load_taps(const float* weight, int64_t d, int width, float (&taps)[kMaxShortWidth]) {
  M2_UNROLL
  for (int i = 0; i < kMaxShortWidth; ++i) {
    const int j = i - (kMaxShortWidth - width);
    taps[i] = j >= 0 ? load_readonly(weight + d * width + j) : 0.0f;
  }
}

}  // namespace m2::cuda
