// Elements of 16 and 32 bits as the kernels read and write them: converted to float32 and back, rounded to nearest.
#pragma once
#include <type_traits>

#include "element.h"
#include "mma.cuh"

namespace m2::cuda {

struct Half {
  uint16_t bits;
};
struct Bfloat {
  uint16_t bits;
};

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(Half x) { return half_to_float(x.bits); }
__device__ __forceinline__ float to_float(Bfloat x) { return bfloat_to_float(x.bits); }

template <class T>
__device__ __forceinline__ T from_float(float x) {
  if constexpr (std::is_same_v<T, Half>) return {float_to_half(x)};
  else if constexpr (std::is_same_v<T, Bfloat>) return {float_to_bfloat(x)};
  else return x;
}

// An element of 32 bits, or of 16 bits whose kind is told apart after loading: machine code for two widths instead of three
// types, and loads that do not wait for a branch.
template <bool kNarrow>
using Raw = std::conditional_t<kNarrow, uint16_t, float>;

template <bool kNarrow>
__device__ __forceinline__ float widen(Element element, Raw<kNarrow> x) {
  if constexpr (!kNarrow) return x;
  else return element == Element::f16 ? half_to_float(x) : bfloat_to_float(x);
}
template <bool kNarrow>
__device__ __forceinline__ Raw<kNarrow> narrowed(Element element, float x) {
  if constexpr (!kNarrow) return x;
  else return element == Element::f16 ? float_to_half(x) : float_to_bfloat(x);
}

// Element i of a tensor, read through the read-only cache.
template <bool kNarrow>
__device__ __forceinline__ float read_element(Element element, const void* data, int64_t i) {
  return widen<kNarrow>(element, load_readonly(static_cast<const Raw<kNarrow>*>(data) + i));
}

template <bool kNarrow>
__device__ __forceinline__ void write_element(Element element, void* data, int64_t i, float x) {
  static_cast<Raw<kNarrow>*>(data)[i] = narrowed<kNarrow>(element, x);
}

// Calls run(std::bool_constant<16 bits?>) for `element`.
template <class Run>
auto with_width(Element element, const Run& run) {
  return element == Element::f32 ? run(std::false_type{}) : run(std::true_type{});
}

}  // namespace m2::cuda
