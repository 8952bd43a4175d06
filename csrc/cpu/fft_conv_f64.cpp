// fft_conv of a row, computed in double.
#include "row.h"

namespace m2::M2_ISA {
namespace {
#include "dft.inl"
#include "fft_signals.inl"
#include "fft_outer.inl"
#include "fft_transform.inl"
#include "fft_conv.inl"
}  // namespace
constinit const FftKernels<double> fft_f64 = fft_row<double, lanes_of<double>()>();
}  // namespace m2::M2_ISA
