// The passes of the right-angle transform of one row by one block, in shared memory, for the kernels that build on them
// (fft_conv.cu, fft_conv_bwd.cu, fft_conv_long.cu). The transform and its tables: fft_plan.h.
//
// Of one row, the first forward pass takes its values from a function and the last inverse pass gives them to one; the
// last forward pass, the product with the spectrum and the first inverse pass happen in registers.
#pragma once
#include <cstdint>
#include <type_traits>

#include "device_table.h"
#include "dft.cuh"
#include "fft_conv.h"
#include "fft_plan.h"

namespace m2::cuda {

// Points are stored with a gap of one after every 16, so that passes of small step spread over the banks.
__host__ __device__ constexpr int padded(int i) { return i + i / 16; }

template <int kPlan, int kPass>
struct Pass {
  static constexpr int kRadix = kFftPlans[kPlan].radix[kPass];
  static constexpr int kLength = kFftPlans[kPlan].length(kPass);
  static constexpr int kStep = kFftPlans[kPlan].step(kPass);
  static constexpr int kButterflies = kFftPlans[kPlan].size / kRadix;
  static constexpr int kTableOffset = kFftPlans[kPlan].table_offset(kPass);
  static_assert(kStep % 16 == 0 || kLength % 16 == 0 || 16 % kLength == 0, "slot() would not be exact");

  // Where butterfly b finds its input 0 (and puts its output 0); the others follow at distance(i).
  static __device__ __forceinline__ int slot(int b) { return padded(b / kStep * kLength + b % kStep); }
  static __device__ __forceinline__ constexpr int distance(int i) { return padded(i * kStep); }
};

template <int kPlan>
using FirstPass = Pass<kPlan, 0>;
template <int kPlan>
using LastPass = Pass<kPlan, kFftPlans[kPlan].passes - 1>;

template <class P>
__device__ __forceinline__ void load(const SharedArray<Complex>& row, int slot, Complex (&x)[P::kRadix]) {
  M2_UNROLL
  for (int i = 0; i < P::kRadix; ++i) x[i] = row.load(slot + P::distance(i));
}

template <class P>
__device__ __forceinline__ void store(const SharedArray<Complex>& row, int slot, const Complex (&x)[P::kRadix]) {
  M2_UNROLL
  for (int i = 0; i < P::kRadix; ++i) row.store(slot + P::distance(i), x[i]);
}

// Multiplies the frequencies of butterfly b by the twiddles, or by their conjugates.
template <class P, bool kConjugate>
__device__ __forceinline__ void apply_twiddles(const Complex* table, int b, Complex (&x)[P::kRadix]) {
  const Complex* twiddle = table + P::kTableOffset + b % P::kStep;
  M2_UNROLL
  for (int q = 0; q < P::kRadix; ++q) {
    if (q == 0 && P::kTableOffset != 0) continue;  // 1 except in the first pass, which carries the twist
    const Complex w = load_readonly(twiddle + q * P::kStep);
    x[q] = x[q] * (kConjugate ? conj(w) : w);
  }
}

// First pass, of the values source(n) for 0 <= n < size.
template <int kPlan, class Source>
__device__ __forceinline__ void forward_first(const SharedArray<Complex>& row, const Complex* table, Source source) {
  using P = FirstPass<kPlan>;
  M2_NO_UNROLL
  for (int b = thread_index_again(); b < P::kButterflies; b += kFftPlans[kPlan].threads) {
    Complex x[P::kRadix];
    M2_UNROLL
    for (int i = 0; i < P::kRadix; ++i) x[i] = source(b + i * P::kStep, twist<P::kRadix>(i));
    Dft<P::kRadix, false>::run(x);
    apply_twiddles<P, false>(table, b, x);
    store<P>(row, P::slot(b), x);
  }
  __syncthreads();
}

// Passes kPass .. last - 1.
template <int kPlan, int kPass>
__device__ __forceinline__ void forward_middle(const SharedArray<Complex>& row, const Complex* table) {
  if constexpr (kPass + 1 < kFftPlans[kPlan].passes) {
    using P = Pass<kPlan, kPass>;
    M2_NO_UNROLL
    for (int b = thread_index_again(); b < P::kButterflies; b += kFftPlans[kPlan].threads) {
      Complex x[P::kRadix];
      load<P>(row, P::slot(b), x);
      Dft<P::kRadix, false>::run(x);
      apply_twiddles<P, false>(table, b, x);
      store<P>(row, P::slot(b), x);
    }
    __syncthreads();
    forward_middle<kPlan, kPass + 1>(row, table);
  }
}

// Passes kPass .. 1, backwards.
template <int kPlan, int kPass>
__device__ __forceinline__ void inverse_middle(const SharedArray<Complex>& row, const Complex* table) {
  if constexpr (kPass >= 1) {
    using P = Pass<kPlan, kPass>;
    M2_NO_UNROLL
    for (int b = thread_index_again(); b < P::kButterflies; b += kFftPlans[kPlan].threads) {
      Complex x[P::kRadix];
      load<P>(row, P::slot(b), x);
      apply_twiddles<P, true>(table, b, x);
      Dft<P::kRadix, true>::run(x);
      store<P>(row, P::slot(b), x);
    }
    __syncthreads();
    inverse_middle<kPlan, kPass - 1>(row, table);
  }
}

// Last forward pass, product with the spectrum plus `skip`, first inverse pass, in registers.
template <int kPlan>
__device__ __forceinline__ void multiply_spectrum(const SharedArray<Complex>& row, const Complex* spectrum,
                                                  float skip) {
  using P = LastPass<kPlan>;
  M2_NO_UNROLL
  for (int b = thread_index_again(); b < P::kButterflies; b += kFftPlans[kPlan].threads) {
    Complex x[P::kRadix];
    load<P>(row, P::slot(b), x);
    Dft<P::kRadix, false>::run(x);
    M2_UNROLL
    for (int q = 0; q < P::kRadix; ++q) {
      const Complex k = load_readonly(spectrum + q * P::kButterflies + b);
      x[q] = x[q] * Complex{k.re + skip, k.im};
    }
    Dft<P::kRadix, true>::run(x);
    store<P>(row, P::slot(b), x);
  }
  __syncthreads();
}

// Last inverse pass: sink(n, conj(theta)^n x[n]) for 0 <= n < size; of a convolution, the real part is the result.
template <int kPlan, class Sink>
__device__ __forceinline__ void inverse_first(const SharedArray<Complex>& row, const Complex* table, Sink sink) {
  using P = FirstPass<kPlan>;
  M2_NO_UNROLL
  for (int b = thread_index_again(); b < P::kButterflies; b += kFftPlans[kPlan].threads) {
    Complex x[P::kRadix];
    load<P>(row, P::slot(b), x);
    apply_twiddles<P, true>(table, b, x);
    Dft<P::kRadix, true>::run(x);
    M2_UNROLL
    for (int i = 0; i < P::kRadix; ++i) sink(b + i * P::kStep, x[i] * conj(twist<P::kRadix>(i)));
  }
}

// Calls run(std::integral_constant<int, index of the plan>) for the plan of `size`.
template <int kPlan = 0, class Run>
cudaError_t with_plan(int64_t size, const Run& run) {
  if constexpr (kPlan < kNumFftPlans) {
    if (kFftPlans[kPlan].size == size) return run(std::integral_constant<int, kPlan>{});
    return with_plan<kPlan + 1>(size, run);
  } else {
    return cudaErrorInvalidValue;
  }
}

// Launches one block a row after fetching the table.
template <class Args, class... Rest>
cudaError_t launch_rows(void (*kernel)(Args, const Complex*, Rest...), const FftPlan& plan, const Args& args,
                        int64_t rows, size_t shared_bytes, cudaStream_t stream, LaunchShape* shape, Rest... rest) {
  const LaunchShape wanted = {rows, plan.threads, shared_bytes};
  if (shape) *shape = wanted;
  if (rows < 0 || rows > INT32_MAX) return cudaErrorInvalidValue;
  if (rows == 0) return cudaSuccess;
  const Complex* table = nullptr;
  const cudaError_t error = device_table(plan, &table);
  if (error != cudaSuccess) return error;
  return launch(kernel, unsigned(rows), unsigned(plan.threads), wanted.shared_bytes, stream, args, table, rest...);
}

}  // namespace m2::cuda
