// What every file of a row of the kernel table starts with. CMake compiles those files once per instruction set, with its
// flags, M2_ISA (its name and namespace) and M2_VEC_BYTES (how wide a register is). System headers come first, so that no
// inline function of theirs lands inside the namespace; all else is local to the file, so that none is shared by rows.
#pragma once
#include <cstdint>
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include "kernels.h"

namespace m2::M2_ISA {
namespace {
#include "vec.inl"
#include "convert.inl"
}  // namespace

// One file each.
extern const FftKernels<float> fft_f32;
extern const FftKernels<double> fft_f64;
extern const ShortConvKernels<float> short_conv_f32;
extern const ShortConvKernels<double> short_conv_f64;
extern const MixerKernels<float> mixer_f32;
extern const MixerKernels<double> mixer_f64;
extern const GluKernels<float> glu_f32;
extern const GluKernels<double> glu_f64;
}  // namespace m2::M2_ISA
