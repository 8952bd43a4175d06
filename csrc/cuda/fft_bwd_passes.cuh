// The gradient of a right-angle convolution of one row by one block: two forward and two inverse transforms in one row of
// shared memory, for fft_conv_bwd.cu and fft_conv_long.cu. The passes: fft_passes.cuh.
#pragma once
#include <algorithm>
#include <cstdint>

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

// What a block of a gradient works on: a channel of a part of the batch. The batch is split only where `threads` of whole
// batches would leave a GPU idle, by the shapes alone, so that the same bits come out on every device.
constexpr int64_t kWantedThreads = int64_t{1} << 17;  // as many as run at a time on a large GPU
constexpr int64_t kLeastRows = 4;                     // of a part: fewer do not pay for its sums

inline int64_t batch_parts(int64_t batch, int64_t threads) {
  return std::clamp<int64_t>(kWantedThreads / std::max<int64_t>(1, threads), 1, std::max<int64_t>(1, batch / kLeastRows));
}

// The batch entries first .. last - 1 of a part. Both numbers fit 32 bits, which divide in a third of the code.
struct BatchPart {
  unsigned first, last;

  __device__ __forceinline__ explicit BatchPart(unsigned all) : first(0), last(all) {}
  __device__ __forceinline__ BatchPart(int64_t batch, int64_t parts, unsigned part) {
    const unsigned least = unsigned(batch) / unsigned(parts), more = unsigned(batch) % unsigned(parts);
    first = part * least + (part < more ? part : more);
    last = first + least + (part < more ? 1 : 0);
  }
};

// Points of a row whose frequencies and sums lie beside it: 98 KB, which a block of every GPU since 2020 has.
constexpr int64_t kMaxSharedSums = 4096;

inline size_t bwd_shared_bytes(int64_t fft_size) {
  return shared_bytes_needed(fft_size) + (fft_size <= kMaxSharedSums ? 2 * size_t(fft_size) * sizeof(Complex) : 0);
}

// Calls run(i) for every frequency of this thread: its place in a spectrum.
template <int kPlan, class Run>
__device__ __forceinline__ void each_frequency(const Run& run) {
  using P = LastPass<kPlan>;
  M2_NO_UNROLL
  for (int b = thread_index_again(); b < P::kButterflies; b += kFftPlans[kPlan].threads)
    M2_UNROLL
    for (int q = 0; q < P::kRadix; ++q) run(q * P::kButterflies + b);
}

// One direction of the gradient of a row: of its input (which = 0), with U = F(source), or of its result (which = 1), with
// D = F(source); S = spectrum + skip. Keeps U, or adds conj(U) D to the sums; then, if `goes_on`, sink(n, y) of
// y = F^-1(S U) or F^-1(conj(S) D).
template <int kPlan, class Kept, class Sums, class Source, class Sink>
__device__ __forceinline__ void backward_way(int which, const SharedArray<Complex>& row, const Complex* table,
                                             const Complex* spectrum, float skip, bool goes_on, Kept& kept, Sums& sums,
                                             const Source& source, const Sink& sink) {
  using P = LastPass<kPlan>;
  forward_first<kPlan>(row, table, [&](int n, Complex twist) { return source(n) * twist; });
  forward_middle<kPlan, 1>(row, table);
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
  if (!goes_on) return;
  inverse_middle<kPlan, kFftPlans[kPlan].passes - 2>(row, table);
  // The next forward pass of this thread writes no other points than this reads: no barrier in between.
  inverse_first<kPlan>(row, table, sink);
}

// The same of a row that lies in the real parts of its points; the result replaces it.
template <int kPlan, class Kept, class Sums>
__device__ __forceinline__ void backward_way_in_place(int which, const SharedArray<Complex>& row, const Complex* table,
                                                      const Complex* spectrum, float skip, bool goes_on, Kept& kept,
                                                      Sums& sums) {
  backward_way<kPlan>(
      which, row, table, spectrum, skip, goes_on, kept, sums, [&](int n) { return row.load(padded(n)).re; },
      [&](int n, Complex y) { row.store(padded(n), y); });
}

}  // namespace m2::cuda
