// What the CPU boundaries of all operators share: checks of what the kernels rely on, views of tensors, workspace.
// The Python wrappers give the friendly messages; these checks keep a direct call of torch.ops.m2ops.* from reading
// memory it does not own.
#pragma once
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <initializer_list>
#include <memory>
#include <new>
#include <optional>
#include <tuple>

#include "cpu/isa.h"
#include "cpu/kernels.h"
#include "cpu/pool.h"

// A tensor over memory of ours. Of torch 2.11 and later, so null where torch is older: this library is built for 2.10.
extern "C" __attribute__((weak)) AOTITorchError torch_from_blob(
    void* data, int64_t ndim, const int64_t* sizes, const int64_t* strides, int64_t storage_offset, int32_t dtype,
    int32_t device_type, int32_t device_index, AtenTensorHandle* out, int32_t layout, const uint8_t* opaque_metadata,
    int64_t opaque_metadata_size, void (*deleter)(void* data, void* context), void* deleter_context);

namespace m2 {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptTensor = std::optional<Tensor>;

inline Dtype dtype_of(const char* op, const Tensor& x) {
  switch (x.scalar_type()) {
    case ScalarType::Float: return Dtype::f32;
    case ScalarType::Double: return Dtype::f64;
    case ScalarType::BFloat16: return Dtype::bf16;
    case ScalarType::Half: return Dtype::f16;
    default: STD_TORCH_CHECK(false, op, ": tensors must be float32, float64, bfloat16 or float16"); std::abort();
  }
}

inline ScalarType compute_type(const Tensor& x) {
  return x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// A contiguous tensor of the computing type with `numel` elements.
inline Tensor parameter(const char* op, const char* name, const Tensor& x, ScalarType type, int64_t numel) {
  STD_TORCH_CHECK(x.is_cpu() && x.scalar_type() == type && x.numel() == numel, op, ": ", name,
                  " must be a CPU tensor of the computing dtype with ", numel, " elements, got ", x.numel());
  return torch::stable::contiguous(x);
}

// A (batch, dim, seqlen) or (batch, seqlen, dim) tensor as blocks of channels.
struct View {
  Tensor tensor;  // keeps a contiguous copy alive where one was needed
  char* data = nullptr;
  Dtype dtype = Dtype::f32;
  int64_t batch = 0, dim = 0, seqlen = 0, stride_batch = 0, stride_channel = 0, stride_seq = 0;
  bool time_contiguous = true;

  Block block(int64_t b, int64_t c) const {
    const int64_t size = dtype == Dtype::f64 ? 8 : dtype == Dtype::f32 ? 4 : 2;
    char* p = data ? data + (b * stride_batch + c * stride_channel) * size : nullptr;
    return {p, dtype, stride_channel, stride_seq, time_contiguous};
  }
  int64_t tile() const { return time_contiguous ? 1 : kLanes; }  // channels handled together
  int64_t tiles() const { return (dim + tile() - 1) / tile(); }
  int64_t channels(int64_t first) const { return std::min(tile(), dim - first); }
};

inline View view(const char* op, const char* name, const Tensor& x, bool channels_last) {
  STD_TORCH_CHECK(x.is_cpu() && x.dim() == 3, op, ": ", name, " must be a CPU tensor of 3 dimensions, got ", x.dim());
  View v;
  const int channel_axis = channels_last ? 2 : 1, seq_axis = channels_last ? 1 : 2;
  const bool dense = x.stride(2) == 1 || x.size(2) == 1;
  v.tensor = dense ? x : torch::stable::contiguous(x);
  v.data = static_cast<char*>(v.tensor.data_ptr());
  v.dtype = dtype_of(op, x);
  v.batch = x.size(0), v.dim = x.size(channel_axis), v.seqlen = x.size(seq_axis);
  v.stride_batch = v.tensor.stride(0);
  v.stride_channel = channels_last ? 1 : v.tensor.stride(1);
  v.stride_seq = channels_last ? v.tensor.stride(1) : 1;
  v.time_contiguous = !channels_last;
  return v;
}

// A view of an optional tensor of the same shape and dtype; data is null where there is none.
inline View view_like(const char* op, const char* name, const OptTensor& x, const View& like) {
  View v;
  v.time_contiguous = like.time_contiguous;
  v.dtype = like.dtype;
  if (!x) return v;
  v = view(op, name, *x, !like.time_contiguous);
  STD_TORCH_CHECK(v.dtype == like.dtype && v.batch == like.batch && v.dim == like.dim && v.seqlen == like.seqlen, op,
                  ": ", name, " must have the shape and dtype of the input");
  return v;
}

// 64-byte aligned workspace, uninitialised.
template <class T>
class Workspace {
 public:
  explicit Workspace(int64_t elements)
      : data_(static_cast<T*>(std::aligned_alloc(64, (elements * int64_t(sizeof(T)) / 64 + 1) * 64)), &std::free) {
    if (!data_) throw std::bad_alloc();
  }
  T* get() const { return data_.get(); }

 private:
  std::unique_ptr<T, void (*)(void*)> data_;
};

// A large output or temporary tensor comes from the pool of cpu/pool.h where there is one and torch can be told how to give
// memory back (2.11 and later), any other from torch.
inline Tensor new_output(const Tensor& like, std::initializer_list<int64_t> shape, std::optional<ScalarType> type = {}) {
  const ScalarType dtype = type.value_or(like.scalar_type());
  const int64_t element = dtype == ScalarType::Double ? 8 : dtype == ScalarType::Float ? 4 : 2;
  int64_t strides[4], numel = 1, axis = int64_t(shape.size());
  for (const int64_t* size = shape.end(); size != shape.begin();) strides[--axis] = numel, numel *= *--size;
  if (torch_from_blob == nullptr || numel * element < kPooledBytes) return torch::stable::new_empty(like, shape, type);
  void* block = pool_take(numel * element);
  if (!block) return torch::stable::new_empty(like, shape, type);
  AtenTensorHandle handle = nullptr;
  const AOTITorchError failed = torch_from_blob(
      block, int64_t(shape.size()), shape.begin(), strides, 0,
      torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype)), aoti_torch_device_type_cpu(), -1, &handle,
      aoti_torch_layout_strided(), nullptr, 0, [](void* data, void*) { pool_give(data); }, nullptr);
  if (failed) pool_give(block);
  STD_TORCH_CHECK(!failed, "m2ops: torch could not make a tensor of ", numel, " elements");
  return Tensor(handle);
}

// A workspace kept by the calling thread for its next call up to kKeptBytes: fresh pages cost more than the work on them.
constexpr int64_t kKeptBytes = int64_t{1} << 26;
template <class T>
class KeptWorkspace {
 public:
  explicit KeptWorkspace(int64_t elements) : own_(elements * int64_t(sizeof(T)) > kKeptBytes ? elements : 0) {
    thread_local Workspace<char> kept(0);
    thread_local int64_t size = 0;
    const int64_t bytes = elements * int64_t(sizeof(T));
    if (bytes > kKeptBytes) {
      data_ = own_.get();
      return;
    }
    if (bytes > size) kept = Workspace<char>(bytes), size = bytes;
    data_ = reinterpret_cast<T*>(kept.get());
  }
  T* get() const { return data_; }

 private:
  Workspace<T> own_;
  T* data_;
};

// The gradient of a skip connection, sum of input times gradient of the output: by Parseval the mean of Re(dspectrum).
template <class T>
T skip_gradient(const FftTables<T>& tables, const T* dspectrum) {
  const int64_t size = tables.plan.size, lanes = tables.plan.lanes;
  double sum = 0;
  for (int64_t n = 0; n < 2 * size; n += 2 * lanes)
    for (int64_t lane = n; lane < n + lanes; ++lane) sum += double(dspectrum[lane]);
  return T(sum / double(size));
}

// Calls f with a value of the computing type.
template <class F>
void with_compute_type(ScalarType type, F f) {
  if (type == ScalarType::Double) f(double{});
  else f(float{});
}

}  // namespace m2
