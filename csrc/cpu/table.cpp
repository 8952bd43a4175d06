// One row of the kernel table.
#include "row.h"

#define M2_STRING_OF(x) #x
#define M2_STRING(x) M2_STRING_OF(x)

namespace m2::M2_ISA {
constinit const KernelTable table{M2_STRING(M2_ISA), fft_f32, fft_f64, short_conv_f32, short_conv_f64,
                                  mixer_f32,         mixer_f64, glu_f32, glu_f64};
}  // namespace m2::M2_ISA
