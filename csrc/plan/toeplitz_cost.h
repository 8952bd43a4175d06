// What a short convolution costs as products of matrix tiles, and as transforms: fft_conv takes the cheaper way where a CPU
// has AMX. C++ standard library only. Test: tests/ops/test_amx.py.
#pragma once
#include <cstdint>

namespace m2 {

struct ToeplitzShape {
  int64_t batch, seqlen, fft_size;  // of one channel; the filter is given as a spectrum of fft_size points
  bool gated;                       // data come with a gate, so that both are cut into two parts
  bool causal;
};

// Estimates for one channel on one core of a CPU that has AMX and AVX-512, in seconds.
double toeplitz_seconds(const ToeplitzShape&);
double transform_seconds(int64_t batch, int64_t fft_size);

}  // namespace m2
