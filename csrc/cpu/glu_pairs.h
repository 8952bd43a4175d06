// blockdiag_glu of bfloat16 tensors where the CPU multiplies pairs of them (AVX512-BF16). Test: tests/ops/test_glu_pairs.py.
#pragma once
#include <string>

#include "kernels.h"

namespace m2 {

constexpr int64_t kPairTokens = 96;  // at a time: their channels stay in L2 beside the weights
constexpr int64_t kPairHidden = 96;  // hidden channels that exist at a time

struct GluPairKernels {
  // The channels of `block` of out, from at most kPairTokens tokens. Products of bfloat16 numbers, sums in float32; hidden
  // channels and the result are rounded once each. `work` holds glu_pairs_work_bytes(), aligned to 64.
  void (*forward)(const GluShape&, const GluTile&, int64_t block, char* work);
  // out += the products of 16 times 2 pairs, as one instruction makes them.
  void (*multiply)(const uint32_t* a, const uint32_t* b, float* out);
};

inline int64_t glu_pairs_work_bytes(const GluShape& s) {
  const int64_t panel = 32, pairs = s.in / 2, whole = (kPairTokens + panel - 1) / panel * panel;
  return 4 * (whole * (2 * pairs + s.out) + panel * (kPairHidden + kPairHidden / 2)) + 64;
}

// Channels are taken two at a time, so blocks must not end in the middle of a pair.
inline bool glu_has_pairs(const GluShape& s) {
  return s.in % 2 == 0 && s.width % 2 == 0 && s.hidden % 2 == 0 && s.blocks_in * s.width % 4 == 0;
}

// What blockdiag_glu uses: null unless this machine has AVX512-BF16 and the AVX-512 row of the kernel table is in use.
// M2OPS_BF16=0 turns it off; M2OPS_BF16=emulate uses the twin of the instruction on any machine. Throws
// std::invalid_argument for any other value.
const GluPairKernels* glu_pairs();
// As the environment variable; nullptr: back to it.
void select_bf16(const char* mode);
std::string bf16_state();  // in words

namespace avx512_bf16 { extern const GluPairKernels glu_pairs; }
namespace bf16_emulated { extern const GluPairKernels glu_pairs; }

}  // namespace m2
