// monarch_mixer of a row.
#include "row.h"

namespace m2::M2_ISA {
namespace {
#include "short_conv.inl"
#include "monarch_mixer.inl"
}  // namespace
constinit const MixerKernels<float> mixer_f32 = mixer_row<float, lanes_of<float>()>();
constinit const MixerKernels<double> mixer_f64 = mixer_row<double, lanes_of<double>()>();
}  // namespace m2::M2_ISA
