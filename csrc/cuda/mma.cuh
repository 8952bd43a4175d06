// Wrappers of the instructions that have no name in CUDA C++ (inline PTX, this file only), with emulated twins; float16
// and bfloat16 as bits. Test: csrc/testing/test_cuda_emulator.cpp.
#pragma once
#include "common.cuh"

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#else
#include <cstring>
#endif

namespace m2::cuda {

__device__ __forceinline__ float bfloat_to_float(uint16_t bits) {
#ifdef __CUDACC__
  return __uint_as_float(uint32_t(bits) << 16);
#else
  const uint32_t wide = uint32_t(bits) << 16;
  float value;
  std::memcpy(&value, &wide, sizeof value);
  return value;
#endif
}

// Nearest, ties to even; too large becomes infinite, NaN stays NaN.
__device__ __forceinline__ uint16_t float_to_bfloat(float value) {
#ifdef __CUDACC__
  return __bfloat16_as_ushort(__float2bfloat16_rn(value));
#else
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  if (value != value) return uint16_t(bits >> 16 | 0x40);
  return uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
#endif
}

__device__ __forceinline__ float half_to_float(uint16_t bits) {
#ifdef __CUDACC__
  return __half2float(__ushort_as_half(bits));
#else
  // Exact, subnormal ones too, and cheap: the compiler's own conversion is a call where a CPU may lack the instruction.
  uint32_t wide = uint32_t(bits & 0x7fff) << 13;
  float value;
  std::memcpy(&value, &wide, sizeof value);
  value *= 0x1p112f;
  std::memcpy(&wide, &value, sizeof value);
  if ((bits & 0x7c00) == 0x7c00) wide = 0x7f800000u | uint32_t(bits & 0x3ff) << 13;
  wide |= uint32_t(bits & 0x8000) << 16;
  std::memcpy(&value, &wide, sizeof value);
  return value;
#endif
}

__host__ __device__ __forceinline__ uint16_t float_to_half(float value) {
#ifdef __CUDACC__
  return __half_as_ushort(__float2half_rn(value));
#else
  const _Float16 half = _Float16(value);
  uint16_t bits;
  std::memcpy(&bits, &half, sizeof bits);
  return bits;
#endif
}

// Two values in a register, `low` in the low half: one register of a matrix operand. On a GPU one instruction; a conversion
// each and putting them together are three or more.
__device__ __forceinline__ uint32_t pack_half(float low, float high) {
#ifdef __CUDACC__
  uint32_t pair;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
#else
  return uint32_t(float_to_half(low)) | uint32_t(float_to_half(high)) << 16;
#endif
}
__device__ __forceinline__ uint32_t pack_bfloat(float low, float high) {
#ifdef __CUDACC__
  uint32_t pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
#else
  return uint32_t(float_to_bfloat(low)) | uint32_t(float_to_bfloat(high)) << 16;
#endif
}

// The largest x of a warp.
__device__ __forceinline__ uint32_t warp_max_bits(uint32_t x) {
#ifdef __CUDACC__
  return __reduce_max_sync(~0u, x);
#else
  for (int bits = 16; bits > 0; bits /= 2) {
    const uint32_t other = __shfl_xor_sync(~0u, x, bits);
    x = x > other ? x : other;
  }
  return x;
#endif
}

#ifndef __CUDACC__
// sum += left right, one product after the other. Every index is a constant, so the sanitizers, which would take three
// quarters of the time, have nothing to see.
__attribute__((no_sanitize("address", "undefined"))) inline void multiply_tile(const float (&left)[16][16],
                                                                                const float (&right)[16][8],
                                                                                float (&sum)[16][8]) {
  typedef float Row __attribute__((vector_size(32), aligned(4), may_alias));
  for (int row = 0; row < 16; ++row) {
    Row total = *reinterpret_cast<const Row*>(sum[row]);
    for (int k = 0; k < 16; ++k) total += left[row][k] * *reinterpret_cast<const Row*>(right[k]);
    *reinterpret_cast<Row*>(sum[row]) = total;
  }
}

// c += a b for the fragments of PTX's mma.m16n8k16: lane 4 g + t holds, two neighbouring values a register,
//   a[r]: row g + 8 (r % 2), columns 2 t + 8 (r / 2) ..;  b[r]: rows 2 t + 8 r .., column g;
//   c[r]: row g + 8 (r / 2), column 2 t + r % 2.
template <float (*to_float)(uint16_t)>
void emulated_mma(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], const char* file, int line) {
  struct Fragments {
    uint32_t a[4], b[2];
    float c[4];
  };
  struct Result {
    float c[4];
  };
  Fragments mine;
  std::memcpy(mine.a, a, sizeof a);
  std::memcpy(mine.b, b, sizeof b);
  std::memcpy(mine.c, c, sizeof c);
  const Result result = emulator::Launch::running()->meet<Fragments, Result>(
      ~0u, mine,
      [](const Fragments* const (&in)[32], Result* const (&out)[32]) {
        float left[16][16], right[16][8], sum[16][8];
        for (int lane = 0; lane < 32; ++lane)
          for (int half = 0; half < 2; ++half) {
            const int g = lane / 4, pair = lane % 4 * 2 + half;
            for (int r = 0; r < 4; ++r)
              left[g + r % 2 * 8][pair + r / 2 * 8] = to_float(uint16_t(in[lane]->a[r] >> 16 * half));
            for (int r = 0; r < 2; ++r) right[pair + r * 8][g] = to_float(uint16_t(in[lane]->b[r] >> 16 * half));
          }
        const auto at = [&](int lane, int r) -> float& { return sum[lane / 4 + r / 2 * 8][lane % 4 * 2 + r % 2]; };
        for (int lane = 0; lane < 32; ++lane)
          for (int r = 0; r < 4; ++r) at(lane, r) = in[lane]->c[r];
        multiply_tile(left, right, sum);
        for (int lane = 0; lane < 32; ++lane)
          for (int r = 0; r < 4; ++r) out[lane]->c[r] = at(lane, r);
      },
      file, line);
  std::memcpy(c, result.c, sizeof c);
}
#endif

// c += a b, 16 x 8 += (16 x 16) (16 x 8), by the whole warp: float16 or bfloat16 operands, float32 sums. Fragments as
// in the emulated twin above.
#ifdef __CUDACC__
#define M2_MMA(NAME, TYPE)                                                                                         \
  __device__ __forceinline__ void NAME(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {            \
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." TYPE "." TYPE ".f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9}," \
                 "{%0,%1,%2,%3};"                                                                                  \
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])                                                  \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));                              \
  }
M2_MMA(mma_half, "f16")
M2_MMA(mma_bfloat, "bf16")
#undef M2_MMA
#else
inline void mma_half(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                     const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  emulated_mma<half_to_float>(c, a, b, file, line);
}
inline void mma_bfloat(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                       const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  emulated_mma<bfloat_to_float>(c, a, b, file, line);
}
#endif

// Four 8 x 8 matrices of 16-bit values from shared memory, each transposed. Lane 8 i + r names row r of matrix i, 16 bytes;
// of word i, lane 4 g + t receives rows 2 t (low) and 2 t + 1 of column g: a part of mma's right operand.
__device__ __forceinline__ Quad load_transposed(const SharedArray<uint32_t>& words, int at
#ifndef __CUDACC__
                                                , const char* file = __builtin_FILE(), int line = __builtin_LINE()
#endif
) {
#ifdef __CUDACC__
  Quad out;
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(out.words[0]), "=r"(out.words[1]), "=r"(out.words[2]), "=r"(out.words[3])
               : "r"(words.address(at))
               : "memory");
  return out;
#else
  return emulator::Launch::running()->meet<Quad, Quad>(
      ~0u, words.load_as<Quad>(at),
      [](const Quad* const (&in)[32], Quad* const (&out)[32]) {
        for (int lane = 0; lane < 32; ++lane)
          for (int i = 0; i < 4; ++i) {
            uint16_t rows[2][8];
            for (int r = 0; r < 2; ++r) std::memcpy(rows[r], in[8 * i + lane % 4 * 2 + r]->words, sizeof rows[r]);
            out[lane]->words[i] = uint32_t(rows[0][lane / 4]) | uint32_t(rows[1][lane / 4]) << 16;
          }
      },
      file, line);
#endif
}

}  // namespace m2::cuda
