// What every kernel shares: the choice between the CUDA runtime and the emulator, launches that return their error,
// and shared memory. A kernel's file contains no <<<>>> and no inline PTX, so that g++ compiles it too.
#pragma once
#ifdef M2_CUDA_EMULATED
#include "../testing/cuda_emulator.h"
#else
#include <cuda_runtime.h>
#endif

#include <cstddef>
#include <cstdint>
#include <cstring>

#ifdef __CUDACC__
#define M2_UNROLL _Pragma("unroll")
#define M2_NO_UNROLL _Pragma("unroll 1")
#else
#define M2_UNROLL
#define M2_NO_UNROLL
#endif

namespace m2::cuda {

template <class T>
__host__ __device__ constexpr T ceil_div(T a, T b) {
  return (a + b - 1) / b;
}

struct alignas(8) Complex {
  float re, im;
};

// Loads through the read-only cache: the memory must not be written while the kernel runs.
__device__ __forceinline__ float load_readonly(const float* p) {
#ifdef __CUDACC__
  return __ldg(p);
#else
  return *p;
#endif
}

__device__ __forceinline__ uint16_t load_readonly(const uint16_t* p) {
#ifdef __CUDACC__
  return __ldg(p);
#else
  return *p;
#endif
}

__device__ __forceinline__ uint32_t load_readonly(const uint32_t* p) {
#ifdef __CUDACC__
  return __ldg(p);
#else
  uint32_t word;
  std::memcpy(&word, p, sizeof word);
  return word;
#endif
}

__device__ __forceinline__ int load_readonly(const int* p) { return int(load_readonly(reinterpret_cast<const uint32_t*>(p))); }

__device__ __forceinline__ Complex load_readonly(const Complex* p) {
#ifdef __CUDACC__
  const float2 v = __ldg(reinterpret_cast<const float2*>(p));
  return {v.x, v.y};
#else
  return *p;
#endif
}

// 16 bytes, at a multiple of 16.
struct alignas(16) Quad {
  uint32_t words[4];
};

__device__ __forceinline__ Quad load_readonly(const Quad* p) {
#ifdef __CUDACC__
  const uint4 v = __ldg(reinterpret_cast<const uint4*>(p));
  return {{v.x, v.y, v.z, v.w}};
#else
  Quad quad;
  std::memcpy(&quad, p, sizeof quad);
  return quad;
#endif
}

// The same of memory that this kernel writes.
__device__ __forceinline__ Quad load_quad(const Quad* p) {
#ifdef __CUDACC__
  const uint4 v = *reinterpret_cast<const uint4*>(p);
  return {{v.x, v.y, v.z, v.w}};
#else
  return load_readonly(p);
#endif
}

// The same where `exists`, else zeros: a predicate, where a branch would make loads wait for each other.
__device__ __forceinline__ Quad load_if(bool exists, const Quad* p) {
#ifdef __CUDACC__
  Quad out;
  asm("{.reg .pred p; setp.ne.b32 p, %5, 0; mov.b32 %0, 0; mov.b32 %1, 0; mov.b32 %2, 0; mov.b32 %3, 0;"
      "@p ld.global.nc.v4.b32 {%0, %1, %2, %3}, [%4];}"
      : "=&r"(out.words[0]), "=&r"(out.words[1]), "=&r"(out.words[2]), "=&r"(out.words[3])
      : "l"(p), "r"(int(exists)));
  return out;
#else
  return exists ? load_readonly(p) : Quad{};
#endif
}

// 8 bytes, at a multiple of 8.
struct alignas(8) Words2 {
  uint32_t x[2];
};
__device__ __forceinline__ Words2 load_if(bool exists, const Words2* p) {
#ifdef __CUDACC__
  Words2 out;
  asm("{.reg .pred p; setp.ne.b32 p, %3, 0; mov.b32 %0, 0; mov.b32 %1, 0; @p ld.global.nc.v2.b32 {%0, %1}, [%2];}"
      : "=&r"(out.x[0]), "=&r"(out.x[1])
      : "l"(p), "r"(int(exists)));
  return out;
#else
  Words2 out = {};
  if (exists) std::memcpy(&out, p, sizeof out);
  return out;
#endif
}

__device__ __forceinline__ void store_word(uint32_t* p, uint32_t word) {
#ifdef __CUDACC__
  *p = word;
#else
  std::memcpy(static_cast<void*>(p), &word, sizeof word);
#endif
}

__device__ __forceinline__ void store_quad(Quad* p, const Quad& quad) {
#ifdef __CUDACC__
  *reinterpret_cast<uint4*>(p) = make_uint4(quad.words[0], quad.words[1], quad.words[2], quad.words[3]);
#else
  std::memcpy(static_cast<void*>(p), &quad, sizeof quad);
#endif
}

// x, of which the compiler does not know that it is the same in every iteration of an outer loop: it would keep the addresses
// that follow from it, of every element of every tensor, in registers, and spill.
__device__ __forceinline__ int again(int x) {
#ifdef __CUDACC__
  asm volatile("" : "+r"(x));
#endif
  return x;
}
__device__ __forceinline__ int thread_index_again() { return again(int(threadIdx.x)); }
__device__ __forceinline__ unsigned block_index_again() { return unsigned(again(int(blockIdx.x))); }

// The block's dynamic shared memory as an array. Emulated, every access is checked for bounds, initialisation and
// races between threads.
template <class T>
class SharedArray {
 public:
  __device__ __forceinline__ SharedArray() {
#ifdef __CUDACC__
    extern __shared__ __align__(16) unsigned char dynamic_shared[];
    data_ = reinterpret_cast<T*>(dynamic_shared);
#else
    data_ = static_cast<T*>(emulator::Launch::running()->shared_memory());
#endif
  }
  __device__ __forceinline__ T load(int i) const {
    check(i, false);
    return data_[i];
  }
  __device__ __forceinline__ void store(int i, T value) const {
    check(i, true);
    data_[i] = value;
  }

  // The elements from i on as one wider value, at whose multiples they must lie.
  template <class Wide>
  __device__ __forceinline__ Wide load_as(int i) const {
    check(i, false, sizeof(Wide));
    return *reinterpret_cast<const Wide*>(data_ + i);
  }
  template <class Wide>
  __device__ __forceinline__ void store_as(int i, const Wide& value) const {
    check(i, true, sizeof(Wide));
    *reinterpret_cast<Wide*>(data_ + i) = value;
  }

#ifdef __CUDACC__
  __device__ __forceinline__ unsigned address(int i) const { return unsigned(__cvta_generic_to_shared(data_ + i)); }
#endif

  // Starts to copy 16 bytes of global memory to elements i .., or fills them with zeros; both ends 16-byte aligned. The
  // copies have arrived after wait_for_copies() and, for other threads, a barrier.
  __device__ __forceinline__ void copy_async(int i, const void* from, bool exists) const {
#ifdef __CUDACC__
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address(i)), "l"(from), "r"(exists ? 16 : 0) : "memory");
#else
    emulator::Launch::running()->copy_async(size_t(int64_t(i)) * sizeof(T), exists ? from : nullptr);
#endif
  }

 private:
#ifdef __CUDACC__
  __device__ __forceinline__ void check(int, bool, size_t = 0) const {}
#else
  static void check(int i, bool write, size_t bytes = sizeof(T)) {
    emulator::Launch::running()->check_shared(size_t(int64_t(i)) * sizeof(T), bytes, write);
  }
#endif
  T* data_;
};

// Ends a group of this thread's copies; waits until at most kPending groups of this thread are under way.
#ifdef __CUDACC__
__device__ __forceinline__ void end_copy_group() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int kPending>
__device__ __forceinline__ void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}
#else
inline void end_copy_group() { emulator::Launch::running()->end_copy_group(); }
template <int kPending>
void wait_for_copies(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  emulator::Launch::running()->wait_for_copies(kPending, file, line);
}
#endif

// Launches `kernel` and returns the launch's error; what goes wrong while it runs is reported by a later call, as
// always with CUDA. More than 48 KB of shared memory is asked for as the runtime wants it.
template <class... Parameters, class... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), unsigned blocks, unsigned threads, size_t shared_bytes,
                   cudaStream_t stream, Arguments... arguments) {
#ifdef __CUDACC__
  if (shared_bytes > 48 * 1024) {
    const cudaError_t error =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared_bytes));
    if (error != cudaSuccess) return cudaGetLastError();
  }
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(blocks);
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  const cudaError_t error = cudaLaunchKernelEx(&config, kernel, arguments...);
  return error == cudaSuccess ? cudaSuccess : cudaGetLastError();  // reads the error away
#else
  (void)stream;
  const emulator::Options& device = emulator::options();
  if (!blocks || !threads || threads > device.threads_per_block || shared_bytes > device.shared_bytes_per_block)
    return cudaErrorInvalidConfiguration;
  if (!device.record.empty()) {
    std::vector<unsigned char> parameters;
    (emulator::add_parameter<Parameters>(parameters, arguments), ...);
    emulator::record_launch(reinterpret_cast<const void*>(kernel), blocks, threads, shared_bytes, parameters);
    return cudaSuccess;
  }
  emulator::Launch({blocks}, {threads}, shared_bytes, [&] { kernel(arguments...); }).run();
  return cudaSuccess;
#endif
}

}  // namespace m2::cuda
