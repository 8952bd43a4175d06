// fft_conv of a row, computed in float.
#include "row.h"

namespace m2::M2_ISA {
namespace {
#include "dft.inl"
#include "fft_signals.inl"
#include "fft_outer.inl"
#include "fft_transform.inl"
#include "fft_conv.inl"
}  // namespace
constinit const FftKernels<float> fft_f32 = fft_row<float, lanes_of<float>()>();
}  // namespace m2::M2_ISA
