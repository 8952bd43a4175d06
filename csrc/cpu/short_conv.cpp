// short_conv of a row.
#include "row.h"

namespace m2::M2_ISA {
namespace {
#include "short_conv.inl"
}  // namespace
constinit const ShortConvKernels<float> short_conv_f32 = short_conv_row<float, lanes_of<float>()>();
constinit const ShortConvKernels<double> short_conv_f64 = short_conv_row<double, lanes_of<double>()>();
}  // namespace m2::M2_ISA
