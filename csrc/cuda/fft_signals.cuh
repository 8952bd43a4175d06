// What a long convolution transforms and what becomes of the result, for the kernels of fft_conv*.cu: a row of a tensor
// times its gate; a result times another tensor. Rows of either width are read and written in place.
#pragma once
#include "element.cuh"
#include "fft_conv.h"

namespace m2::cuda {

template <class Void>
struct Row {
  Void* data = nullptr;  // null: there is no tensor
  int64_t stride = 0;
};

template <bool kNarrow>
__device__ __forceinline__ Row<const void> row_of(const AnyStrided<const void>& x, int64_t b, int64_t d) {
  const int64_t start = (b * x.stride_batch + d * x.stride_dim) * (kNarrow ? 2 : 4);
  return {x.data ? static_cast<const char*>(x.data) + start : nullptr, x.stride_seq};
}
template <bool kNarrow>
__device__ __forceinline__ Row<void> row_of(const AnyStrided<void>& x, int64_t b, int64_t d) {
  const int64_t start = (b * x.stride_batch + d * x.stride_dim) * (kNarrow ? 2 : 4);
  return {x.data ? static_cast<char*>(x.data) + start : nullptr, x.stride_seq};
}

template <class Void>
__device__ __forceinline__ Row<Void> row_of(Element element, const AnyStrided<Void>& x, int64_t b, int64_t d) {
  return element == Element::f32 ? row_of<false>(x, b, d) : row_of<true>(x, b, d);
}

// The row of a block in a forward convolution. Blocks that run together should share memory: with positions contiguous,
// rows of one channel come first and share its spectrum; with channels contiguous, the channels of one batch entry come
// first and share cache lines.
struct BlockRow {
  int64_t b, d;

  __device__ __forceinline__ explicit BlockRow(const FftConvArgs& args) : BlockRow(args, blockIdx.x) {}
  __device__ __forceinline__ BlockRow(const FftConvArgs& args, unsigned block) {
    const bool batch_first = args.u.stride_seq == 1;
    const unsigned inner = unsigned(batch_first ? args.batch : args.dim);
    b = batch_first ? block % inner : block / inner;
    d = batch_first ? block / inner : block % inner;
  }
};

// x * gate at the positions that exist, 0 after them.
template <bool kNarrow>
struct Signal {
  Element element;
  int seqlen;
  Row<const void> x, gate;

  __device__ __forceinline__ float operator()(int n) const {
    float g = 0.0f;
    if (n < seqlen) {
      g = read_element<kNarrow>(element, x.data, n * x.stride);
      if (gate.data) g *= read_element<kNarrow>(element, gate.data, n * gate.stride);
    }
    return g;
  }
};

// out = y * factor at the positions that exist; nothing where there is no such output.
template <bool kNarrow>
struct Product {
  Element element;
  int seqlen;
  Row<void> out;
  Row<const void> factor;

  __device__ __forceinline__ void operator()(int n, float y) const {
    if (n >= seqlen || !out.data) return;
    if (factor.data) y *= read_element<kNarrow>(element, factor.data, n * factor.stride);
    write_element<kNarrow>(element, out.data, n * out.stride, y);
  }
};

// The filter in the ring where what wraps around comes back times i: k[n] - i k_rev[N - 1 - n]. A tap of k_rev at
// n = 0 would have lag -N, which no position reaches.
struct Filter {
  const float *k, *k_rev;
  int64_t taps, taps_rev, stride, stride_rev;
  int size;

  __device__ __forceinline__ Complex operator()(int n) const {
    const int lag = size - n;
    const float re = n < taps ? load_readonly(k + n * stride) : 0.0f;
    const bool reverse = k_rev && n > 0 && lag <= taps_rev;
    return {re, reverse ? -load_readonly(k_rev + (lag - 1) * stride_rev) : 0.0f};
  }
};

// The gradient of the filter, from y[n] as above without its 1 / N.
struct FilterGradient {
  float *dk, *dk_rev;
  int64_t taps, taps_rev;
  int size;

  __device__ __forceinline__ void operator()(int n, Complex y) const {
    const int lag = size - n;
    if (n < taps) dk[n] = y.re / size;
    if (n > 0 && lag <= taps_rev) dk_rev[lag - 1] = -y.im / size;
  }
  // Taps that reach no position, by the threads `first`, first + step, ...
  __device__ __forceinline__ void clear_rest(int64_t first, int64_t step) const {
    for (int64_t n = size + first; n < taps; n += step) dk[n] = 0.0f;
    for (int64_t j = size - 1 + first; j < taps_rev; j += step) dk_rev[j] = 0.0f;
  }
};

}  // namespace m2::cuda
