// Right-angle transform and convolution of one channel. Included by the files of a row inside namespace m2::<isa>, after
// fft_outer.inl.
//
// With theta[n] = exp(i pi n / 2N), y = Re(conj(theta) F^-1(spectrum * F(theta u))): a complex transform of the
// length of the data, no zero padding (docs/kernels.md). Four-step: N = n1 * n2, W columns at a time, L = plan.lanes.
//
//   u [n1][n2] --columns: * twist, DFT n1, * twiddle, transpose--> work [n1 / L][n2][re L][im L]
//   work       --rows:    DFT n2, * spectrum, inverse DFT n2-->    work
//   work       --columns: transpose, * conj twiddle, inverse DFT n1, * conj twist, Re--> y
//
// Above the size that L2 holds, a pass of radix plan.outer over the whole signal leaves plan.outer complex signals of n1 * n2
// points, each of which is transformed like this, multiplied and taken back before the next one.
//
// The last column pass always has radix L and the last row pass radix 16, so that twiddle and transpose, and the product
// with the spectrum, happen in registers.

constexpr int kRowRadix = 16;
// Row passes walk depth first above this many vectors (16 KB of 16 float lanes): what follows a pass stays in L1.
constexpr int64_t kCacheVectors = 128;

template <class T, int W, int L>
struct Transform {
  static_assert(W <= L);
  using C = Cplx<T, W>;
  const FftTables<T>& tables;
  const int64_t n1 = tables.plan.n1, n2 = tables.plan.n2;
  const OuterPass<T, W> outer_pass{tables};

  // ---- columns ----

  // R inputs of one butterfly of the first pass.
  template <int R, class Input>
  M2_INLINE void load_first(C* v, const Input& in, int64_t row, int64_t step, int64_t column) const {
    const T* twist = tables.twist.data() + 2 * row;
#pragma GCC unroll 16
    for (int q = 0; q < R; ++q)
      v[q] = in.get((row + q * step) * n2 + column, twist[2 * q * step], twist[2 * q * step + 1]);
  }

  // L frequencies of W columns, from `row` on: twiddle, transpose, to work.
  M2_INLINE void emit(C* v, int64_t row, int64_t column, T* work) const {
    const T* twiddle = tables.twiddle.data() + 2 * (row * n2 + column / L * L) + column % L;
    T* out = work + row * n2 * 2 + column * 2 * L;
#pragma GCC unroll 16
    for (int t = 0; t < L; t += W) {
      Vec<T, W> re[W], im[W];
#pragma GCC unroll 16
      for (int i = 0; i < W; ++i) {
        const C w = load_cplx<T, W>(twiddle + 2 * (t + i) * n2, L), c = mul<false>(v[t + i], w.r, w.i);
        re[i] = c.r, im[i] = c.i;
      }
      transpose<T, W>(re);
#pragma GCC unroll 16
      for (int i = 0; i < W; ++i) store<T, W>(out + i * 2 * L + t, re[i]);
      transpose<T, W>(im);
#pragma GCC unroll 16
      for (int i = 0; i < W; ++i) store<T, W>(out + i * 2 * L + t + L, im[i]);
    }
  }

  // The way back: v = conj(twiddle) * transposed work.
  M2_INLINE void absorb(C* v, int64_t row, int64_t column, const T* work) const {
    const T* twiddle = tables.twiddle.data() + 2 * (row * n2 + column / L * L) + column % L;
    const T* in = work + row * n2 * 2 + column * 2 * L;
#pragma GCC unroll 16
    for (int t = 0; t < L; t += W) {
      Vec<T, W> re[W], im[W];
#pragma GCC unroll 16
      for (int i = 0; i < W; ++i) re[i] = load<T, W>(in + i * 2 * L + t);
      transpose<T, W>(re);
#pragma GCC unroll 16
      for (int i = 0; i < W; ++i) im[i] = load<T, W>(in + i * 2 * L + t + L);
      transpose<T, W>(im);
#pragma GCC unroll 16
      for (int i = 0; i < W; ++i) {
        const C w = load_cplx<T, W>(twiddle + 2 * (t + i) * n2, L);
        v[t + i] = mul<true>(C{re[i], im[i]}, w.r, w.i);
      }
    }
  }

  template <int R, class Input>
  void first_pass(const Input& in, int64_t column, T* buffer) const {
    const int64_t step = n1 / R;
    const T* w = tables.pass1[0].data();
    for (int64_t j = 0; j < step; ++j, w += 2 * (R - 1)) {
      C v[R];
      load_first<R>(v, in, j, step, column);
      butterfly<R, false>(v);
      twiddle_all<R, false>(v, w);
      store_all<R>(v, buffer + j * 2 * W, step * 2 * W, W);
    }
  }

  template <class Input>
  void forward_columns(const Input& input, T* work, T* buffer, Prefetch& prefetch) const {
    const Input in = input;
    const auto& radices = tables.plan.radices1;
    const int passes = int(radices.size());
    for (int64_t column = 0; column < n2; column += W) {
      C v[L];
      if (passes == 1) {
        load_first<L>(v, in, 0, 1, column);
        butterfly<L, false>(v);
        emit(v, 0, column, work);
        prefetch.step();
        continue;
      }
      if constexpr (L == kLanes) {  // shorter transforms have one column pass
        with_power_of_two(radices[0], [&]<int R>() { first_pass<R>(in, column, buffer); });
        int64_t length = n1 / radices[0];
        for (int i = 1; i + 1 < passes; length /= radices[i], ++i)
          with_power_of_two(radices[i], [&]<int R>() { pass<R, false, T, W>(buffer, 2 * W, W, n1, length, tables.pass1[i].data()); });
        for (int64_t row = 0; row < n1; row += L) {
          load_all<L>(v, buffer + row * 2 * W, 2 * W, W);
          butterfly<L, false>(v);
          emit(v, row, column, work);
          prefetch.step();
        }
      }
    }
  }

  template <int R, class Output>
  void last_pass(const T* buffer, int64_t column, const Output& output) const {
    const Output out = output;
    const int64_t step = n1 / R;
    const T* w = tables.pass1[0].data();
    for (int64_t j = 0; j < step; ++j, w += 2 * (R - 1)) {
      C v[R];
      load_all<R>(v, buffer + j * 2 * W, step * 2 * W, W);
      twiddle_all<R, true>(v, w);
      butterfly<R, true>(v);
      store_last<R>(v, j, step, column, out);
    }
  }
  template <int R, class Output>
  M2_INLINE void store_last(const C* v, int64_t row, int64_t step, int64_t column, const Output& out) const {
    const T* twist = tables.twist.data() + 2 * row;
#pragma GCC unroll 16
    for (int q = 0; q < R; ++q)
      out.put((row + q * step) * n2 + column, v[q], twist[2 * q * step], twist[2 * q * step + 1]);
  }

  template <class Output>
  void inverse_columns(const T* work, T* buffer, const Output& output, Prefetch& prefetch) const {
    const Output out = output;
    const auto& radices = tables.plan.radices1;
    const int passes = int(radices.size());
    for (int64_t column = 0; column < n2; column += W) {
      C v[L];
      if (passes == 1) {
        prefetch.step();
        absorb(v, 0, column, work);
        butterfly<L, true>(v);
        store_last<L>(v, 0, 1, column, out);
        continue;
      }
      if constexpr (L == kLanes) {
        for (int64_t row = 0; row < n1; row += L) {
          prefetch.step();
          absorb(v, row, column, work);
          butterfly<L, true>(v);
          store_all<L>(v, buffer + row * 2 * W, 2 * W, W);
        }
        int64_t length = L;
        for (int i = passes - 2; i >= 1; --i) {
          length *= radices[i];
          with_power_of_two(radices[i], [&]<int R>() { pass<R, true, T, W>(buffer, 2 * W, W, n1, length, tables.pass1[i].data()); });
        }
        with_power_of_two(radices[0], [&]<int R>() { last_pass<R>(buffer, column, out); });
      }
    }
  }

  // ---- rows ----

  // Forward and inverse row passes around `middle(offset)`, which takes kRowRadix vectors at that offset of each of
  // `blocks` through its last forward and first inverse pass.
  template <bool FORWARD, bool INVERSE, int BLOCKS, class Middle>
  void walk(T* const (&blocks)[BLOCKS], int64_t offset, int64_t n, int64_t length, int i, const Middle& middle) const {
    const auto& radices = tables.plan.radices2;
    if (i + 1 == int(radices.size())) {
      for (int64_t start = 0; start < n; start += kRowRadix) middle(offset + start * 2 * L);
      return;
    }
    const T* w = tables.pass2[i].data();
    if constexpr (FORWARD)
      for (T* x : blocks)
        with_radix(radices[i], [&]<int R>() { pass<R, false, T, W>(x + offset, 2 * L, L, n, length, w); });
    const int64_t next = length / radices[i], part = n > kCacheVectors ? next : n;
    for (int64_t start = 0; start < n; start += part)
      walk<FORWARD, INVERSE>(blocks, offset + start * 2 * L, part, next, i + 1, middle);
    if constexpr (INVERSE)
      for (T* x : blocks)
        with_radix(radices[i], [&]<int R>() { pass<R, true, T, W>(x + offset, 2 * L, L, n, length, w); });
  }
  template <bool FORWARD, bool INVERSE, int BLOCKS, class Middle>
  void rows(T* const (&blocks)[BLOCKS], const Middle& middle) const {
    for (int64_t row = 0; row < n1; row += W)
      walk<FORWARD, INVERSE>(blocks, row / L * n2 * 2 * L + row % L, n2, n2, 0, middle);
  }

  void forward_rows(T* work) const {
    rows<true, false, 1>({work}, [&](int64_t offset) {
      C v[kRowRadix];
      load_all<kRowRadix>(v, work + offset, 2 * L, L);
      butterfly<kRowRadix, false>(v);
      store_all<kRowRadix>(v, work + offset, 2 * L, L);
    });
  }
  void inverse_rows(T* work) const {
    rows<false, true, 1>({work}, [&](int64_t offset) {
      C v[kRowRadix];
      load_all<kRowRadix>(v, work + offset, 2 * L, L);
      butterfly<kRowRadix, true>(v);
      store_all<kRowRadix>(v, work + offset, 2 * L, L);
    });
  }

  // A skip connection is one tap more at lag 0: a constant added to the spectrum.
  void convolve_rows(T* work, const T* spectrum, T skip, Prefetch& prefetch) const {
    rows<true, true, 1>({work}, [&](int64_t offset) {
      prefetch.step();
      C v[kRowRadix];
      load_all<kRowRadix>(v, work + offset, 2 * L, L);
      butterfly<kRowRadix, false>(v);
#pragma GCC unroll 16
      for (int q = 0; q < kRowRadix; ++q) {
        const C s = load_cplx<T, W>(spectrum + offset + q * 2 * L, L);
        v[q] = mul<false>(v[q], s.r + skip, s.i);
      }
      butterfly<kRowRadix, true>(v);
      store_all<kRowRadix>(v, work + offset, 2 * L, L);
    });
  }

  // u = F(..) and d = F(..) on the way in; acc += conj(U) D, d -> conj(spectrum) D and, if WITH_Y, u -> spectrum U.
  template <bool WITH_Y>
  void backward_rows(T* u, T* d, const T* spectrum, T skip, T* acc, Prefetch& prefetch) const {
    const auto middle = [&](int64_t offset) {
      prefetch.step();
      C v[kRowRadix];
      load_all<kRowRadix>(v, u + offset, 2 * L, L);
      butterfly<kRowRadix, false>(v);
      store_all<kRowRadix>(v, u + offset, 2 * L, L);
      load_all<kRowRadix>(v, d + offset, 2 * L, L);
      butterfly<kRowRadix, false>(v);
#pragma GCC unroll 16
      for (int q = 0; q < kRowRadix; ++q) {
        const int64_t at = offset + q * 2 * L;
        const C x = load_cplx<T, W>(u + at, L);
        C s = load_cplx<T, W>(spectrum + at, L);
        s.r += skip;
        store_cplx<T, W>(acc + at, L, load_cplx<T, W>(acc + at, L) + mul<true>(v[q], x.r, x.i));
        v[q] = mul<true>(v[q], s.r, s.i);
        if constexpr (WITH_Y) store_cplx<T, W>(u + at, L, mul<false>(x, s.r, s.i));
      }
      butterfly<kRowRadix, true>(v);
      store_all<kRowRadix>(v, d + offset, 2 * L, L);
      if constexpr (WITH_Y) {
        load_all<kRowRadix>(v, u + offset, 2 * L, L);
        butterfly<kRowRadix, true>(v);
        store_all<kRowRadix>(v, u + offset, 2 * L, L);
      }
    };
    rows<true, true, 2>({u, d}, middle);
  }

  // ---- the whole ----

  // f(q, offset of its frequencies) for every row of the outer pass, between split(in) and merge(out), which may be null.
  template <class Split, class Row, class Merge>
  M2_INLINE void with_outer(Split in, Row row, Merge out) const {
    const auto all = [&]<int R>() {
      in.template operator()<R>();
      for (int64_t q = 0; q < R; ++q) row(q, q * 2 * tables.plan.inner());
      out.template operator()<R>();
    };
    if constexpr (L == kLanes) switch (tables.plan.outer) {
      case 2: all.template operator()<2>(); break;
      case 4: all.template operator()<4>(); break;
      default: all.template operator()<8>();
    }
  }

  template <class Input>
  void forward(const Input& in, T* work, T* scratch) const {
    Prefetch none;
    if (tables.plan.outer == 1) {
      forward_columns(in, work, scratch, none);
      return forward_rows(work);
    }
    T* z = scratch + 2 * n1 * L;
    with_outer([&]<int R>() { outer_pass.template split<R>(in, z); },
               [&](int64_t q, int64_t offset) {
                 forward_columns(outer_pass.row_in(z, q), work + offset, scratch, none);
                 forward_rows(work + offset);
               },
               []<int R>() {});
  }

  template <class Output>
  void inverse(T* work, const Output& out, T* scratch) const {
    Prefetch none;
    if (tables.plan.outer == 1) {
      inverse_rows(work);
      return inverse_columns(work, scratch, out, none);
    }
    T* z = scratch + 2 * n1 * L;
    with_outer([]<int R>() {},
               [&](int64_t q, int64_t offset) {
                 inverse_rows(work + offset);
                 inverse_columns(work + offset, scratch, outer_pass.row_out(z, q), none);
               },
               [&]<int R>() { outer_pass.template merge<R>(z, out); });
  }

  template <class Input, class Output>
  void convolve(const Input& in, const T* spectrum, T skip, const Output& out, Prefetch& prefetch, T* work,
                T* scratch) const {
    if (tables.plan.outer == 1) {
      forward_columns(in, work, scratch, prefetch);
      convolve_rows(work, spectrum, skip, prefetch);
      return inverse_columns(work, scratch, out, prefetch);
    }
    T* z = scratch + 2 * n1 * L;
    with_outer([&]<int R>() { outer_pass.template split<R>(in, z); },
               [&](int64_t q, int64_t offset) {
                 forward_columns(outer_pass.row_in(z, q), work, scratch, prefetch);
                 convolve_rows(work, spectrum + offset, skip, prefetch);
                 inverse_columns(work, scratch, outer_pass.row_out(z, q), prefetch);
               },
               [&]<int R>() { outer_pass.template merge<R>(z, out); });
  }

  // As backward_signal of FftKernels; y is not wanted unless WITH_Y.
  template <bool WITH_Y, class Input, class Output>
  void backward(const Input& u, const Input& dy, const T* spectrum, T skip, T* dspectrum, const Output& du, const Output& y,
                Prefetch& prefetch, T* work, T* other, T* scratch) const {
    if (tables.plan.outer == 1) {
      forward_columns(u, work, scratch, prefetch);
      forward_columns(dy, other, scratch, prefetch);
      backward_rows<WITH_Y>(work, other, spectrum, skip, dspectrum, prefetch);
      if constexpr (WITH_Y) inverse_columns(work, scratch, y, prefetch);
      return inverse_columns(other, scratch, du, prefetch);
    }
    T *zu = scratch + 2 * n1 * L, *zd = zu + 2 * tables.plan.outer * tables.plan.pitch();
    with_outer([&]<int R>() { outer_pass.template split<R>(u, zu), outer_pass.template split<R>(dy, zd); },
               [&](int64_t q, int64_t offset) {
                 forward_columns(outer_pass.row_in(zu, q), work, scratch, prefetch);
                 forward_columns(outer_pass.row_in(zd, q), other, scratch, prefetch);
                 backward_rows<WITH_Y>(work, other, spectrum + offset, skip, dspectrum + offset, prefetch);
                 if constexpr (WITH_Y) inverse_columns(work, scratch, outer_pass.row_out(zu, q), prefetch);
                 inverse_columns(other, scratch, outer_pass.row_out(zd, q), prefetch);
               },
               [&]<int R>() {
                 if constexpr (WITH_Y) outer_pass.template merge<R>(zu, y);
                 outer_pass.template merge<R>(zd, du);
               });
  }
};
