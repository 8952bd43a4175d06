// Whether products of matrix tiles (AMX) are used, by the instructions or by their twin. Test: tests/ops/test_amx.py.
#pragma once
#include <string>

#include "toeplitz.h"

namespace m2 {

// What operators use: null unless this machine has AMX-BF16 for bfloat16, the system lets this process use it, a product of
// tiles came out right, and the best row of the kernel table is in use. M2OPS_AMX=0 turns it off; M2OPS_AMX=emulate uses the
// twin of the instructions wherever they would be used. Throws std::invalid_argument for any other value.
const ToeplitzKernels* toeplitz_kernels();
// Whether to use them for every convolution they can do, whatever it costs: for tests.
bool toeplitz_always();
// As the environment variable; nullptr: back to it.
void select_amx(const char* mode, bool always);
std::string amx_state();  // in words

}  // namespace m2
