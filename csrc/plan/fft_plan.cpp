#include "fft_plan.h"

#include <cmath>
#include <map>
#include <mutex>
#include <stdexcept>
#include <string>

namespace m2 {
namespace {

constexpr double kPi = 3.14159265358979323846;

// Odd radices first, then as few powers of two up to 16 as will do, ending with `last`.
std::vector<int> radices_of(int64_t n, int last) {
  std::vector<int> out;
  n /= last;
  for (int odd : {5, 3})
    while (n % odd == 0) out.push_back(odd), n /= odd;
  int bits = 0;
  while (int64_t{1} << bits < n) ++bits;
  for (int passes = (bits + 3) / 4; passes > 0; --passes) {
    out.push_back(1 << bits / passes);
    bits -= bits / passes;
  }
  out.push_back(last);
  return out;
}

// Frequency found at each position after decimation in frequency without reordering.
std::vector<int64_t> output_order(int64_t n, const std::vector<int>& radices) {
  std::vector<int64_t> order(n);
  for (int64_t position = 0; position < n; ++position) {
    int64_t rest = position, length = n, scale = 1, frequency = 0;
    for (int radix : radices) {
      length /= radix;
      frequency += (rest / length) * scale;
      rest %= length;
      scale *= radix;
    }
    order[position] = frequency;
  }
  return order;
}

template <class T>
std::vector<std::vector<T>> pass_twiddles(int64_t n, const std::vector<int>& radices) {
  std::vector<std::vector<T>> passes;
  int64_t length = n;
  for (int radix : radices) {
    const int64_t step = length / radix;
    std::vector<T> table;
    for (int64_t j = 0; j < step; ++j)
      for (int q = 1; q < radix; ++q) {
        const double angle = -2 * kPi * double(j * q % length) / double(length);
        table.push_back(T(std::cos(angle)));
        table.push_back(T(std::sin(angle)));
      }
    passes.push_back(std::move(table));
    length = step;
  }
  return passes;
}

double butterfly_flops(int radix) {  // additions and multiplications of one butterfly on complex values
  switch (radix) {
    case 2: return 4;
    case 3: return 16;
    case 4: return 16;
    case 5: return 40;
    case 8: return 60;
    default: return 168;
  }
}

double dft_flops(int64_t n, const std::vector<int>& radices) {
  double flops = 0;
  for (int radix : radices) flops += double(n / radix) * (butterfly_flops(radix) + 6 * (radix - 1));
  flops -= double(n / radices.back()) * 6 * (radices.back() - 1);  // the last pass has no twiddles
  return flops;
}

}  // namespace

double FftPlan::flops() const {
  const double outer = double(n2) * dft_flops(n1, radices1), inner = double(n1) * dft_flops(n2, radices2);
  return 2 * (outer + inner) + double(size) * (6 + 6 + 6 + 2 + 3 + 2);  // twiddles, spectrum, twists, gates
}

int64_t FftPlan::table_bytes() const { return 2 * size * int64_t(sizeof(float)); }

int64_t FftPlan::scratch_elements() const { return 2 * n1 * lanes; }

int64_t fft_size_for(int64_t seqlen) {
  if (seqlen < 1 || seqlen > kMaxFftSize)
    throw std::invalid_argument("fft_conv: seqlen must be between 1 and " + std::to_string(kMaxFftSize) + ", got " +
                                std::to_string(seqlen) + "; split longer signals");
  int64_t best = kMaxFftSize;
  for (int64_t odd : {1, 3, 5}) {
    int64_t size = kMinFftSize * odd;
    while (size < seqlen) size *= 2;
    if (size < best) best = size;
  }
  return best;
}

int fft_lanes(int64_t size) {
  for (int lanes : {16, 8})
    if (size % (lanes * kLanes) == 0) return lanes;
  return 4;
}

FftPlan make_fft_plan(int64_t size) {
  if (size < kMinFftSize || size > kMaxFftSize || fft_size_for(size) != size)
    throw std::invalid_argument("fft_conv: fft_size must be 64 * 2^a * {1, 3, 5}, got " +
                                std::to_string(size) + "; fft_size(seqlen) gives the right one");
  FftPlan plan;
  plan.size = size;
  plan.lanes = fft_lanes(size);
  plan.n1 = plan.lanes;
  while (size % (2 * plan.n1 * kLanes) == 0 && 4 * plan.n1 * plan.n1 <= size) plan.n1 *= 2;  // near sqrt(size)
  plan.n2 = size / plan.n1;
  plan.radices1 = radices_of(plan.n1, plan.lanes);
  plan.radices2 = radices_of(plan.n2, int(kLanes));
  return plan;
}

template <class T>
std::shared_ptr<const FftTables<T>> fft_tables(int64_t size) {
  static std::mutex mutex;
  static std::map<int64_t, std::shared_ptr<const FftTables<T>>> cache;
  std::lock_guard<std::mutex> lock(mutex);
  auto& entry = cache[size];
  if (entry) return entry;

  auto tables = std::make_shared<FftTables<T>>();
  tables->plan = make_fft_plan(size);
  const int64_t n1 = tables->plan.n1, n2 = tables->plan.n2, lanes = tables->plan.lanes;
  for (int64_t row = 0; row < n1; ++row) {
    const double angle = kPi * double(row) / (2.0 * double(n1));
    tables->twist.push_back(T(std::cos(angle)));
    tables->twist.push_back(T(std::sin(angle)));
  }
  // theta[row * n2 + column] = twist[row] * exp(i pi column / (2 size)); the second factor rides on the twiddle.
  const auto order = output_order(n1, tables->plan.radices1);
  tables->twiddle.resize(2 * size);
  for (int64_t row = 0; row < n1; ++row)
    for (int64_t column = 0; column < n2; ++column) {
      const double turns = double(order[row] * column % size) / double(size);
      const double angle = -2 * kPi * turns + kPi * double(column) / (2.0 * double(size));
      T* block = tables->twiddle.data() + 2 * (row * n2 + column / lanes * lanes) + column % lanes;
      block[0] = T(std::cos(angle));
      block[lanes] = T(std::sin(angle));
    }
  tables->pass1 = pass_twiddles<T>(n1, tables->plan.radices1);
  tables->pass2 = pass_twiddles<T>(n2, tables->plan.radices2);
  entry = tables;
  return entry;
}

template std::shared_ptr<const FftTables<float>> fft_tables<float>(int64_t);
template std::shared_ptr<const FftTables<double>> fft_tables<double>(int64_t);

}  // namespace m2
