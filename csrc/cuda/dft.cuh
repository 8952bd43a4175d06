// Discrete Fourier transforms of 2, 4, .. 64 complex values in the registers of one thread, and the constants of
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

// cos(pi i / 128) for 0 <= i <= 64.
__device__ __forceinline__ constexpr float cos_128th(int i) {
  constexpr float table[65] = {
      1.0f, 0.9996988177f, 0.9987954497f, 0.9972904325f, 0.9951847196f, 0.9924795628f, 0.9891765118f, 0.9852776527f,
      0.9807852507f, 0.975702107f, 0.9700312614f, 0.963776052f, 0.9569403529f, 0.9495281577f, 0.9415440559f,
      0.932992816f, 0.9238795042f, 0.9142097831f, 0.903989315f, 0.893224299f, 0.8819212914f, 0.8700869679f,
      0.8577286005f, 0.84485358f, 0.8314695954f, 0.8175848126f, 0.8032075167f, 0.7883464098f, 0.7730104327f,
      0.7572088242f, 0.7409511209f, 0.724247098f, 0.7071067691f, 0.689540565f, 0.6715589762f, 0.6531728506f,
      0.6343932748f, 0.6152315736f, 0.5956993103f, 0.5758081675f, 0.5555702448f, 0.534997642f, 0.514102757f,
      0.492898196f, 0.4713967443f, 0.449611336f, 0.4275550842f, 0.4052413106f, 0.3826834261f, 0.3598950505f,
      0.336889863f, 0.3136817515f, 0.2902846634f, 0.266712755f, 0.2429801822f, 0.2191012353f, 0.1950903237f,
      0.1709618866f, 0.1467304677f, 0.1224106774f, 0.09801714122f, 0.07356456667f, 0.04906767607f, 0.02454122901f,
      0.0f};
  return table[i];
}

// exp(i pi i / (2 radix)) = theta^(i step): the part of the twist that belongs to input i of the first pass.
template <int kRadix>
__device__ __forceinline__ Complex twist(int i) {
  static_assert(64 % kRadix == 0, "the table of cosines serves radices up to 64");
  return {cos_128th(i * (64 / kRadix)), cos_128th(64 - i * (64 / kRadix))};
}

// x exp(-+ 2 pi i m / n), the minus for the forward direction, 0 <= m < n <= 64.
template <int n, bool kInverse>
__device__ __forceinline__ Complex rotate(Complex x, int m) {
  const int quarter = m * 4 / n, rest = m % (n / 4 > 0 ? n / 4 : 1);
  if (rest) {
    const Complex w = {cos_128th(rest * (256 / n)), cos_128th(64 - rest * (256 / n))};
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
  static_assert(kRadix >= 8 && kRadix <= 64 && 64 % kRadix == 0, "radices 2 and 4 are below, no others exist");
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
