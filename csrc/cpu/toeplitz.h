// Short convolutions of bfloat16 rows as products of matrix tiles (AMX): what the kernel takes. docs/kernels.md, "Short
// convolutions on AMX". Raw pointers and sizes only. Test: tests/ops/test_amx.py, csrc/testing/test_tiles.cpp.
#pragma once
#include <cstdint>

namespace m2 {

constexpr int64_t kToeplitzRows = 32;  // rows of the batch that are worked on together

// Positions of a row rounded up to whole tiles.
inline int64_t toeplitz_positions(int64_t seqlen) { return (seqlen + 31) / 32 * 32; }

// Up to kToeplitzRows rows of one channel, bfloat16, positions contiguous; strides from row to row in elements.
struct ToeplitzRows {
  const void *u, *pregate, *postgate;  // the gates may be null
  void* out;
  int64_t stride_u, stride_pre, stride_post, stride_out, rows, seqlen;
  bool causal;  // all taps at negative lags are zero
};

struct ToeplitzKernels {
  // Cuts the taps of a channel into two bfloat16 numbers each, the nearest one and what it leaves, and lays them out as
  // `pairs`. taps [2 * positions]: lag i at [i + positions], zero outside -(seqlen - 1) .. seqlen - 1; destroyed.
  void (*pack)(int64_t positions, float* taps, uint32_t* pairs);
  // out[n] = post[n] * sum over k of (u pre)[k] h[n - k]. Error, before out is rounded: 2^-16 of the sum of magnitudes. `work`
  // holds toeplitz_work_bytes().
  void (*convolve)(const ToeplitzRows&, const uint32_t* pairs, void* work);
  // sum [16][16] = a [16][32] times b [16 pairs of rows][16][2], one product of whole tiles.
  void (*product)(const uint16_t* a, const uint16_t* b, float* sum);
};
inline int64_t toeplitz_pairs(int64_t positions) { return 4 * positions; }
// A little apart, so that the 16 rows of a tile do not share sets of the cache.
inline int64_t toeplitz_pitch(int64_t positions) { return positions + 32; }
inline int64_t toeplitz_work_bytes(int64_t positions) {
  return 2 * kToeplitzRows * toeplitz_pitch(positions) * 2 + kToeplitzRows * 32 * 4;
}

namespace amx { extern const ToeplitzKernels toeplitz; }           // the instructions; x86-64 only
namespace amx_emulated { extern const ToeplitzKernels toeplitz; }  // their twin in plain C++

}  // namespace m2
