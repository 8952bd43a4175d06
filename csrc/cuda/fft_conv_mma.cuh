// Products of 16 x 16 complex matrices on tensor cores for the convolutions of 16-bit tensors (tc_conv*.cu, fft_conv_mma_short.cu).
// Sums in the layout of mma.m16n8k16 are the operand of the next product, the left one as they are, the right one transposed for free.
// Compiled by nvcc, or by g++ under the emulator.
#pragma once
#include <cstdint>
#include <cstring>

#include "dft.cuh"
#include "element.cuh"
#include "mma.cuh"

namespace m2::cuda {

constexpr int kRun = 256;
using Words = SharedArray<uint32_t>;

struct alignas(16) Complex2 {
  Complex x[2];
};
struct alignas(16) Words4 {
  uint32_t x[4];
};

// The complex value of a word.
__device__ __forceinline__ Complex unpacked(uint32_t word) {
  return {half_to_float(uint16_t(word)), half_to_float(uint16_t(word >> 16))};
}

// scale exp(-2 pi i turns / of), good to 1e-6; `of` is a power of two.
__device__ __forceinline__ Complex scaled_root(float scale, int turns, int of) {
  const int rest = turns & (of - 1);
  const float x = float(2 * rest > of ? rest - of : rest) / float(of);
#ifdef __CUDACC__
  return {scale * __cosf(6.2831853f * x), -scale * __sinf(6.2831853f * x)};
#else
  float sine, cosine;
  sincospif(2.0f * x, &sine, &cosine);
  return {scale * cosine, -scale * sine};
#endif
}

// The exponent of the largest power of two that is at most x >= 0; of 0 and the smallest numbers, -100. 300 for infinity and NaN.
__device__ __forceinline__ int exponent_of(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  return x < 7.9e-31f ? -100 : x <= 3.4e38f ? int(bits >> 23) - 127 : 300;
}

// The complex sums of a 16 x 16 product: two tiles of 8 columns. Lane 4 g + t holds, of tile j, element e: row
// g + 8 (e / 2), column 8 j + 2 t + e % 2.
struct Tiles {
  float re[2][4], im[2][4];
};

// A 16 x 16 complex matrix of float16, a register for two neighbouring columns, as mma's left operand.
struct Matrix {
  uint32_t re[4], im[4];
};

__device__ __forceinline__ uint32_t negated(uint32_t pair) { return pair ^ 0x80008000u; }

// Sums as a left operand: the layouts agree.
__device__ __forceinline__ Matrix as_left(const Tiles& x) {
  Matrix out;
  M2_UNROLL
  for (int r = 0; r < 4; ++r) {
    const int j = r / 2, e = r % 2 * 2;
    out.re[r] = pack_half(x.re[j][e], x.re[j][e + 1]);
    out.im[r] = pack_half(x.im[j][e], x.im[j][e + 1]);
  }
  return out;
}

// out = a x, of complex matrices.
__device__ __forceinline__ void multiply(const Matrix& a, const Matrix& x, Tiles& out) {
  M2_UNROLL
  for (int j = 0; j < 2; ++j) {
    const uint32_t re[2] = {x.re[2 * j], x.re[2 * j + 1]}, im[2] = {x.im[2 * j], x.im[2 * j + 1]};
    const uint32_t minus_im[2] = {negated(im[0]), negated(im[1])};
    M2_UNROLL
    for (int e = 0; e < 4; ++e) out.re[j][e] = out.im[j][e] = 0.0f;
    mma_half(out.re[j], a.re, re);
    mma_half(out.im[j], a.re, im);
    mma_half(out.re[j], a.im, minus_im);
    mma_half(out.im[j], a.im, re);
  }
}

// Sums, transposed, as a right operand.
__device__ __forceinline__ Matrix as_right(const Tiles& x) {
  Matrix out;
  M2_UNROLL
  for (int j = 0; j < 2; ++j)
    M2_UNROLL
    for (int r = 0; r < 2; ++r) {
      out.re[2 * j + r] = pack_half(x.re[r][2 * j], x.re[r][2 * j + 1]);
      out.im[2 * j + r] = pack_half(x.im[r][2 * j], x.im[r][2 * j + 1]);
    }
  return out;
}

// Row r of two tiles, four neighbouring columns, to two words; imaginary parts 128 words on.
__device__ __forceinline__ void store_row(const Words& words, int at, int r, const Tiles& x) {
  words.store_as(at, Words2{{pack_half(x.re[0][2 * r], x.re[0][2 * r + 1]), pack_half(x.re[1][2 * r], x.re[1][2 * r + 1])}});
  words.store_as(at + kRun / 2,
                 Words2{{pack_half(x.im[0][2 * r], x.im[0][2 * r + 1]), pack_half(x.im[1][2 * r], x.im[1][2 * r + 1])}});
}

template <bool kConjugate>
__device__ __forceinline__ void multiply_each(Tiles& x, const Complex (&w)[2][4]) {
  M2_UNROLL
  for (int j = 0; j < 2; ++j)
    M2_UNROLL
    for (int e = 0; e < 4; ++e) {
      const Complex y = Complex{x.re[j][e], x.im[j][e]} * (kConjugate ? conj(w[j][e]) : w[j][e]);
      x.re[j][e] = y.re;
      x.im[j][e] = y.im;
    }
}

template <Element kElement>
__device__ __forceinline__ void unpack(uint32_t pair, float (&out)[2]) {
  out[0] = widen<true>(kElement, uint16_t(pair));
  out[1] = widen<true>(kElement, uint16_t(pair >> 16));
}
template <Element kElement>
__device__ __forceinline__ uint32_t pack(float low, float high) {
  return kElement == Element::f16 ? pack_half(low, high) : pack_bfloat(low, high);
}

// The largest x >= 0 of a warp: floats that are not negative are in the order of their bits, NaN above all.
__device__ __forceinline__ float warp_max(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  bits = warp_max_bits(bits);
  memcpy(&x, &bits, sizeof x);
  return x;
}

// The largest x of the threads of a block, by way of kWarps floats of shared memory from `at` on.
template <int kWarps>
__device__ __forceinline__ float block_max(const SharedArray<float>& maxima, int at, float x) {
  x = warp_max(x);
  if (threadIdx.x % 32 == 0) maxima.store(at + int(threadIdx.x) / 32, x);
  __syncthreads();
  M2_UNROLL
  for (int i = 0; i < kWarps; ++i) x = fmaxf(x, maxima.load(at + i));
  return x;
}

// Whether rows of a tensor can be accessed `count` elements at a time, or there is no such tensor.
template <class Void>
bool aligned(const AnyStrided<Void>& x, int count) {
  return !x.data || (x.stride_seq == 1 && x.stride_batch % count == 0 && x.stride_dim % count == 0 &&
                     x.stride_batch == int(x.stride_batch) && x.stride_dim == int(x.stride_dim) && reinterpret_cast<uintptr_t>(x.data) % (2 * size_t(count)) == 0);
}

// Whether a block of the current device can have so much shared memory; cudaErrorInvalidValue if not.
inline cudaError_t fits_block(size_t bytes) {
  int device = 0, available = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess)
    error = cudaDeviceGetAttribute(&available, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  return error != cudaSuccess || bytes <= size_t(available) ? error : cudaErrorInvalidValue;
}

}  // namespace m2::cuda
