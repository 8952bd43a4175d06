// fft_conv and filter_spectrum on CUDA for transforms that a block's shared memory does not hold: the same arguments and
// results as in fft_conv.h, several kernels and memory in between.
// Kernels: fft_conv_long.cu. Boundary: ../cuda_ops/fft_conv.cpp. Test: ../testing/test_fft_conv_bwd_cuda.cpp, tests/test_cuda_*.py.
#pragma once
#include "fft_conv.h"

namespace m2::cuda {

constexpr int64_t kMaxLongFftSize = int64_t{1} << 22;
constexpr int64_t kMinLongRow = 1024;  // no GPU that we serve has so little shared memory that rows would be shorter
constexpr int64_t kMaxLongRow = 8192;  // and where it has room for 16384, few lengths would gain for all that machine code

// Passes of radix 16 through global memory, then rows of `row` points in shared memory: size = 16^passes * row.
struct LongFftPlan {
  int64_t size = 0;
  int passes = 0;
  int64_t row = 0;
};

// The plan of `size` with the fewest passes whose rows fit into shared memory on the current device;
// cudaErrorInvalidValue if there is none: rows have kMinLongRow .. kMaxLongRow points.
cudaError_t find_long_plan(int64_t size, LongFftPlan* plan);

// Points of the rows that are worked on at a time, at least one row: 16 MB of complex values, which the L2 cache of an
// A100 (40 MB) holds beside the spectra.
constexpr int64_t kWorkPoints = int64_t{1} << 21;

// Floats of memory that each of the functions below needs as `work`, 8-byte aligned. The order of the spectrum's
// frequencies depends on the plan, so on the device's shared memory.
int64_t fft_conv_long_work(const FftConvArgs& args, int64_t points = kWorkPoints);
int64_t fft_conv_long_bwd_work(const FftConvBwdArgs& args, int64_t points = kWorkPoints);  // args.scratch is not used
int64_t filter_spectrum_long_bwd_work(int64_t dim, int64_t fft_size, int64_t points = kWorkPoints);

cudaError_t fft_conv_long_fwd(const FftConvArgs& args, float* work, cudaStream_t stream, LaunchShape* shape = nullptr,
                              int64_t points = kWorkPoints);
cudaError_t fft_conv_long_bwd(const FftConvBwdArgs& args, float* work, cudaStream_t stream,
                              LaunchShape* shape = nullptr, int64_t points = kWorkPoints);
cudaError_t filter_spectrum_long_fwd(const FilterSpectrumArgs& args, cudaStream_t stream, LaunchShape* shape = nullptr);
cudaError_t filter_spectrum_long_bwd(const FilterSpectrumBwdArgs& args, float* work, cudaStream_t stream,
                                     LaunchShape* shape = nullptr, int64_t points = kWorkPoints);

}  // namespace m2::cuda
