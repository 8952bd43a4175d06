// Factorisation of a right-angle transform and everything that depends on its size alone.
// Shared by the CPU kernels, the CUDA kernels and the Python bindings. C++ standard library only.
// Test: tests/test_plan.py.
#pragma once
#include <cstdint>
#include <memory>
#include <vector>

namespace m2 {

// A spectrum is stored in blocks of this many lanes (fewer below 256 points) on every instruction set, so that one
// made by one row of the kernel table is valid for another.
constexpr int64_t kLanes = 16;
constexpr int64_t kMinFftSize = 64;
constexpr int64_t kMaxFftSize = int64_t{1} << 22;

// A transform of `size` = n1 * n2 points: n1-point DFTs down the columns (index n = row * n2 + column), a twiddle
// product, n2-point DFTs along the rows. n1 is a multiple of `lanes`, n2 of kLanes; the last radix of n1 is `lanes`,
// that of n2 kLanes.
struct FftPlan {
  int64_t size = 0, n1 = 0, n2 = 0;
  int lanes = kLanes;
  std::vector<int> radices1, radices2;  // decimation in frequency, first pass first

  double flops() const;           // of one gated convolution with the spectrum given, FMA counted as two
  int64_t table_bytes() const;    // twiddles read by one float32 convolution
  int64_t scratch_elements() const;  // elements of workspace for one row
};

// Lanes of a block of the spectrum of a supported transform: 16, below that as many as 16 divide it into.
int fft_lanes(int64_t size);

// The smallest supported transform (kMinFftSize * 2^a * {1, 3, 5}) that holds `seqlen` positions.
// Throws std::invalid_argument outside 1 .. kMaxFftSize.
int64_t fft_size_for(int64_t seqlen);

// Throws std::invalid_argument if `size` is not a supported transform length.
FftPlan make_fft_plan(int64_t size);

// Plan and tables in the precision of the kernel, computed in double. Read-only, shared by threads.
template <class T>
struct FftTables {
  FftPlan plan;
  std::vector<T> twist;               // [n1] exp(i pi n1 / (2 n1_total)), interleaved
  std::vector<T> twiddle;             // [n1 in output order][n2 / lanes][re lanes][im lanes]
  std::vector<std::vector<T>> pass1;  // per pass: [j][radix - 1] interleaved
  std::vector<std::vector<T>> pass2;
};

// Made once per size and precision, kept for the life of the process.
template <class T>
std::shared_ptr<const FftTables<T>> fft_tables(int64_t size);

}  // namespace m2
