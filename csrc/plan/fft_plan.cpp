#include "fft_plan.h"

#include <algorithm>
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

// From here on the columns of a row lie so far apart that reading them waits for memory: a first pass, which reads along
// the row, leaves transforms that L2 holds.
constexpr int64_t kOuterFrom = 12288;
constexpr int64_t kOuter = 4, kMaxOuter = 8;
// Up to here one pass down the columns, with n1 = lanes, saves a pass.
constexpr int64_t kOneColumnPass = 3072;

void check_size(int64_t size) {
  if (size < kMinFftSize || size > kMaxFftSize || fft_size_for(size) != size)
    throw std::invalid_argument("fft_conv: fft_size must be 64 * 2^a * {1, 3, 5}, got " +
                                std::to_string(size) + "; fft_size(seqlen) gives the right one");
}

// Factors chosen and in use, by size.
class Choices {
 public:
  static Choices& instance() {
    static Choices choices;
    return choices;
  }
  // Marked as used for good if `use`.
  FftFactors get(int64_t size, bool use) {
    std::lock_guard<std::mutex> lock(mutex_);
    const auto found = chosen_.find(size);
    const FftFactors factors = found == chosen_.end() ? usual_fft_factors(size) : found->second;
    if (use) used_[size] = factors;
    return factors;
  }
  // False if others are in use.
  bool set(int64_t size, FftFactors factors) {
    std::lock_guard<std::mutex> lock(mutex_);
    const auto used = used_.find(size);
    if (used != used_.end() && !(used->second == factors)) return false;
    chosen_[size] = factors;
    return true;
  }

 private:
  std::mutex mutex_;
  std::map<int64_t, FftFactors> chosen_, used_;
};

}  // namespace

double FftPlan::flops() const {
  const double columns = double(n2) * dft_flops(n1, radices1), rows = double(n1) * dft_flops(n2, radices2);
  double flops = 2 * double(outer) * (columns + rows) + double(size) * (6 + 6 + 6 + 2 + 3 + 2);  // products
  if (outer > 1) flops += 2 * double(inner()) * (butterfly_flops(int(outer)) + 6 * (2 * double(outer) + 2));
  return flops;
}

int64_t FftPlan::table_bytes() const { return (2 * inner() + (outer > 1 ? 4 * inner() : 0)) * int64_t(sizeof(float)); }

// Columns; rows of a signal and of a gradient that the outer pass leaves, real and imaginary parts.
int64_t FftPlan::scratch_elements() const { return 2 * n1 * lanes + (outer > 1 ? 4 * outer * pitch() : 0); }

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

// The best, or nearly, of those that search_fft_plans measured on CPUs with 32 KB of L1 and 512 KB of L2 a core.
FftFactors usual_fft_factors(int64_t size) {
  check_size(size);
  FftFactors f{size < kOuterFrom ? 1 : kOuter, fft_lanes(size)};
  const int64_t inner = size / f.outer;
  if (inner <= kOneColumnPass) return f;
  while (inner % (2 * f.n1 * kLanes) == 0 && 4 * f.n1 * f.n1 < inner) f.n1 *= 2;
  return f;
}

std::vector<FftFactors> fft_factors(int64_t size) {
  check_size(size);
  const int64_t lanes = fft_lanes(size);
  std::vector<FftFactors> all;
  for (int64_t outer = 1; outer <= kMaxOuter; outer *= 2) {
    if (outer > 1 && (lanes != kLanes || size % (outer * kLanes * kLanes) != 0)) break;
    for (int64_t n1 = lanes; size % (outer * n1 * kLanes) == 0; n1 *= 2) all.push_back({outer, n1});
  }
  return all;
}

FftPlan make_fft_plan(int64_t size, FftFactors factors) {
  const auto all = fft_factors(size);
  if (std::find(all.begin(), all.end(), factors) == all.end())
    throw std::invalid_argument("fft_conv: factors (outer, n1) must be among those of fft_factors(" + std::to_string(size) +
                                "), got (" + std::to_string(factors.outer) + ", " + std::to_string(factors.n1) + ")");
  FftPlan plan;
  plan.size = size;
  plan.outer = factors.outer;
  plan.lanes = fft_lanes(size);
  plan.n1 = factors.n1;
  plan.n2 = size / (factors.outer * factors.n1);
  plan.radices1 = radices_of(plan.n1, plan.lanes);
  plan.radices2 = radices_of(plan.n2, int(kLanes));
  return plan;
}

FftPlan make_fft_plan(int64_t size) {
  check_size(size);
  return make_fft_plan(size, Choices::instance().get(size, false));
}

void choose_fft_factors(int64_t size, FftFactors factors) {
  make_fft_plan(size, factors);
  if (!Choices::instance().set(size, factors))
    throw std::invalid_argument("fft_conv: the factors of " + std::to_string(size) +
                                " points must be chosen before their first use; choose them in a new process");
}

template <class T>
std::shared_ptr<const FftTables<T>> make_fft_tables(const FftPlan& plan) {
  auto tables = std::make_shared<FftTables<T>>();
  tables->plan = plan;
  const int64_t n1 = plan.n1, n2 = plan.n2, lanes = plan.lanes, inner = plan.inner();
  const auto put_pair = [](std::vector<T>& table, double angle) {
    table.push_back(T(std::cos(angle)));
    table.push_back(T(std::sin(angle)));
  };
  for (int64_t row = 0; row < n1; ++row) put_pair(tables->twist, kPi * double(row) / (2.0 * double(n1)));
  const auto put_lane = [](std::vector<T>& table, int64_t at, int64_t lanes, double angle) {
    table[at] = T(std::cos(angle));
    table[at + lanes] = T(std::sin(angle));
  };
  // theta[row * n2 + column] = twist[row] * exp(i pi column / (2 inner)); the second factor rides on the twiddle.
  const auto order = output_order(n1, plan.radices1);
  tables->twiddle.resize(2 * inner);
  for (int64_t row = 0; row < n1; ++row)
    for (int64_t column = 0; column < n2; ++column) {
      const double turns = double(order[row] * column % inner) / double(inner);
      put_lane(tables->twiddle, 2 * (row * n2 + column / lanes * lanes) + column % lanes, lanes,
               -2 * kPi * turns + kPi * double(column) / (2.0 * double(inner)));
    }
  // Frequency outer * k + q of the whole is frequency k of row q, whose element j is the q-th result of an outer-point DFT of
  // the elements j + m * inner, twisted by exp(i pi m / (2 outer)), times exp(-i pi j (4 q + outer - 1) / (2 size)):
  // the rest of the twist and the twiddle, and the twist of the row taken back. That is base(j) * step(j)^q.
  if (plan.outer > 1) {
    for (int64_t m = 0; m < plan.outer; ++m) put_pair(tables->outer_twist, kPi * double(m) / (2.0 * double(plan.outer)));
    tables->outer_base.resize(2 * inner), tables->outer_step.resize(2 * inner);
    for (int64_t j = 0; j < inner; ++j) {
      const int64_t at = 2 * (j / kLanes * kLanes) + j % kLanes;
      put_lane(tables->outer_base, at, kLanes, -kPi * double(j * (plan.outer - 1)) / (2.0 * double(plan.size)));
      put_lane(tables->outer_step, at, kLanes, -2 * kPi * double(j) / double(plan.size));
    }
  }
  tables->pass1 = pass_twiddles<T>(n1, plan.radices1);
  tables->pass2 = pass_twiddles<T>(n2, plan.radices2);
  return tables;
}

template <class T>
std::shared_ptr<const FftTables<T>> fft_tables(int64_t size) {
  static std::mutex mutex;
  static std::map<int64_t, std::shared_ptr<const FftTables<T>>> cache;
  std::lock_guard<std::mutex> lock(mutex);
  auto& entry = cache[size];
  if (entry) return entry;
  check_size(size);
  entry = make_fft_tables<T>(make_fft_plan(size, Choices::instance().get(size, true)));
  return entry;
}

template std::shared_ptr<const FftTables<float>> make_fft_tables<float>(const FftPlan&);
template std::shared_ptr<const FftTables<float>> fft_tables<float>(int64_t);
template std::shared_ptr<const FftTables<double>> fft_tables<double>(int64_t);

}  // namespace m2
