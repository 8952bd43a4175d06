// The avx2 row of the kernel table (AVX2 with FMA and F16C: 8 floats).
// CMake compiles this file with the flags of its instruction set; system headers come first so that no inline function
// of theirs lands inside the namespace.
#include <cstdint>
#include <immintrin.h>
#include "kernels.h"

#define M2_VEC_BYTES 32
namespace m2::avx2 {
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
}  // namespace m2::avx2

namespace m2 {
extern constinit const KernelTable kAvx2Kernels = avx2::table("avx2");
}  // namespace m2
