// The avx512 row of the kernel table (AVX-512 F, BW, VL, DQ: 16 floats).
// CMake compiles this file with the flags of its instruction set; system headers come first so that no inline function
// of theirs lands inside the namespace.
#include <cstdint>
#include <immintrin.h>
#include "kernels.h"

#define M2_VEC_BYTES 64
namespace m2::avx512 {
namespace {
#include "vec.inl"
#include "convert.inl"
#include "dft.inl"
#include "fft_conv.inl"
#include "short_conv.inl"
#include "monarch_mixer.inl"
#include "blockdiag_glu.inl"
#include "kernel_row.inl"
}  // namespace
}  // namespace m2::avx512

namespace m2 {
extern constinit const KernelTable kAvx512Kernels = avx512::table("avx512");
}  // namespace m2
