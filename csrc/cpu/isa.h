// What this CPU has, and which row of the kernel table is in use. Test: tests/ops/test_isa.py.
#pragma once
#include <string>
#include <vector>

namespace m2 {

struct KernelTable;
enum class Dtype;

// The row in use: forced by the environment variable M2OPS_ISA or by select_isa(), else the best this CPU has.
// Throws std::invalid_argument naming the available ones if the forced name is unknown or not available.
const KernelTable& kernels();
void select_isa(const char* name);  // nullptr: back to the default
std::vector<std::string> available_isas();  // best first
bool has_products(Dtype);  // whether this CPU has instructions that multiply numbers of the dtype

}  // namespace m2
