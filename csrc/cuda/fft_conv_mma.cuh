// Products of 16 x 16 matrices on tensor cores for the convolutions of 16-bit tensors (tc_conv.cu, fft_conv_mma*.cu), and the steps of
// a right-angle transform by one block whose outer pass is in float32, for the gradients: 256 R points for R = 1, 2, .. 64.
// Compiled by nvcc, or by g++ under the emulator.
//
// A pass of radix R in float32 registers twists a row and splits it into R runs of 256 points, each of which one warp
// transforms, multiplies by the spectrum and transforms back without leaving its registers: 256 = 16 x 16, and each of the
// four steps is a product with the same 16 x 16 Fourier matrix, whose sums in the layout of mma.m16n8k16 are the operand
// of the next step, the left one as they are, the right one transposed for free:
//     A[k1][n2] = F X            then times exp(-2 pi i k1 n2 / 256)
//     B[k1][k2] = A F            then times the spectrum
//     C[n2][k1] = conj(F) B^T    then times exp(+2 pi i k1 n2 / 256)
//     y[n1][n2] = conj(F) C^T
// Between the radix-R passes and the warps lies float16 in shared memory, 4 bytes a point: two trips in all.
#pragma once
#include <cstdint>
#include <cstring>

#include "element.cuh"
#include "fft_passes.cuh"
#include "mma.cuh"

namespace m2::cuda {

constexpr int kRun = 256;
constexpr int kPitch = 20;             // words from one n1 to the next: spreads a fragment over the banks
constexpr int kRunWords = 16 * kPitch;

using Words = SharedArray<uint32_t>;

struct alignas(16) Complex2 {
  Complex x[2];
};
struct alignas(16) Words4 {
  uint32_t x[4];
};

__device__ __forceinline__ int word_of(int run, int n) { return run * kRunWords + n / 16 * kPitch + n % 16; }

// The complex value of a word.
__device__ __forceinline__ Complex unpacked(uint32_t word) {
  return {half_to_float(uint16_t(word)), half_to_float(uint16_t(word >> 16))};
}

// exp(-2 pi i turns / of)
__device__ __forceinline__ Complex root(int turns, int of) {
  float sine, cosine;
  sincospif(2.0f * float(turns) / float(of), &sine, &cosine);
  return {cosine, -sine};
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

// Multiplies the outputs of the first pass by theta^j exp(-2 pi i j q / N), or its inputs on the way back by the conjugate.
// Each factor is the one before times the same root: an error of 1e-6 at most, far below that of float16.
template <int kSize, bool kConjugate, int kOuter>
__device__ __forceinline__ void outer_twiddles(int j, Complex (&x)[kOuter]) {
  const Complex step = root(j, kSize);
  Complex w = root(4 * kSize - j, 4 * kSize);
  M2_UNROLL
  for (int q = 0; q < kOuter; ++q) {
    x[q] = x[q] * (kConjugate ? conj(w) : w);
    w = w * step;
  }
}

template <int kOuter, bool kInverse>
__device__ __forceinline__ void outer_dft(Complex (&x)[kOuter]) {
  if constexpr (kOuter > 1) Dft<kOuter, kInverse>::run(x);
}
template <int kOuter>
__device__ __forceinline__ Complex outer_twist(int i) {
  if constexpr (kOuter > 1) return twist<kOuter>(i);
  else return {1.0f, 0.0f};
}

// Where a spectrum holds the first and the last digit of a frequency.
struct Order {
  int first, last;
};

// Those of a spectrum made in one kernel, as all up to 8192 points are.
template <int kPlan>
constexpr Order kOrder = {FirstPass<kPlan>::kStep / LastPass<kPlan>::kRadix, LastPass<kPlan>::kButterflies};

// Where a spectrum of this plan holds frequency f: the digits of f in the radices of the plan, first pass first.
template <int kPlan, int kPass = 0>
__device__ __forceinline__ int spectrum_index(int f, Order order) {
  using P = Pass<kPlan, kPass>;
  if constexpr (P::kStep > 1)
    return f % P::kRadix * (kPass == 0 ? order.first : P::kStep / LastPass<kPlan>::kRadix) +
           spectrum_index<kPlan, kPass + 1>(f / P::kRadix, order);
  else return f * order.last;
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

// This lane's part of the unitary Fourier matrix of 16, exp(-2 pi i k n / 16) / 4 in rows k = g + 8 a, columns
// n = 2 t + 8 b + c, and of the twiddles between the two steps of 256, exp(-2 pi i k n / 256), in the rows and columns of
// Tiles. Of six sines and their products: k n = g (2 t + c) + 8 (g b + a c) modulo 16.
__device__ __forceinline__ void make_fourier(Matrix& f, Complex (&w)[2][4]) {
  const int lane = int(threadIdx.x) % 32, g = lane / 4, t = lane % 4;
  const Complex low = 0.25f * root(g * 2 * t, 16), high = 0.25f * root(g * (2 * t + 1), 16);
  const uint32_t minus_low = g % 2 ? 0x80008000u : 0u, minus_high = 0x80000000u;
  f.re[0] = pack_half(low.re, high.re);
  f.im[0] = pack_half(low.im, high.im);
  M2_UNROLL
  for (int r = 1; r < 4; ++r) {
    const uint32_t signs = (r / 2 ? minus_low : 0u) ^ (r % 2 ? minus_high : 0u);
    f.re[r] = f.re[0] ^ signs;
    f.im[r] = f.im[0] ^ signs;
  }
  const Complex next_column = root(g, kRun), columns_8 = root(8 * g, kRun), rows_8 = root(8 * 2 * t, kRun);
  w[0][0] = root(g * 2 * t, kRun);
  w[0][1] = w[0][0] * next_column;
  w[0][2] = w[0][0] * rows_8;
  w[0][3] = w[0][1] * (rows_8 * Complex{cos_128th(8), -cos_128th(56)});
  M2_UNROLL
  for (int e = 0; e < 4; ++e) {
    const Complex x = w[0][e] * columns_8;
    w[1][e] = e / 2 ? Complex{x.im, -x.re} : x;  // 8 rows and 8 columns: a quarter turn
  }
}

// out = F x or conj(F) x, `right` holding the fragments of x for the two tiles.
template <bool kConjugate>
__device__ __forceinline__ void multiply_left(const Matrix& f, const uint32_t (&right_re)[2][2],
                                              const uint32_t (&right_im)[2][2], Tiles& out) {
  uint32_t im[4], minus_im[4];
  M2_UNROLL
  for (int r = 0; r < 4; ++r) {
    im[r] = kConjugate ? negated(f.im[r]) : f.im[r];
    minus_im[r] = kConjugate ? f.im[r] : negated(f.im[r]);
  }
  M2_UNROLL
  for (int j = 0; j < 2; ++j) {
    M2_UNROLL
    for (int e = 0; e < 4; ++e) out.re[j][e] = out.im[j][e] = 0.0f;
    mma_half(out.re[j], f.re, right_re[j]);
    mma_half(out.re[j], minus_im, right_im[j]);
    mma_half(out.im[j], f.re, right_im[j]);
    mma_half(out.im[j], im, right_re[j]);
  }
}

// out = x F. F is symmetric, so its fragments as a right operand are those it has as a left one.
__device__ __forceinline__ void multiply_right(const Matrix& x, const Matrix& f, Tiles& out) {
  M2_UNROLL
  for (int j = 0; j < 2; ++j) {
    const uint32_t re[2] = {f.re[j], f.re[j + 2]}, im[2] = {f.im[j], f.im[j + 2]};
    const uint32_t minus_im[2] = {negated(im[0]), negated(im[1])};
    M2_UNROLL
    for (int e = 0; e < 4; ++e) out.re[j][e] = out.im[j][e] = 0.0f;
    mma_half(out.re[j], x.re, re);
    mma_half(out.re[j], x.im, minus_im);
    mma_half(out.im[j], x.re, im);
    mma_half(out.im[j], x.im, re);
  }
}

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

// Sums as a right operand: taken for the transpose.
__device__ __forceinline__ void as_right(const float (&x)[2][4], uint32_t (&out)[2][2]) {
  M2_UNROLL
  for (int j = 0; j < 2; ++j)
    M2_UNROLL
    for (int r = 0; r < 2; ++r) out[j][r] = pack_half(x[r][2 * j], x[r][2 * j + 1]);
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

// x = run(x, k) for this lane's frequencies k of a run.
template <class Run>
__device__ __forceinline__ void each_value(Tiles& y, const Run& run) {
  const int lane = int(threadIdx.x) % 32, g = lane / 4, t = lane % 4;
  M2_UNROLL
  for (int j = 0; j < 2; ++j)
    M2_UNROLL
    for (int e = 0; e < 4; ++e) {
      const Complex z = run(Complex{y.re[j][e], y.im[j][e]}, g + 8 * (e / 2) + 16 * (8 * j + 2 * t + e % 2));
      y.re[j][e] = z.re;
      y.im[j][e] = z.im;
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
