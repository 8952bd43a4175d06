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

// Calls run(T{}) for the type of `element`.
template <class Run>
auto with_element(Element element, const Run& run) {
  return element == Element::f32 ? run(float{}) : element == Element::f16 ? run(Half{}) : run(Bfloat{});
}

}  // namespace m2::cuda
