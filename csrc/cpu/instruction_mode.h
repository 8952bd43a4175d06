// How an environment variable says whether instructions that few CPUs have are used: M2OPS_AMX (amx.cpp), M2OPS_BF16
// (bf16.cpp). Tests: tests/ops/test_amx.py, tests/ops/test_glu_pairs.py.
#pragma once
#include <stdexcept>
#include <string>

namespace m2 {

enum class InstructionMode { unset, off, automatic, emulated };

// Of the text of a variable, null or empty where it is not set. Throws std::invalid_argument in the name of `who`.
inline InstructionMode parse_instruction_mode(const char* text, const char* who) {
  const std::string mode = text ? text : "";
  if (mode.empty() || mode == "1") return InstructionMode::automatic;
  if (mode == "0") return InstructionMode::off;
  if (mode == "emulate") return InstructionMode::emulated;
  throw std::invalid_argument(std::string(who) + ": must be 1 (where the machine has it), 0 (off) or emulate (slow, for "
                              "tests), got '" + mode + "'");
}

}  // namespace m2
