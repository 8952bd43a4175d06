// Right-angle convolution of one channel. Included by kernels_<isa>.cpp inside namespace m2::<isa>.
//
// With theta[n] = exp(i pi n / 2N), y = Re(conj(theta) F^-1(spectrum * F(theta u))): a complex transform of the
// length of the data, no zero padding (docs/kernels.md). Four-step: N = n1 * n2, W columns at a time.
//
//   u [n1][n2] --columns: * twist, DFT n1, * twiddle, transpose--> work [n1 / 16][n2][re 16][im 16]
//   work       --rows:    DFT n2, * spectrum, inverse DFT n2-->    work
//   work       --columns: transpose, * conj twiddle, inverse DFT n1, * conj twist, Re--> y
//
// Forward passes are decimation in frequency, inverse passes decimation in time: no reordering anywhere, the
// spectrum is kept in the permuted order.

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
  } else {
    static_assert(R == 8, "radices are 2, 3, 4, 5 and 8");
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
}

// Call f.template operator()<R>() for the run-time radix.
template <class F>
M2_INLINE void with_radix(int radix, F f) {
  switch (radix) {
    case 2: f.template operator()<2>(); break;
    case 3: f.template operator()<3>(); break;
    case 4: f.template operator()<4>(); break;
    case 5: f.template operator()<5>(); break;
    default: f.template operator()<8>();
  }
}

// One pass over `n` complex vectors in place, in sub-transforms of `length`. `pitch` elements from one vector to the
// next, imaginary parts `im` elements behind the real ones.
template <int R, bool INV, class T, int W>
void pass(T* x, int64_t pitch, int64_t im, int64_t n, int64_t length, const T* table) {
  const int64_t step = length / R;
  for (int64_t start = 0; start < n; start += length) {
    const T* w = table;
    for (int64_t j = 0; j < step; ++j, w += 2 * (R - 1)) {
      T* p = x + (start + j) * pitch;
      Cplx<T, W> v[R];
#pragma GCC unroll 8
      for (int q = 0; q < R; ++q) v[q] = load_cplx<T, W>(p + q * step * pitch, im);
      if constexpr (INV) {
#pragma GCC unroll 8
        for (int q = 1; q < R; ++q) v[q] = mul<true>(v[q], w[2 * q - 2], w[2 * q - 1]);
      }
      butterfly<R, INV>(v);
      if constexpr (!INV) {
#pragma GCC unroll 8
        for (int q = 1; q < R; ++q) v[q] = mul<false>(v[q], w[2 * q - 2], w[2 * q - 1]);
      }
#pragma GCC unroll 8
      for (int q = 0; q < R; ++q) store_cplx<T, W>(p + q * step * pitch, im, v[q]);
    }
  }
}

// The last forward pass, the product with the spectrum, and the first inverse pass, on R vectors in registers.
template <int R, bool FORWARD, bool PRODUCT, bool INVERSE, class T, int W>
void middle_pass(T* x, int64_t pitch, int64_t im, int64_t n, const T* spectrum) {
  for (int64_t start = 0; start < n; start += R) {
    T* p = x + start * pitch;
    Cplx<T, W> v[R];
#pragma GCC unroll 8
    for (int q = 0; q < R; ++q) v[q] = load_cplx<T, W>(p + q * pitch, im);
    if constexpr (FORWARD) butterfly<R, false>(v);
    if constexpr (PRODUCT) {
#pragma GCC unroll 8
      for (int q = 0; q < R; ++q) {
        const Cplx<T, W> s = load_cplx<T, W>(spectrum + (start + q) * pitch, im);
        v[q] = mul<false>(v[q], s.r, s.i);
      }
    }
    if constexpr (INVERSE) butterfly<R, true>(v);
#pragma GCC unroll 8
    for (int q = 0; q < R; ++q) store_cplx<T, W>(p + q * pitch, im, v[q]);
  }
}

// The rows of work: n2-point DFTs, W lanes at a time.
template <bool FORWARD, bool PRODUCT, bool INVERSE, class T, int W>
void transform_rows(const FftTables<T>& tables, T* work, const T* spectrum) {
  const FftPlan& plan = tables.plan;
  const int passes = int(plan.radices2.size());
  for (int64_t lane = 0; lane < plan.n1; lane += W) {
    const int64_t offset = (lane / kLanes) * plan.n2 * 2 * kLanes + lane % kLanes;
    T* x = work + offset;
    int64_t length = plan.n2;
    for (int i = 0; i + 1 < passes; ++i) {
      const int radix = plan.radices2[i];
      if constexpr (FORWARD)
        with_radix(radix, [&]<int R>() { pass<R, false, T, W>(x, 2 * kLanes, kLanes, plan.n2, length, tables.pass2[i].data()); });
      length /= radix;
    }
    with_radix(plan.radices2[passes - 1], [&]<int R>() {
      middle_pass<R, FORWARD, PRODUCT, INVERSE, T, W>(x, 2 * kLanes, kLanes, plan.n2, PRODUCT ? spectrum + offset : nullptr);
    });
    if constexpr (INVERSE)
      for (int i = passes - 2; i >= 0; --i) {
        const int radix = plan.radices2[i];
        length *= radix;
        with_radix(radix, [&]<int R>() { pass<R, true, T, W>(x, 2 * kLanes, kLanes, plan.n2, length, tables.pass2[i].data()); });
      }
  }
}

// First pass down W columns: real input times gate, twist, radix-R butterfly.
template <int R, bool GATED, class T, int W>
void first_pass(const FftTables<T>& tables, const T* u, const T* pre, T* buffer) {
  const int64_t n1 = tables.plan.n1, n2 = tables.plan.n2, step = n1 / R;
  const T* w = tables.pass1[0].data();
  for (int64_t j = 0; j < step; ++j, w += 2 * (R - 1)) {
    Cplx<T, W> v[R];
#pragma GCC unroll 8
    for (int q = 0; q < R; ++q) {
      const int64_t row = j + q * step;
      Vec<T, W> x = load<T, W>(u + row * n2);
      if constexpr (GATED) x = x * load<T, W>(pre + row * n2);
      v[q] = {x * tables.twist[2 * row], x * tables.twist[2 * row + 1]};
    }
    butterfly<R, false>(v);
#pragma GCC unroll 8
    for (int q = 0; q < R; ++q) {
      if (q > 0) v[q] = mul<false>(v[q], w[2 * q - 2], w[2 * q - 1]);
      store_cplx<T, W>(buffer + (j + q * step) * 2 * W, W, v[q]);
    }
  }
}

template <class T, int W>
void forward_columns(const FftTables<T>& tables, const T* u, const T* pre, T* work, T* buffer) {
  const FftPlan& plan = tables.plan;
  const int passes = int(plan.radices1.size());
  for (int64_t column = 0; column < plan.n2; column += W) {
    with_radix(plan.radices1[0], [&]<int R>() {
      if (pre) first_pass<R, true, T, W>(tables, u + column, pre + column, buffer);
      else first_pass<R, false, T, W>(tables, u + column, nullptr, buffer);
    });
    int64_t length = plan.n1 / plan.radices1[0];
    for (int i = 1; i < passes; length /= plan.radices1[i], ++i)
      with_radix(plan.radices1[i], [&]<int R>() {
        if (i + 1 < passes) pass<R, false, T, W>(buffer, 2 * W, W, plan.n1, length, tables.pass1[i].data());
        else middle_pass<R, true, false, false, T, W>(buffer, 2 * W, W, plan.n1, nullptr);
      });
    const int64_t block = column / kLanes * kLanes, lane = column % kLanes;
    for (int64_t row = 0; row < plan.n1; row += W) {
      Vec<T, W> re[W], im[W];
#pragma GCC unroll 16
      for (int i = 0; i < W; ++i) {
        const Cplx<T, W> t = load_cplx<T, W>(tables.twiddle.data() + 2 * ((row + i) * plan.n2 + block) + lane, kLanes);
        const Cplx<T, W> c = mul<false>(load_cplx<T, W>(buffer + (row + i) * 2 * W, W), t.r, t.i);
        re[i] = c.r, im[i] = c.i;
      }
      transpose<T, W>(re);
      transpose<T, W>(im);
      T* out = work + ((row / kLanes) * plan.n2 + column) * 2 * kLanes + row % kLanes;
#pragma GCC unroll 16
      for (int i = 0; i < W; ++i) store_cplx<T, W>(out + i * 2 * kLanes, kLanes, {re[i], im[i]});
    }
  }
}

// What happens to one vector of results: untwist, add the skip, gate, store.
template <class T, int W>
struct Output {
  const T *u, *pre, *post;  // null where there is none
  T skip;
  T *re, *im;
  M2_INLINE void put(int64_t n, Cplx<T, W> v, T wr, T wi) const {
    Vec<T, W> y = v.r * wr + v.i * wi;
    if (u) y += skip * (pre ? load<T, W>(u + n) * load<T, W>(pre + n) : load<T, W>(u + n));
    if (post) y *= load<T, W>(post + n);
    store<T, W>(re + n, y);
    if (im) store<T, W>(im + n, v.i * wr - v.r * wi);
  }
};

template <int R, class T, int W>
void last_pass(const FftTables<T>& tables, const T* buffer, int64_t column, const Output<T, W>& out) {
  const int64_t n1 = tables.plan.n1, n2 = tables.plan.n2, step = n1 / R;
  const T* w = tables.pass1[0].data();
  for (int64_t j = 0; j < step; ++j, w += 2 * (R - 1)) {
    Cplx<T, W> v[R];
#pragma GCC unroll 8
    for (int q = 0; q < R; ++q) {
      v[q] = load_cplx<T, W>(buffer + (j + q * step) * 2 * W, W);
      if (q > 0) v[q] = mul<true>(v[q], w[2 * q - 2], w[2 * q - 1]);
    }
    butterfly<R, true>(v);
#pragma GCC unroll 8
    for (int q = 0; q < R; ++q) {
      const int64_t row = j + q * step;
      out.put(row * n2 + column, v[q], tables.twist[2 * row], tables.twist[2 * row + 1]);
    }
  }
}

template <class T, int W>
void inverse_columns(const FftTables<T>& tables, const T* work, T* buffer, const Output<T, W>& out) {
  const FftPlan& plan = tables.plan;
  const int passes = int(plan.radices1.size());
  for (int64_t column = 0; column < plan.n2; column += W) {
    const int64_t block = column / kLanes * kLanes, lane = column % kLanes;
    for (int64_t row = 0; row < plan.n1; row += W) {
      Vec<T, W> re[W], im[W];
      const T* in = work + ((row / kLanes) * plan.n2 + column) * 2 * kLanes + row % kLanes;
#pragma GCC unroll 16
      for (int i = 0; i < W; ++i) re[i] = load<T, W>(in + i * 2 * kLanes), im[i] = load<T, W>(in + i * 2 * kLanes + kLanes);
      transpose<T, W>(re);
      transpose<T, W>(im);
#pragma GCC unroll 16
      for (int i = 0; i < W; ++i) {
        const Cplx<T, W> t = load_cplx<T, W>(tables.twiddle.data() + 2 * ((row + i) * plan.n2 + block) + lane, kLanes);
        store_cplx<T, W>(buffer + (row + i) * 2 * W, W, mul<true>(Cplx<T, W>{re[i], im[i]}, t.r, t.i));
      }
    }
    int64_t length = 1;
    for (int i = passes - 1; i >= 1; --i) {
      length *= plan.radices1[i];
      with_radix(plan.radices1[i], [&]<int R>() {
        if (i + 1 < passes) pass<R, true, T, W>(buffer, 2 * W, W, plan.n1, length, tables.pass1[i].data());
        else middle_pass<R, false, false, true, T, W>(buffer, 2 * W, W, plan.n1, nullptr);
      });
    }
    with_radix(plan.radices1[0], [&]<int R>() { last_pass<R, T, W>(tables, buffer, column, out); });
  }
}

// The functions of FftKernels.
template <class T, int W>
struct FftRow {
  static void forward(const FftTables<T>& tables, const T* row, T* work, T* scratch) {
    forward_columns<T, W>(tables, row, nullptr, work, scratch);
    transform_rows<true, false, false, T, W>(tables, work, nullptr);
  }
  static void inverse(const FftTables<T>& tables, T* work, T* out_re, T* out_im, T* scratch) {
    transform_rows<false, false, true, T, W>(tables, work, nullptr);
    inverse_columns<T, W>(tables, work, scratch, {nullptr, nullptr, nullptr, T(0), out_re, out_im});
  }
  static void convolve(const FftTables<T>& tables, const T* u, const T* spectrum, T skip, const T* pre, const T* post,
                       T* out, T* work, T* scratch) {
    forward_columns<T, W>(tables, u, pre, work, scratch);
    transform_rows<true, true, true, T, W>(tables, work, spectrum);
    inverse_columns<T, W>(tables, work, scratch, {skip != T(0) ? u : nullptr, pre, post, skip, out, nullptr});
  }
  static void multiply(int64_t size, const T* x, const T* spectrum, bool conjugate, T* out) {
    for (int64_t n = 0; n < 2 * size; n += 2 * kLanes)
      for (int64_t lane = n; lane < n + kLanes; lane += W) {
        const Cplx<T, W> s = load_cplx<T, W>(spectrum + lane, kLanes), v = load_cplx<T, W>(x + lane, kLanes);
        store_cplx<T, W>(out + lane, kLanes, conjugate ? mul<true>(v, s.r, s.i) : mul<false>(v, s.r, s.i));
      }
  }
  static void accumulate(int64_t size, const T* a, const T* b, T* acc) {
    for (int64_t n = 0; n < 2 * size; n += 2 * kLanes)
      for (int64_t lane = n; lane < n + kLanes; lane += W) {
        const Cplx<T, W> x = load_cplx<T, W>(a + lane, kLanes), y = load_cplx<T, W>(b + lane, kLanes);
        store_cplx<T, W>(acc + lane, kLanes, load_cplx<T, W>(acc + lane, kLanes) + mul<true>(y, x.r, x.i));
      }
  }
};
