#include "amx.h"

#include <atomic>
#include <cstdlib>

#include "instruction_mode.h"
#include "isa.h"
#include "kernels.h"

#if defined(M2_AMX) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace m2 {
namespace {

using Mode = InstructionMode;

std::atomic<Mode> selected{Mode::unset};
std::atomic<bool> selected_always{false};

Mode mode() {
  Mode now = selected.load();
  if (now == Mode::unset) selected.store(now = parse_instruction_mode(std::getenv("M2OPS_AMX"), "M2OPS_AMX"));
  return now;
}

#if defined(M2_AMX) && defined(__linux__)
bool in_cpu() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  return avx512 && __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d >> 22 & 1) && (d >> 24 & 1);  // AMX-BF16, AMX-TILE
}

// Tiles are 8 KB that the system saves for a thread only if the process has asked for it.
bool granted() {
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

// Small whole numbers: every order of summation gives the same bits.
bool right() {
  uint16_t a[16 * 32], b[16 * 32];
  float ours[16 * 16], twin[16 * 16];
  for (int i = 0; i < 16 * 32; ++i) {
    const float first = float(i * 37 % 61 - 30), second = float(i * 53 % 59 - 29);
    a[i] = uint16_t(__builtin_bit_cast(uint32_t, first) >> 16), b[i] = uint16_t(__builtin_bit_cast(uint32_t, second) >> 16);
  }
  amx::toeplitz.product(a, b, ours);
  amx_emulated::toeplitz.product(a, b, twin);
  for (int i = 0; i < 16 * 16; ++i)
    if (ours[i] != twin[i]) return false;
  return true;
}

const char* missing() {
  static const char* const reason = !in_cpu() ? "this CPU has none"
                                    : !granted() ? "the system does not grant it"
                                    : !right() ? "a product of tiles came out wrong" : nullptr;
  return reason;
}
const ToeplitzKernels& instructions() { return amx::toeplitz; }
#else
const char* missing() { return "not in this build"; }
const ToeplitzKernels& instructions() { return amx_emulated::toeplitz; }
#endif

bool best_row_in_use() { return available_isas().front() == kernels().name; }

}  // namespace

const ToeplitzKernels* toeplitz_kernels() {
  const Mode now = mode();
  if (now == Mode::off || (now == Mode::automatic && missing()) || !best_row_in_use()) return nullptr;
  return now == Mode::emulated ? &amx_emulated::toeplitz : &instructions();
}

bool toeplitz_always() { return selected_always; }

void select_amx(const char* name, bool always) {
  selected = name ? parse_instruction_mode(name, "select_amx") : Mode::unset;
  selected_always = always;
}

std::string amx_state() {
  const Mode now = mode();
  if (now == Mode::off) return "off (M2OPS_AMX=0)";
  if (now == Mode::automatic && missing()) return std::string("no: ") + missing();
  const std::string how = now == Mode::emulated ? "emulated (M2OPS_AMX=emulate)" : "yes";
  return how + (best_row_in_use() ? ", in use for bfloat16" : ", not in use: another instruction set is forced");
}

}  // namespace m2
