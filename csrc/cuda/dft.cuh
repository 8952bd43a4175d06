// Discrete Fourier transforms of 2, 4, 8 and 16 complex values in the registers of one thread, and the constants of
// the right-angle twist. All indices are compile-time constants once unrolled: no local memory.
#pragma once
#include "common.cuh"

namespace m2::cuda {

__device__ __forceinline__ Complex operator+(Complex a, Complex b) { return {a.re + b.re, a.im + b.im}; }
__device__ __forceinline__ Complex operator-(Complex a, Complex b) { return {a.re - b.re, a.im - b.im}; }
__device__ __forceinline__ Complex operator*(Complex a, Complex b) {
  return {a.re * b.re - a.im * b.im, a.re * b.im + a.im * b.re};
}
__device__ __forceinline__ Complex operator*(float s, Complex a) { return {s * a.re, s * a.im}; }
__device__ __forceinline__ Complex conj(Complex a) { return {a.re, -a.im}; }

// cos(pi i / 32) for 0 <= i <= 16.
__device__ __forceinline__ constexpr float cos_32nd(int i) {
  constexpr float table[17] = {1.0f,           0.9951847267f,  0.9807852804f,  0.9569403357f, 0.9238795325f,
                               0.8819212643f,  0.8314696123f,  0.7730104534f,  0.7071067812f, 0.6343932842f,
                               0.5555702330f,  0.4713967368f,  0.3826834324f,  0.2902846773f, 0.1950903220f,
                               0.09801714033f, 0.0f};
  return table[i];
}

// exp(i pi i / (2 radix)) = theta^(i step): the part of the twist that belongs to input i of the first pass.
template <int kRadix>
__device__ __forceinline__ Complex twist(int i) {
  static_assert(16 % kRadix == 0, "the table of cosines serves radices up to 16");
  return {cos_32nd(i * (16 / kRadix)), cos_32nd(16 - i * (16 / kRadix))};
}

// x exp(-+ 2 pi i m / n), the minus for the forward direction, 0 <= m < n <= 16.
template <int n, bool kInverse>
__device__ __forceinline__ Complex rotate(Complex x, int m) {
  const int quarter = m * 4 / n, rest = m % (n / 4 > 0 ? n / 4 : 1);
  if (rest) {
    const Complex w = {cos_32nd(rest * (64 / n)), cos_32nd(16 - rest * (64 / n))};
    x = kInverse ? x * w : x * conj(w);
  }
  if (quarter == 0) return x;
  if (quarter == 2) return {-x.re, -x.im};
  const bool up = (quarter == 1) == kInverse;  // times +i
  return up ? Complex{-x.im, x.re} : Complex{x.im, -x.re};
}

// x[k] <- sum_n x[n] exp(-+ 2 pi i n k / radix), unnormalised, both sides in natural order.
template <int kRadix, bool kInverse>
struct Dft {
  static_assert(kRadix == 8 || kRadix == 16, "radices 2 and 4 are below, no others exist");
  static constexpr int kA = kRadix / 4;

  // n = 4 n1 + n2, k = k1 + kA k2.
  static __device__ __forceinline__ void run(Complex (&x)[kRadix]) {
    Complex inner[kRadix];
    M2_UNROLL
    for (int n2 = 0; n2 < 4; ++n2) {
      Complex column[kA];
      M2_UNROLL
      for (int n1 = 0; n1 < kA; ++n1) column[n1] = x[4 * n1 + n2];
      Dft<kA, kInverse>::run(column);
      M2_UNROLL
      for (int k1 = 0; k1 < kA; ++k1) inner[4 * k1 + n2] = rotate<kRadix, kInverse>(column[k1], n2 * k1);
    }
    M2_UNROLL
    for (int k1 = 0; k1 < kA; ++k1) {
      Complex row[4];
      M2_UNROLL
      for (int n2 = 0; n2 < 4; ++n2) row[n2] = inner[4 * k1 + n2];
      Dft<4, kInverse>::run(row);
      M2_UNROLL
      for (int k2 = 0; k2 < 4; ++k2) x[k1 + kA * k2] = row[k2];
    }
  }
};

template <bool kInverse>
struct Dft<2, kInverse> {
  static __device__ __forceinline__ void run(Complex (&x)[2]) {
    const Complex a = x[0], b = x[1];
    x[0] = a + b;
    x[1] = a - b;
  }
};

template <bool kInverse>
struct Dft<4, kInverse> {
  static __device__ __forceinline__ void run(Complex (&x)[4]) {
    const Complex a = x[0] + x[2], b = x[0] - x[2], c = x[1] + x[3];
    const Complex d = rotate<4, kInverse>(x[1] - x[3], 1);
    x[0] = a + c;
    x[1] = b + d;
    x[2] = a - c;
    x[3] = b - d;
  }
};

}  // namespace m2::cuda
