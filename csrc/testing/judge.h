// How far results of a kernel are from exact ones, for the tests of gradients.
#pragma once
#include <algorithm>
#include <cmath>

namespace m2::cuda {

// Sums of squares of differences, of a copy one percent off, and of the exact values, or of the terms that were added up
// to them: those of a few sums may happen to cancel.
struct Judge {
  double error = 0, off = 0, norm = 0;
  void see(double got, double exact, double terms = 0) {
    error += (got - exact) * (got - exact);
    off += (1.01 * got - exact) * (1.01 * got - exact);
    norm += std::max(exact * exact, terms);
  }
  double relative() const { return std::sqrt(error / norm); }
  bool good(double bound) const { return relative() <= bound && std::sqrt(off / norm) > bound; }
};

}  // namespace m2::cuda
