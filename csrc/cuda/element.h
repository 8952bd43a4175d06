// The element types of tensors that the CUDA kernels take, and such tensors. No torch.
#pragma once
#include <cstddef>
#include <cstdint>

namespace m2::cuda {

enum class Element { f32, f16, bf16 };

constexpr size_t element_bytes(Element element) { return element == Element::f32 ? 4 : 2; }

// A tensor over batch, dim and seqlen in any order, on the current device; strides in elements.
template <class Void>
struct AnyStrided {
  Void* data = nullptr;
  int64_t stride_batch = 0, stride_dim = 0, stride_seq = 0;
};

}  // namespace m2::cuda
