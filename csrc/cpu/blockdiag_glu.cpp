// blockdiag_glu of a row, forward and backward.
#include "row.h"

namespace m2::M2_ISA {
namespace {
#include "blockdiag_glu.inl"
#include "blockdiag_glu_bwd.inl"
}  // namespace
constinit const GluKernels<float> glu_f32 = glu_row<float, lanes_of<float>()>();
constinit const GluKernels<double> glu_f64 = glu_row<double, lanes_of<double>()>();
}  // namespace m2::M2_ISA
