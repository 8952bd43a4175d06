// DFTs of vectors of complex values: butterflies in registers and passes over a block in L1.
// Included by row.h inside namespace m2::<isa>, after vec.inl.
//
// Forward passes are decimation in frequency, inverse passes decimation in time: no reordering anywhere, frequencies
// stay in the permuted order of the plan.

// y * (-i), or y * i for the inverse.
template <bool INV, class T, int W>
M2_INLINE Cplx<T, W> rotate(Cplx<T, W> y) {
  if constexpr (INV) return {-y.i, y.r};
  else return {y.i, -y.r};
}

template <bool INV, class T, int W>
M2_INLINE void butterfly4(Cplx<T, W>& x0, Cplx<T, W>& x1, Cplx<T, W>& x2, Cplx<T, W>& x3) {
  const Cplx<T, W> s = x0 + x2, d = x0 - x2, t = x1 + x3, e = rotate<INV>(x1 - x3);
  x0 = s + t, x1 = d + e, x2 = s - t, x3 = d - e;
}

template <bool INV, class T, int W>
M2_INLINE void butterfly8(Cplx<T, W>* x) {
  constexpr T kRoot = T(0.70710678118654752440);
  butterfly4<INV>(x[0], x[2], x[4], x[6]);
  butterfly4<INV>(x[1], x[3], x[5], x[7]);
  const Cplx<T, W> r3 = rotate<INV>(x[3]), r7 = rotate<INV>(x[7]);
  const Cplx<T, W> o1 = {(x[3].r + r3.r) * kRoot, (x[3].i + r3.i) * kRoot};
  const Cplx<T, W> o2 = rotate<INV>(x[5]);
  const Cplx<T, W> o3 = {(r7.r - x[7].r) * kRoot, (r7.i - x[7].i) * kRoot};
  const Cplx<T, W> e0 = x[0], e1 = x[2], e2 = x[4], e3 = x[6], o0 = x[1];
  x[0] = e0 + o0, x[4] = e0 - o0, x[1] = e1 + o1, x[5] = e1 - o1;
  x[2] = e2 + o2, x[6] = e2 - o2, x[3] = e3 + o3, x[7] = e3 - o3;
}

// 4 x 4: columns, twiddles exp(-2 pi i j q / 16), rows, and the names put in order.
template <bool INV, class T, int W>
M2_INLINE void butterfly16(Cplx<T, W>* x) {
  constexpr T c = T(0.92387953251128675613), s = T(0.38268343236508977173), h = T(0.70710678118654752440);
  const auto turn = [](Cplx<T, W> a, T wr, T wi) { return INV ? mul<false>(a, wr, wi) : mul<true>(a, wr, wi); };
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) butterfly4<INV>(x[j], x[j + 4], x[j + 8], x[j + 12]);
  x[5] = turn(x[5], c, s), x[6] = turn(x[6], h, h), x[7] = turn(x[7], s, c);
  x[9] = turn(x[9], h, h), x[10] = rotate<INV>(x[10]), x[11] = turn(x[11], -h, h);
  x[13] = turn(x[13], s, c), x[14] = turn(x[14], -h, h), x[15] = turn(x[15], -c, -s);
#pragma GCC unroll 4
  for (int q = 0; q < 4; ++q) butterfly4<INV>(x[4 * q], x[4 * q + 1], x[4 * q + 2], x[4 * q + 3]);
#pragma GCC unroll 4
  for (int q = 0; q < 4; ++q)
#pragma GCC unroll 4
    for (int r = q + 1; r < 4; ++r) {
      const Cplx<T, W> a = x[4 * q + r];
      x[4 * q + r] = x[4 * r + q], x[4 * r + q] = a;
    }
}

// DFT of R values in registers, natural order in and out.
template <int R, bool INV, class T, int W>
M2_INLINE void butterfly(Cplx<T, W>* x) {
  if constexpr (R == 2) {
    const Cplx<T, W> a = x[0], b = x[1];
    x[0] = a + b, x[1] = a - b;
  } else if constexpr (R == 3) {
    constexpr T kHalf = T(0.5), kSin = T(0.86602540378443864676);
    const Cplx<T, W> s = x[1] + x[2], d = rotate<INV>(x[1] - x[2]);
    const Cplx<T, W> m = {x[0].r - s.r * kHalf, x[0].i - s.i * kHalf}, e = {d.r * kSin, d.i * kSin};
    x[0] = x[0] + s, x[1] = m + e, x[2] = m - e;
  } else if constexpr (R == 4) {
    butterfly4<INV>(x[0], x[1], x[2], x[3]);
  } else if constexpr (R == 5) {
    constexpr T c1 = T(0.30901699437494742410), c2 = T(-0.80901699437494742410);
    constexpr T s1 = T(0.95105651629515357212), s2 = T(0.58778525229247312917);
    const Cplx<T, W> a = x[1] + x[4], b = x[2] + x[3];
    const Cplx<T, W> d = rotate<INV>(x[1] - x[4]), e = rotate<INV>(x[2] - x[3]);
    const Cplx<T, W> m1 = {x[0].r + a.r * c1 + b.r * c2, x[0].i + a.i * c1 + b.i * c2};
    const Cplx<T, W> m2 = {x[0].r + a.r * c2 + b.r * c1, x[0].i + a.i * c2 + b.i * c1};
    const Cplx<T, W> n1 = {d.r * s1 + e.r * s2, d.i * s1 + e.i * s2};
    const Cplx<T, W> n2 = {d.r * s2 - e.r * s1, d.i * s2 - e.i * s1};
    x[0] = x[0] + a + b, x[1] = m1 + n1, x[4] = m1 - n1, x[2] = m2 + n2, x[3] = m2 - n2;
  } else if constexpr (R == 8) {
    butterfly8<INV>(x);
  } else {
    static_assert(R == 16, "radices are 2, 3, 4, 5, 8 and 16");
    butterfly16<INV>(x);
  }
}

// Call f.template operator()<R>() for the run-time radix.
template <class F>
M2_INLINE void with_radix(int radix, F f) {
  switch (radix) {
    case 2: f.template operator()<2>(); break;
    case 3: f.template operator()<3>(); break;
    case 4: f.template operator()<4>(); break;
    case 5: f.template operator()<5>(); break;
    case 8: f.template operator()<8>(); break;
    default: f.template operator()<16>();
  }
}
template <class F>
M2_INLINE void with_power_of_two(int radix, F f) {
  switch (radix) {
    case 2: f.template operator()<2>(); break;
    case 4: f.template operator()<4>(); break;
    case 8: f.template operator()<8>(); break;
    default: f.template operator()<16>();
  }
}

// R vectors from `p`, `stride` elements apart, imaginary parts `im` elements behind the real ones; and back.
template <int R, class T, int W>
M2_INLINE void load_all(Cplx<T, W>* v, const T* p, int64_t stride, int64_t im) {
#pragma GCC unroll 16
  for (int q = 0; q < R; ++q) v[q] = load_cplx<T, W>(p + q * stride, im);
}
template <int R, class T, int W>
M2_INLINE void store_all(const Cplx<T, W>* v, T* p, int64_t stride, int64_t im) {
#pragma GCC unroll 16
  for (int q = 0; q < R; ++q) store_cplx<T, W>(p + q * stride, im, v[q]);
}
// v[q] *= w[q], or its conjugate, q >= 1; one complex number for all lanes.
template <int R, bool CONJ, class T, int W>
M2_INLINE void twiddle_all(Cplx<T, W>* v, const T* w) {
#pragma GCC unroll 16
  for (int q = 1; q < R; ++q) v[q] = mul<CONJ>(v[q], w[2 * q - 2], w[2 * q - 1]);
}

// One pass over `n` complex vectors in place, in sub-transforms of `length`; `pitch` elements from one vector to the
// next, imaginary parts pitch / 2 behind the real ones (im). The last pass of a transform has length R: no twiddles.
template <int R, bool INV, class T, int W>
void pass(T* x, int64_t pitch, int64_t im, int64_t n, int64_t length, const T* table) {
  const int64_t step = length / R;
  for (int64_t start = 0; start < n; start += length) {
    const T* w = table;
    for (int64_t j = 0; j < step; ++j, w += 2 * (R - 1)) {
      T* p = x + (start + j) * pitch;
      Cplx<T, W> v[R];
      load_all<R>(v, p, step * pitch, im);
      if constexpr (INV) twiddle_all<R, true>(v, w);
      butterfly<R, INV>(v);
      if constexpr (!INV) twiddle_all<R, false>(v, w);
      store_all<R>(v, p, step * pitch, im);
    }
  }
}
