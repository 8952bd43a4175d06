// What the CUDA boundaries of all operators share: checks, the current device and stream, views of tensors, the error of a
// launch. CPU: ../boundary.h.
//
// With M2_CUDA_EMULATED the same code serves CPU tensors under torch.ops.m2ops_emulated, which tests the boundary and
// the kernels together on a machine without a GPU.
#pragma once
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/shim_utils.h>

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "../cuda/fft_conv.h"

namespace m2::cuda {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptTensor = std::optional<Tensor>;

#ifdef M2_CUDA_EMULATED
#define M2_CUDA_LIBRARY_FRAGMENT(m) STABLE_TORCH_LIBRARY_FRAGMENT(m2ops_emulated, m)
#define M2_CUDA_LIBRARY_IMPL(m) STABLE_TORCH_LIBRARY_IMPL(m2ops_emulated, CPU, m)

struct CurrentDevice {
  explicit CurrentDevice(const Tensor&) {}
  cudaStream_t stream() const { return nullptr; }
};
inline bool on_our_device(const Tensor& x) { return x.is_cpu(); }
#else
#define M2_CUDA_LIBRARY_FRAGMENT(m) STABLE_TORCH_LIBRARY_FRAGMENT(m2ops, m)
#define M2_CUDA_LIBRARY_IMPL(m) STABLE_TORCH_LIBRARY_IMPL(m2ops, CUDA, m)

// Makes the tensor's device current while it lives, and knows torch's current stream there.
class CurrentDevice {
 public:
  explicit CurrentDevice(const Tensor& x) : guard_(x.get_device_index()) {
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(x.get_device_index(), &stream));
    stream_ = static_cast<cudaStream_t>(stream);
  }
  cudaStream_t stream() const { return stream_; }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_ = nullptr;
};
inline bool on_our_device(const Tensor& x) { return x.is_cuda(); }
#endif

template <class... Parts>
std::string text(const Parts&... parts) {
  std::ostringstream out;
  (out << ... << parts);
  return out.str();
}

// ValueError in Python.
template <class... Parts>
void require(bool condition, const Parts&... parts) {
  if (!condition) throw std::invalid_argument(text(parts...));
}

inline std::string shape_of(const Tensor& x) {
  std::string out = "(";
  for (int64_t i = 0; i < x.dim(); ++i) out += (i ? ", " : "") + std::to_string(x.size(i));
  return out + (x.dim() == 1 ? ",)" : ")");
}

inline std::string device_of(const Tensor& x) {
  return x.is_cuda() ? text("cuda:", x.get_device_index()) : x.is_cpu() ? "cpu" : "another device";
}

// `first` is the operator's first tensor, whose device all others share.
inline void check_device(const char* op, const char* name, const Tensor& x, const Tensor& first) {
  require(on_our_device(x) && x.get_device_index() == first.get_device_index(), op, ": ", name,
          " must be on the same GPU as all tensors of the call, got ", device_of(x), " beside ", device_of(first),
          "; move it with .to()");
}

inline void check_tensor(const char* op, const char* name, const Tensor& x, const Tensor& first) {
  check_device(op, name, x, first);
  require(x.scalar_type() == ScalarType::Float, op, ": ", name, " must be float32 on CUDA, got ",
          torch::headeronly::toString(x.scalar_type()), "; convert it with .float()");
}

// Memory that kernels need beside their results.
inline Tensor new_work(const Tensor& like, int64_t floats) { return torch::stable::new_empty(like, {floats}); }
inline float* floats_of(const Tensor& x) { return static_cast<float*>(x.mutable_data_ptr()); }

inline void check_launch(const char* op, const char* kernel, int64_t fft_size, cudaError_t error, const LaunchShape& shape,
                  const Tensor& first) {
  if (error == cudaSuccess) return;
  throw std::runtime_error(text(op, ": launch of ", kernel, " failed: ", cudaGetErrorString(error), " (",
                                shape.blocks, " blocks of ", shape.threads, " threads, ", shape.shared_bytes,
                                " bytes of shared memory, fft_size ", fft_size, ", ", device_of(first), ")"));
}

// The element type of a tensor of activations.
inline Element element_of(const char* op, const char* name, const Tensor& x) {
  switch (x.scalar_type()) {
    case ScalarType::Float: return Element::f32;
    case ScalarType::Half: return Element::f16;
    case ScalarType::BFloat16: return Element::bf16;
    default: break;
  }
  throw std::invalid_argument(text(op, ": ", name, " must be float32, float16 or bfloat16 on CUDA, got ",
                                   torch::headeronly::toString(x.scalar_type()), "; convert it with .float()"));
}

inline AnyStrided<const void> input(const Tensor& x, bool channels_last) {
  return {x.const_data_ptr(), x.stride(0), x.stride(channels_last ? 2 : 1), x.stride(channels_last ? 1 : 2)};
}

inline AnyStrided<void> output(const Tensor& x, bool channels_last) {
  return {x.mutable_data_ptr(), x.stride(0), x.stride(channels_last ? 2 : 1), x.stride(channels_last ? 1 : 2)};
}

inline void require_same_shape(const char* op, const char* name, const Tensor& x, const char* like_name,
                               const Tensor& like) {
  bool same = x.dim() == like.dim();
  for (int64_t i = 0; same && i < x.dim(); ++i) same = x.size(i) == like.size(i);
  require(same && x.scalar_type() == like.scalar_type(), op, ": ", name, " must have the shape and dtype of ", like_name,
          ", ", shape_of(like), " ", torch::headeronly::toString(like.scalar_type()), ", got ", shape_of(x), " ",
          torch::headeronly::toString(x.scalar_type()));
}

// Checks x, the first tensor of an operator, and takes its element type and sizes.
template <class Args>
void take_sizes(const char* op, const char* name, const Tensor& x, bool channels_last, Args& args) {
  check_device(op, name, x, x);
  args.element = element_of(op, name, x);
  require(x.dim() == 3, op, ": ", name, " must have 3 dimensions, got ", shape_of(x));
  args.batch = x.size(0);
  args.dim = x.size(channels_last ? 2 : 1);
  args.seqlen = x.size(channels_last ? 1 : 2);
}

// A tensor like u, or none.
inline AnyStrided<const void> like_u(const char* op, const char* name, const OptTensor& x, const Tensor& u,
                                     bool channels_last) {
  if (!x) return {};
  check_device(op, name, *x, u);
  require_same_shape(op, name, *x, "u", u);
  return input(*x, channels_last);
}

inline void require_aligned(const char* op, const char* name, const void* data) {
  require(reinterpret_cast<uintptr_t>(data) % 8 == 0, op, ": ", name, " must start at an 8-byte boundary; pass a copy, ",
          name, ".clone()");
}

}  // namespace m2::cuda
