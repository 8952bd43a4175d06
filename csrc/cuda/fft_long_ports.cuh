// Where the passes of a long transform read the values of a row and where they write them, for fft_conv_long.cu: tensors of
// either width with their gates, filters and their gradients, complex values in place. May include fft_signals.cuh.
// Test: ../testing/test_fft_conv_bwd_cuda.cpp.
#pragma once
#include "fft_signals.cuh"

namespace m2::cuda {

constexpr int kPortValues = 16;  // at a time: the inputs or outputs of a butterfly

// A port's `row(b, d, work)` reads or writes the values of a butterfly.
struct InPlace {
  using Value = Complex;
  Complex* data;

  __device__ __forceinline__ void read(int first, int step, Complex (&x)[kPortValues]) const {
    M2_UNROLL
    for (int i = 0; i < kPortValues; ++i) x[i] = data[first + i * step];
  }
  __device__ __forceinline__ void write(int first, int step, const Complex (&y)[kPortValues]) const {
    M2_UNROLL
    for (int i = 0; i < kPortValues; ++i) data[first + i * step] = y[i];
  }
};
struct InPlacePort {
  __device__ __forceinline__ InPlace row(int64_t, int64_t, Complex* work) const { return {work}; }
};

// Rows of tensors: their width is told apart once for all values, one kernel for both.
template <bool kNarrow>
__device__ __forceinline__ void read_row_as(Element element, int seqlen, const Row<const void>& x, int first, int step,
                                            float (&out)[kPortValues]) {
  const Raw<kNarrow>* from = static_cast<const Raw<kNarrow>*>(x.data);
  Raw<kNarrow> raw[kPortValues];
  M2_UNROLL
  for (int i = 0; i < kPortValues; ++i) {
    const int n = first + i * step;
    raw[i] = n < seqlen ? load_readonly(from + n * x.stride) : Raw<kNarrow>{};
  }
  M2_UNROLL
  for (int i = 0; i < kPortValues; ++i) out[i] = widen<kNarrow>(element, raw[i]);
}
__device__ __forceinline__ void read_row(Element element, int seqlen, const Row<const void>& x, int first, int step,
                                         float (&out)[kPortValues]) {
  if (element == Element::f32) read_row_as<false>(element, seqlen, x, first, step, out);
  else read_row_as<true>(element, seqlen, x, first, step, out);
}

template <bool kNarrow>
__device__ __forceinline__ void write_row_as(Element element, int seqlen, const Row<void>& out, int first, int step,
                                             const float (&y)[kPortValues]) {
  Raw<kNarrow>* to = static_cast<Raw<kNarrow>*>(out.data);
  Raw<kNarrow> raw[kPortValues];
  M2_UNROLL
  for (int i = 0; i < kPortValues; ++i) raw[i] = narrowed<kNarrow>(element, y[i]);
  M2_UNROLL
  for (int i = 0; i < kPortValues; ++i) {
    const int n = first + i * step;
    if (n < seqlen) to[n * out.stride] = raw[i];
  }
}

struct TensorSource {
  using Value = float;
  Element element;
  int seqlen;
  Row<const void> x, gate;

  __device__ __forceinline__ void read(int first, int step, float (&g)[kPortValues]) const {
    read_row(element, seqlen, x, first, step, g);
    if (!gate.data) return;
    float by[kPortValues];
    read_row(element, seqlen, gate, first, step, by);
    M2_UNROLL
    for (int i = 0; i < kPortValues; ++i) g[i] *= by[i];
  }
};
struct SignalPort {
  Element element;
  int64_t seqlen;
  AnyStrided<const void> x, gate;

  __device__ __forceinline__ TensorSource row(int64_t b, int64_t d, Complex*) const {
    return {element, int(seqlen), row_of(element, x, b, d), row_of(element, gate, b, d)};
  }
};

struct TensorSink {
  Element element;
  int seqlen;
  Row<void> out[2];  // may be absent
  Row<const void> factor[2];

  __device__ __forceinline__ void write(int first, int step, const Complex (&y)[kPortValues]) const {
    M2_NO_UNROLL
    for (int which = 0; which < 2; ++which) {
      // Chosen by value: a choice of references would need a stack.
      const Row<void> to = {which ? out[1].data : out[0].data, which ? out[1].stride : out[0].stride};
      const Row<const void> by = {which ? factor[1].data : factor[0].data, which ? factor[1].stride : factor[0].stride};
      if (!to.data) continue;
      float x[kPortValues];
      M2_UNROLL
      for (int i = 0; i < kPortValues; ++i) x[i] = 1.0f;
      if (by.data) read_row(element, seqlen, by, first, step, x);
      M2_UNROLL
      for (int i = 0; i < kPortValues; ++i) x[i] *= y[i].re;
      if (element == Element::f32) write_row_as<false>(element, seqlen, to, first, step, x);
      else write_row_as<true>(element, seqlen, to, first, step, x);
    }
  }
};
struct ProductPort {
  Element element;
  int64_t seqlen;
  AnyStrided<void> out;
  AnyStrided<const void> factor;
  AnyStrided<void> out2;  // may be absent
  AnyStrided<const void> factor2;

  __device__ __forceinline__ TensorSink row(int64_t b, int64_t d, Complex*) const {
    return {element,
            int(seqlen),
            {row_of(element, out, b, d), row_of(element, out2, b, d)},
            {row_of(element, factor, b, d), row_of(element, factor2, b, d)}};
  }
};

struct FilterSource {
  using Value = Complex;
  Filter filter;
  __device__ __forceinline__ void read(int first, int step, Complex (&x)[kPortValues]) const {
    M2_UNROLL
    for (int i = 0; i < kPortValues; ++i) x[i] = filter(first + i * step);
  }
};
struct FilterPort {
  FilterSpectrumArgs args;
  __device__ __forceinline__ FilterSource row(int64_t, int64_t d, Complex*) const {
    return {{args.k + d * args.stride_k_dim, args.k_rev ? args.k_rev + d * args.stride_k_rev_dim : nullptr, args.taps,
             args.taps_rev, args.stride_k_tap, args.stride_k_rev_tap, int(args.fft_size)}};
  }
};

struct FilterSink {
  FilterGradient gradient;
  __device__ __forceinline__ void write(int first, int step, const Complex (&y)[kPortValues]) const {
    M2_UNROLL
    for (int i = 0; i < kPortValues; ++i) gradient(first + i * step, y[i]);
  }
};
struct FilterGradientPort {
  FilterSpectrumBwdArgs args;
  __device__ __forceinline__ FilterSink row(int64_t, int64_t d, Complex*) const {
    return {{args.dk + d * args.taps, args.dk_rev + d * args.taps_rev, args.taps, args.taps_rev, int(args.fft_size)}};
  }
};

}  // namespace m2::cuda
