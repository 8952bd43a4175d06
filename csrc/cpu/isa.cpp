#include "isa.h"

#include <atomic>
#include <cstdlib>
#include <stdexcept>
#include <string>

#include "kernels.h"

#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#elif defined(__aarch64__) && defined(__APPLE__)
#include <sys/sysctl.h>
#endif

namespace m2 {
namespace {

#if defined(__aarch64__) && defined(__linux__)
bool has_bf16() { return getauxval(AT_HWCAP2) >> 14 & 1; }  // HWCAP2_BF16
bool has_f16() { return getauxval(AT_HWCAP) >> 10 & 1; }    // HWCAP_ASIMDHP
#elif defined(__aarch64__) && defined(__APPLE__)
bool has(const char* feature) {
  int value = 0;
  size_t size = sizeof value;
  return sysctlbyname(feature, &value, &size, nullptr, 0) == 0 && value;
}
bool has_bf16() { return has("hw.optional.arm.FEAT_BF16"); }
bool has_f16() { return has("hw.optional.arm.FEAT_FP16"); }
#elif defined(__aarch64__)
bool has_bf16() { return false; }
bool has_f16() { return false; }
#endif

struct Row {
  const KernelTable* table;
  bool available;
};

// Best first, scalar last.
const Row* rows() {
#if defined(__x86_64__)
  static const Row table[] = {
      {&avx512::table, __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                            __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq")},
      {&avx2::table, __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                          __builtin_cpu_supports("f16c")},
      {&scalar::table, true},
      {nullptr, false}};
#elif defined(__aarch64__)
  static const Row table[] = {
      {&neon_bf16::table, has_bf16()}, {&neon::table, true}, {&scalar::table, true}, {nullptr, false}};
#else
  static const Row table[] = {{&scalar::table, true}, {nullptr, false}};
#endif
  return table;
}

const KernelTable& find(const char* name, const char* who) {
  std::string known;
  for (const Row* row = rows(); row->table; ++row) {
    if (!row->available) continue;
    if (!name || std::string(name) == row->table->name) return *row->table;
    known += std::string(known.empty() ? "" : ", ") + row->table->name;
  }
  throw std::invalid_argument(std::string(who) + ": the instruction set must be one this machine has (" + known +
                              "), got '" + name + "'");
}

std::atomic<const KernelTable*> selected{nullptr};

}  // namespace

const KernelTable& kernels() {
  const KernelTable* table = selected.load(std::memory_order_acquire);
  if (!table) {
    const char* forced = std::getenv("M2OPS_ISA");
    table = &find(forced && *forced ? forced : nullptr, "M2OPS_ISA");
    selected.store(table, std::memory_order_release);
  }
  return *table;
}

void select_isa(const char* name) { selected.store(name ? &find(name, "select_isa") : nullptr); }

std::vector<std::string> available_isas() {
  std::vector<std::string> names;
  for (const Row* row = rows(); row->table; ++row)
    if (row->available) names.push_back(row->table->name);
  return names;
}

bool has_products(Dtype dtype) {
  if (dtype == Dtype::f32 || dtype == Dtype::f64) return true;
#if defined(__x86_64__)
  return dtype == Dtype::bf16 ? __builtin_cpu_supports("avx512bf16") : __builtin_cpu_supports("avx512fp16");
#elif defined(__aarch64__)
  return dtype == Dtype::bf16 ? has_bf16() : has_f16();
#else
  return true;  // not known; torch's products are then taken to be the better ones
#endif
}

template <> const FftKernels<float>& fft_kernels<float>() { return kernels().fft_f32; }
template <> const FftKernels<double>& fft_kernels<double>() { return kernels().fft_f64; }
template <> const ShortConvKernels<float>& short_conv_kernels<float>() { return kernels().short_conv_f32; }
template <> const ShortConvKernels<double>& short_conv_kernels<double>() { return kernels().short_conv_f64; }
template <> const MixerKernels<float>& mixer_kernels<float>() { return kernels().mixer_f32; }
template <> const MixerKernels<double>& mixer_kernels<double>() { return kernels().mixer_f64; }
template <> const GluKernels<float>& glu_kernels<float>() { return kernels().glu_f32; }
template <> const GluKernels<double>& glu_kernels<double>() { return kernels().glu_f64; }

}  // namespace m2
