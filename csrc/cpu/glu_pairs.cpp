// blockdiag_glu by products of pairs. CMake compiles this file twice: with AVX512-BF16, as namespace m2::avx512_bf16, and
// without, over the twin of the instruction, as m2::bf16_emulated.
#include "glu_pairs.h"

#include "row.h"

namespace m2::M2_ISA {
namespace {
#include "blockdiag_glu.inl"
#include "glu_pairs.inl"
}  // namespace
constinit const GluPairKernels glu_pairs{GluPairs::forward, GluPairs::multiply};
}  // namespace m2::M2_ISA
