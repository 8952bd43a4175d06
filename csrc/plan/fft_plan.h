// Factorisation of a right-angle transform and everything that depends on its size alone.
// Shared by the CPU kernels, the CUDA kernels and the Python bindings. C++ standard library only.
// Test: tests/ops/test_plan.py.
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

// The factors of a transform that are free to choose: size = outer * n1 * n2.
struct FftFactors {
  int64_t outer = 1, n1 = 0;
  bool operator==(const FftFactors&) const = default;
};

// A transform of `size` = outer * n1 * n2 points. One pass of radix `outer` (1: none; for sizes that L2 does not hold) leaves
// as many transforms of n1 * n2 points: n1-point DFTs down the columns (index n = row * n2 + column), a twiddle product,
// n2-point DFTs along the rows. n1 is `lanes` times a power of two, n2 a multiple of kLanes; the last radix of n1 is `lanes`,
// that of n2 kLanes.
struct FftPlan {
  int64_t size = 0, outer = 1, n1 = 0, n2 = 0;
  int lanes = kLanes;
  std::vector<int> radices1, radices2;  // decimation in frequency, first pass first

  int64_t inner() const { return n1 * n2; }
  // Elements between the rows that the outer pass leaves: a power of two would put them all into one set of the cache.
  int64_t pitch() const { return inner() + kLanes; }
  double flops() const;           // of one gated convolution with the spectrum given, FMA counted as two
  int64_t table_bytes() const;    // twiddles read by one float32 convolution
  int64_t scratch_elements() const;  // elements of workspace for one row
};

// Lanes of a block of the spectrum of a supported transform: 16, below that as many as 16 divide it into.
int fft_lanes(int64_t size);

// The smallest supported transform (kMinFftSize * 2^a * {1, 3, 5}) that holds `seqlen` positions.
// Throws std::invalid_argument outside 1 .. kMaxFftSize.
int64_t fft_size_for(int64_t seqlen);

// All factors that `size` can be built from. Throws std::invalid_argument if it is not a supported transform length.
std::vector<FftFactors> fft_factors(int64_t size);
FftFactors usual_fft_factors(int64_t size);  // those taken where none were chosen
FftPlan make_fft_plan(int64_t size, FftFactors);
// The plan in use. Throws std::invalid_argument if `size` is not a supported transform length.
FftPlan make_fft_plan(int64_t size);
// The factors that make_fft_plan uses from now on. Throws std::invalid_argument if they do not make up `size`, or if others
// are in use already: spectra would no longer fit.
void choose_fft_factors(int64_t size, FftFactors);

// Plan and tables in the precision of the kernel, computed in double. Read-only, shared by threads.
template <class T>
struct FftTables {
  FftPlan plan;
  std::vector<T> twist;               // [n1] exp(i pi n1 / (2 n1_total)), interleaved
  std::vector<T> twiddle;             // [n1 in output order][n2 / lanes][re lanes][im lanes]
  std::vector<T> outer_twist;         // [outer] exp(i pi m / (2 outer)), interleaved
  std::vector<T> outer_base, outer_step;  // [inner / kLanes][re kLanes][im kLanes], see fft_plan.cpp
  std::vector<std::vector<T>> pass1;  // per pass: [j][radix - 1] interleaved
  std::vector<std::vector<T>> pass2;
};

template <class T>
std::shared_ptr<const FftTables<T>> make_fft_tables(const FftPlan&);
// Of the plan in use; made once per size and precision, kept for the life of the process.
template <class T>
std::shared_ptr<const FftTables<T>> fft_tables(int64_t size);

}  // namespace m2
