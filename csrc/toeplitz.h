// The part of fft_conv's CPU boundary that uses matrix tiles (AMX) for short bfloat16 rows. Test: tests/ops/test_amx.py.
#pragma once
#include "boundary.h"

namespace m2 {

struct ConvolutionViews {
  const View &u, &pregate, &postgate, &out;  // data of the gates may be null
};

// Convolves if tiles can be used and take less time than transforms; else false, and nothing is done. `spectrum` and `skip`
// are checked, contiguous and in the computing dtype.
bool convolve_with_tiles(const ConvolutionViews&, const Tensor& spectrum, const OptTensor& skip, int64_t fft_size);

}  // namespace m2
