// Short convolutions on matrix tiles. CMake compiles this file twice: with AMX, as namespace m2::amx, and without, over the
// twin of the tile instructions, as m2::amx_emulated.
#include "toeplitz.h"

#include <stdexcept>
#include <string>

#include "row.h"

namespace m2::M2_ISA {
namespace {
#include "tiles.inl"
#include "toeplitz.inl"
}  // namespace
constinit const ToeplitzKernels toeplitz{Toeplitz::pack, Toeplitz::convolve, Toeplitz::product};
}  // namespace m2::M2_ISA
