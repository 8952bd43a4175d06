// The scalar row of the kernel table (plain C++, one element at a time: what any machine runs).
// CMake compiles this file with the flags of its instruction set; system headers come first so that no inline function
// of theirs lands inside the namespace.
#include <cstdint>

#include "kernels.h"

#define M2_VEC_BYTES 1
namespace m2::scalar {
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
}  // namespace m2::scalar

namespace m2 {
extern constinit const KernelTable kScalarKernels = scalar::table("scalar");
}  // namespace m2
