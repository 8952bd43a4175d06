// The transforms of csrc/cuda/fft_conv.cu: their passes, the layout of their twiddle table, its contents.
// C++17 standard library only. Test: csrc/testing/test_fft_conv_cuda.cpp.
//
// A right-angle transform of N real or complex values x[n] is F[f] = sum_n theta^n x[n] exp(-2 pi i n f / N) with
// theta = exp(i pi / (2 N)). It runs in place by decimation in frequency: pass p splits every run of `length` points
// (N in pass 0) into `radix` runs of `step` = length / radix points. In a run, butterfly j (0 <= j < step) takes the
// points j + i step, i < radix, transforms them, multiplies output q by the twiddle
//     pass 0:  exp(-2 pi i j q / length) theta^j       (the twist is free: theta^(i step) is a constant of the radix)
//     later:   exp(-2 pi i j q / length)
// and stores it at j + q step. The last pass has step 1 and no twiddle. The inverse runs the same passes backwards
// with conjugate factors, so neither direction reorders anything.
#pragma once
#include <cstdint>
#include <vector>

namespace m2::cuda {

constexpr int kMaxPasses = 4;

struct FftPlan {
  int size;
  int threads;  // of the block that owns a row
  int passes;
  int radix[kMaxPasses];

  // Length of the runs that pass `pass` splits.
  constexpr int length(int pass) const {
    int value = size;
    for (int p = 0; p < pass; ++p) value /= radix[p];
    return value;
  }
  constexpr int step(int pass) const { return length(pass) / radix[pass]; }
  // First entry of the pass in the table; entries are [q][j], q < radix, j < step.
  constexpr int table_offset(int pass) const {
    int value = 0;
    for (int p = 0; p < pass; ++p) value += length(p);
    return value;
  }
  constexpr int table_entries() const { return table_offset(passes - 1); }
};

// Radix 16 keeps 32 values in registers and saves passes; 8192 and 16384 take radix 8 where 16 does not divide.
constexpr FftPlan kFftPlans[] = {
    {256, 32, 3, {8, 8, 4}},      {512, 64, 3, {8, 8, 8}},       {1024, 64, 3, {16, 8, 8}},
    {2048, 128, 3, {16, 16, 8}},  {4096, 256, 3, {16, 16, 16}},  {8192, 512, 4, {16, 8, 8, 8}},
    {16384, 512, 4, {16, 16, 8, 8}}};
constexpr int kNumFftPlans = int(sizeof(kFftPlans) / sizeof(kFftPlans[0]));

// The plan of this size, or null: sizes are the powers of two from 256 to 16384.
const FftPlan* find_fft_plan(int64_t size);

// The table in the layout above, interleaved complex, computed in double and rounded once.
std::vector<float> fft_table(const FftPlan& plan);

}  // namespace m2::cuda
