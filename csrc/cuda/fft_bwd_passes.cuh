// The gradient of a right-angle convolution of one row by one block: two forward and two inverse transforms in one row of
// shared memory, for fft_conv_bwd.cu. The passes: fft_passes.cuh.
#pragma once
#include "fft_passes.cuh"

namespace m2::cuda {

// One complex value for every frequency of a row, each read and written by the one thread that owns its butterfly: in
// shared memory behind the row and behind `earlier` others of these, or in global memory where that is too small.
template <int kPlan, bool kShared>
class Frequencies {
  static constexpr int kSize = kFftPlans[kPlan].size;

 public:
  __device__ __forceinline__ Frequencies(int earlier, Complex* memory)
      : first_(padded(kSize) + earlier * kSize), memory_(memory) {}
  __device__ __forceinline__ Complex get(int i) const {
    if constexpr (kShared) return shared_.load(first_ + i);
    else return memory_[i];
  }
  __device__ __forceinline__ void set(int i, Complex x) {
    if constexpr (kShared) shared_.store(first_ + i, x);
    else memory_[i] = x;
  }

 private:
  SharedArray<Complex> shared_;
  int first_;
  Complex* memory_;
};

// Calls run(i) for every frequency of this thread: its place in a spectrum.
template <int kPlan, class Run>
__device__ __forceinline__ void each_frequency(const Run& run) {
  using P = LastPass<kPlan>;
  M2_NO_UNROLL
  for (int b = thread_index_again(); b < P::kButterflies; b += kFftPlans[kPlan].threads)
    M2_UNROLL
    for (int q = 0; q < P::kRadix; ++q) run(q * P::kButterflies + b);
}

// With U = F(source(0)) and D = F(source(1)), S = spectrum + skip: sink(0) of F^-1(S U) if wanted, sink(1) of
// F^-1(conj(S) D), sums += conj(U) D. `kept` holds U in between.
template <int kPlan, class Kept, class Sums, class Source, class Sink>
__device__ __forceinline__ void backward_row(const SharedArray<Complex>& row, const Complex* table,
                                             const Complex* spectrum, float skip, bool output_wanted, Kept& kept,
                                             Sums& sums, const Source& source, const Sink& sink) {
  using P = LastPass<kPlan>;
  M2_NO_UNROLL
  for (int which = 0; which < 2; ++which) {
    forward_first<kPlan>(row, table, [&](int n, Complex twist) { return source(which, n) * twist; });
    forward_middle<kPlan, 1>(row, table);
    const bool goes_on = which || output_wanted;
    M2_NO_UNROLL
    for (int b = thread_index_again(); b < P::kButterflies; b += kFftPlans[kPlan].threads) {
      Complex x[P::kRadix];
      load<P>(row, P::slot(b), x);
      Dft<P::kRadix, false>::run(x);
      M2_UNROLL
      for (int q = 0; q < P::kRadix; ++q) {
        const int i = q * P::kButterflies + b;
        if (which == 0) kept.set(i, x[q]);
        else sums.set(i, sums.get(i) + conj(kept.get(i)) * x[q]);
      }
      if (!goes_on) continue;
      M2_UNROLL
      for (int q = 0; q < P::kRadix; ++q) {
        const Complex k = load_readonly(spectrum + q * P::kButterflies + b);
        x[q] = x[q] * Complex{k.re + skip, which ? -k.im : k.im};
      }
      Dft<P::kRadix, true>::run(x);
      store<P>(row, P::slot(b), x);
    }
    __syncthreads();
    if (!goes_on) continue;
    inverse_middle<kPlan, kFftPlans[kPlan].passes - 2>(row, table);
    // The next forward pass of this thread writes no other points than this reads: no barrier in between.
    inverse_first<kPlan>(row, table, [&](int n, Complex y) { sink(which, n, y); });
  }
}

}  // namespace m2::cuda
