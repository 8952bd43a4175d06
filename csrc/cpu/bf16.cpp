// Which kernels multiply pairs of bfloat16 numbers. Test: tests/ops/test_glu_pairs.py.
#include <atomic>
#include <cstdlib>

#include "glu_pairs.h"
#include "instruction_mode.h"
#include "isa.h"

namespace m2 {
namespace {

using Mode = InstructionMode;

std::atomic<Mode> selected{Mode::unset};

Mode mode() {
  Mode now = selected.load();
  if (now == Mode::unset) selected.store(now = parse_instruction_mode(std::getenv("M2OPS_BF16"), "M2OPS_BF16"));
  return now;
}

#if defined(M2_AVX512_BF16)
bool in_cpu() { return __builtin_cpu_supports("avx512bf16"); }
const GluPairKernels& instructions() { return avx512_bf16::glu_pairs; }
#else
bool in_cpu() { return false; }
const GluPairKernels& instructions() { return bf16_emulated::glu_pairs; }
#endif
bool row_in_use() { return std::string(kernels().name) == "avx512"; }

}  // namespace

const GluPairKernels* glu_pairs() {
  const Mode now = mode();
  if (now == Mode::emulated) return &bf16_emulated::glu_pairs;
  return now == Mode::automatic && in_cpu() && row_in_use() ? &instructions() : nullptr;
}

void select_bf16(const char* name) { selected = name ? parse_instruction_mode(name, "select_bf16") : Mode::unset; }

std::string bf16_state() {
  const Mode now = mode();
  if (now == Mode::off) return "off (M2OPS_BF16=0)";
  if (now == Mode::emulated) return "emulated (M2OPS_BF16=emulate), in use for the gated MLP";
  if (!in_cpu()) return "no: this CPU, or this build, has none";
  return row_in_use() ? "yes, in use for the gated MLP" : "yes, not in use: another instruction set is forced";
}

}  // namespace m2
