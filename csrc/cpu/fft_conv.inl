// Right-angle convolution of one channel. Included by the files of a row inside namespace m2::<isa>, after dft.inl.
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

// Real input: a row of S, times a gate where there is one, zero from `seqlen` on.
template <class T, int W, class S>
struct GatedInput {
  const S *x, *gate;
  int64_t seqlen;

  M2_INLINE Cplx<T, W> get(int64_t n, T wr, T wi) const {
    Vec<T, W> v;
    if (n + W <= seqlen) {
      v = load_as<T, W>(x + n);
      if (gate) v *= load_as<T, W>(gate + n);
    } else {
      v = edge(*this, n);
    }
    return {v * wr, v * wi};
  }
  // Takes a copy, so that the compiler may keep the original in registers.
  __attribute__((noinline)) static Vec<T, W> edge(GatedInput in, int64_t n) {
    Vec<T, W> v = {};
    for (int i = 0; i < W && n + i < in.seqlen; ++i)
      v[i] = in.gate ? T(to_float(in.x[n + i])) * T(to_float(in.gate[n + i])) : T(to_float(in.x[n + i]));
    return v;
  }
};

// Complex input: re + i im, whole rows; im may be null.
template <class T, int W>
struct ComplexInput {
  const T *re, *im;
  M2_INLINE Cplx<T, W> get(int64_t n, T wr, T wi) const {
    const Vec<T, W> x = load<T, W>(re + n);
    if (!im) return {x * wr, x * wi};
    return mul<false>(Cplx<T, W>{x, load<T, W>(im + n)}, wr, wi);
  }
};

// Real part of the untwisted result, times a gate, to one or two rows of S, up to `seqlen`.
template <class T, int W, class S>
struct GatedOutput {
  S* out[2];            // out[1] may be null
  const S* gate[2];     // null: no gate
  int64_t seqlen;

  M2_INLINE void put(int64_t n, Cplx<T, W> v, T wr, T wi) const {
    const Vec<T, W> y = v.r * wr + v.i * wi;
    if (n + W > seqlen) return edge(*this, n, y);
    store_as<T, W>(out[0] + n, gate[0] ? y * load_as<T, W>(gate[0] + n) : y);
    if (out[1]) store_as<T, W>(out[1] + n, gate[1] ? y * load_as<T, W>(gate[1] + n) : y);
  }
  __attribute__((noinline)) static void edge(GatedOutput to, int64_t n, Vec<T, W> y) {
    for (int o = 0; o < 2 && to.out[o]; ++o)
      for (int i = 0; i < W && n + i < to.seqlen; ++i)
        to.out[o][n + i] = from_float<S>(to.gate[o] ? y[i] * T(to_float(to.gate[o][n + i])) : T(y[i]));
  }
};

// The untwisted result, real and imaginary part; im may be null.
template <class T, int W>
struct ComplexOutput {
  T *re, *im;
  M2_INLINE void put(int64_t n, Cplx<T, W> v, T wr, T wi) const {
    store<T, W>(re + n, v.r * wr + v.i * wi);
    if (im) store<T, W>(im + n, v.i * wr - v.r * wi);
  }
};

// Asks for memory that is needed soon, a few cache lines at a time while arithmetic goes on: many at once would fill the queue
// that the other loads need too. `steps` are spread over the whole work on a row.
class Prefetch {
 public:
  Prefetch() = default;
  Prefetch(const Ahead& ahead, int64_t row_bytes, int64_t steps) : bytes_(row_bytes) {
    for (const void* row : ahead.rows)
      if (row) rows_[count_++] = static_cast<const char*>(row);
    lines_ = (count_ * ((bytes_ + kLine - 1) / kLine) + steps - 1) / steps;
  }
  M2_INLINE void step() {
    for (int64_t i = 0; i < lines_ && row_ < count_; ++i) {
      __builtin_prefetch(rows_[row_] + at_, 0, 2);
      at_ += kLine;
      if (at_ >= bytes_) at_ = 0, ++row_;
    }
  }

 private:
  static constexpr int64_t kLine = 64;
  const char* rows_[kAheadRows];
  int64_t bytes_ = 0, lines_ = 0, at_ = 0;
  int count_ = 0, row_ = 0;
};

template <class T, int W, int L>
struct Transform {
  static_assert(W <= L);
  using C = Cplx<T, W>;
  const FftTables<T>& tables;
  const int64_t n1 = tables.plan.n1, n2 = tables.plan.n2;

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

  // ---- the outer pass ----

  // Elements of one position in all rows share a set of the cache, so that a line of each is used up at once, in parts.
  static constexpr int kParts = kLanes / W;

  // The factors base(j) * step(j)^q (csrc/plan/fft_plan.cpp) for W positions from j on, by doubling.
  template <int R>
  M2_INLINE void outer_factors(int64_t j, C* f) const {
    const int64_t at = 2 * (j / kLanes * kLanes) + j % kLanes;
    f[0] = load_cplx<T, W>(tables.outer_base.data() + at, kLanes);
    C power = load_cplx<T, W>(tables.outer_step.data() + at, kLanes);
    constexpr int kDoublings = __builtin_ctz(R);
#pragma GCC unroll 4
    for (int d = 0; d < kDoublings; ++d) {
#pragma GCC unroll 8
      for (int i = 0; i < 1 << d; ++i) f[(1 << d) + i] = mul<false>(f[i], power.r, power.i);
      power = mul<false>(power, power.r, power.i);
    }
  }

  // The signal to R rows of a real and an imaginary part, pitch apart.
  template <int R, class Input>
  void split(const Input& input, T* z) const {
    const Input in = input;
    const T* twist = tables.outer_twist.data();
    const int64_t inner = tables.plan.inner(), pitch = tables.plan.pitch();
    for (int64_t j = 0; j < inner; j += kLanes) {
      C v[kParts][R];
      for (int q = 0; q < R; ++q)
        for (int part = 0; part < kParts; ++part)
          v[part][q] = in.get(j + part * W + q * inner, twist[2 * q], twist[2 * q + 1]);
      for (int part = 0; part < kParts; ++part) {
        C f[R];
        outer_factors<R>(j + part * W, f);
        butterfly<R, false>(v[part]);
#pragma GCC unroll 16
        for (int q = 0; q < R; ++q) v[part][q] = mul<false>(v[part][q], f[q].r, f[q].i);
      }
      for (int q = 0; q < R; ++q)
        for (int part = 0; part < kParts; ++part)
          store_cplx<T, W>(z + 2 * q * pitch + j + part * W, pitch, v[part][q]);
    }
  }

  // The way back.
  template <int R, class Output>
  void merge(const T* z, const Output& output) const {
    const Output out = output;
    const T* twist = tables.outer_twist.data();
    const int64_t inner = tables.plan.inner(), pitch = tables.plan.pitch();
    for (int64_t j = 0; j < inner; j += kLanes) {
      C v[kParts][R];
      for (int q = 0; q < R; ++q)
        for (int part = 0; part < kParts; ++part)
          v[part][q] = load_cplx<T, W>(z + 2 * q * pitch + j + part * W, pitch);
      for (int part = 0; part < kParts; ++part) {
        C f[R];
        outer_factors<R>(j + part * W, f);
#pragma GCC unroll 16
        for (int q = 0; q < R; ++q) v[part][q] = mul<true>(v[part][q], f[q].r, f[q].i);
        butterfly<R, true>(v[part]);
      }
      for (int q = 0; q < R; ++q)
        for (int part = 0; part < kParts; ++part)
          out.put(j + part * W + q * inner, v[part][q], twist[2 * q], twist[2 * q + 1]);
    }
  }

  // Row q of those that split() makes.
  ComplexInput<T, W> row_in(T* z, int64_t q) const {
    const int64_t pitch = tables.plan.pitch();
    return {z + 2 * q * pitch, z + (2 * q + 1) * pitch};
  }
  ComplexOutput<T, W> row_out(T* z, int64_t q) const {
    const int64_t pitch = tables.plan.pitch();
    return {z + 2 * q * pitch, z + (2 * q + 1) * pitch};
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
    with_outer([&]<int R>() { split<R>(in, z); },
               [&](int64_t q, int64_t offset) {
                 forward_columns(row_in(z, q), work + offset, scratch, none);
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
                 inverse_columns(work + offset, scratch, row_out(z, q), none);
               },
               [&]<int R>() { merge<R>(z, out); });
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
    with_outer([&]<int R>() { split<R>(in, z); },
               [&](int64_t q, int64_t offset) {
                 forward_columns(row_in(z, q), work, scratch, prefetch);
                 convolve_rows(work, spectrum + offset, skip, prefetch);
                 inverse_columns(work, scratch, row_out(z, q), prefetch);
               },
               [&]<int R>() { merge<R>(z, out); });
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
    with_outer([&]<int R>() { split<R>(u, zu), split<R>(dy, zd); },
               [&](int64_t q, int64_t offset) {
                 forward_columns(row_in(zu, q), work, scratch, prefetch);
                 forward_columns(row_in(zd, q), other, scratch, prefetch);
                 backward_rows<WITH_Y>(work, other, spectrum + offset, skip, dspectrum + offset, prefetch);
                 if constexpr (WITH_Y) inverse_columns(work, scratch, row_out(zu, q), prefetch);
                 inverse_columns(other, scratch, row_out(zd, q), prefetch);
               },
               [&]<int R>() {
                 if constexpr (WITH_Y) merge<R>(zu, y);
                 merge<R>(zd, du);
               });
  }
};

// The functions of FftKernels. `on` calls f with the width of a register and the transform for the lanes of the plan.
template <class T, int WIDTH>
struct FftRow {
  template <class F>
  M2_INLINE static void on(int lanes, F f) {
    switch (lanes) {
      case 4: f.template operator()<(WIDTH < 4 ? WIDTH : 4), 4>(); break;
      case 8: f.template operator()<(WIDTH < 8 ? WIDTH : 8), 8>(); break;
      default: f.template operator()<WIDTH, kLanes>();
    }
  }

  static void forward_complex(const FftTables<T>& tables, const T* re, const T* im, T* work, T* scratch) {
    on(tables.plan.lanes, [&]<int W, int L>() {
      Transform<T, W, L>{tables}.forward(ComplexInput<T, W>{re, im}, work, scratch);
    });
  }
  static void forward(const FftTables<T>& tables, const T* row, T* work, T* scratch) {
    forward_complex(tables, row, nullptr, work, scratch);
  }
  static void inverse(const FftTables<T>& tables, T* work, T* out_re, T* out_im, T* scratch) {
    on(tables.plan.lanes, [&]<int W, int L>() {
      Transform<T, W, L>{tables}.inverse(work, ComplexOutput<T, W>{out_re, out_im}, scratch);
    });
  }

  template <int W, class S>
  M2_INLINE static GatedInput<T, W, S> input(const Signal& x) {
    return {static_cast<const S*>(x.data), static_cast<const S*>(x.gate), x.seqlen};
  }
  template <int W, class S>
  M2_INLINE static GatedOutput<T, W, S> output(const Result& y) {
    return {{static_cast<S*>(y.data[0]), static_cast<S*>(y.data[1])},
            {static_cast<const S*>(y.gate[0]), static_cast<const S*>(y.gate[1])},
            y.seqlen};
  }
  static void convolve_signal(const FftTables<T>& tables, Dtype dtype, const Signal& u, const T* spectrum, T skip,
                              const Result& out, const Ahead& ahead, T* work, T* scratch) {
    const T tap = skip / T(tables.plan.size);
    with_type<T>(dtype, [&]<class S>() {
      on(tables.plan.lanes, [&]<int W, int L>() {
        Prefetch prefetch(ahead, u.seqlen * int64_t(sizeof(S)), 3 * tables.plan.size / (W * L));
        Transform<T, W, L>{tables}.convolve(input<W, S>(u), spectrum, tap, output<W, S>(out), prefetch, work, scratch);
      });
    });
  }
  static void convolve(const FftTables<T>& tables, const T* u, const T* spectrum, T skip, const T* pre, const T* post,
                       T* out, T* work, T* scratch) {
    const int64_t size = tables.plan.size;
    convolve_signal(tables, sizeof(T) == 8 ? Dtype::f64 : Dtype::f32, {u, pre, size}, spectrum, skip,
                    {{out, nullptr}, {post, nullptr}, size}, {}, work, scratch);
  }
  static void backward_signal(const FftTables<T>& tables, Dtype dtype, const Signal& u, const Signal& dy,
                              const T* spectrum, T skip, T* dspectrum, const Result& du, const Result& y,
                              const Ahead& ahead, T* work, T* scratch) {
    T* const other = work + 2 * tables.plan.size;
    const T tap = skip / T(tables.plan.size);
    with_type<T>(dtype, [&]<class S>() {
      on(tables.plan.lanes, [&]<int W, int L>() {
        const Transform<T, W, L> transform{tables};
        Prefetch prefetch(ahead, u.seqlen * int64_t(sizeof(S)), 4 * tables.plan.size / (W * L));
        const auto from = input<W, S>(u), gradient = input<W, S>(dy);
        const auto to_du = output<W, S>(du), to_y = output<W, S>(y);
        if (y.data[0])
          transform.template backward<true>(from, gradient, spectrum, tap, dspectrum, to_du, to_y, prefetch, work, other, scratch);
        else
          transform.template backward<false>(from, gradient, spectrum, tap, dspectrum, to_du, to_y, prefetch, work, other, scratch);
      });
    });
  }

  // Element by element in the order of work: f(re, im) of the vectors at an offset.
  template <class F>
  M2_INLINE static void elementwise(int64_t size, F f) {
    on(fft_lanes(size), [&]<int W, int L>() {
      for (int64_t n = 0; n < 2 * size; n += 2 * L)
        for (int64_t lane = n; lane < n + L; lane += W) f.template operator()<W>(lane, lane + L);
    });
  }
  static void multiply(int64_t size, const T* x, const T* spectrum, bool conjugate, T* out) {
    elementwise(size, [&]<int W>(int64_t re, int64_t im) {
      const Cplx<T, W> s = load_cplx<T, W>(spectrum + re, im - re), v = load_cplx<T, W>(x + re, im - re);
      store_cplx<T, W>(out + re, im - re, conjugate ? mul<true>(v, s.r, s.i) : mul<false>(v, s.r, s.i));
    });
  }
  static void accumulate(int64_t size, const T* a, const T* b, T* acc) {
    elementwise(size, [&]<int W>(int64_t re, int64_t im) {
      const Cplx<T, W> x = load_cplx<T, W>(a + re, im - re), y = load_cplx<T, W>(b + re, im - re);
      store_cplx<T, W>(acc + re, im - re, load_cplx<T, W>(acc + re, im - re) + mul<true>(y, x.r, x.i));
    });
  }
};

template <class T, int W>
constexpr FftKernels<T> fft_row() {
  using Row = FftRow<T, W>;
  return {Row::forward,         Row::forward_complex, Row::inverse,    Row::convolve,
          Row::convolve_signal, Row::backward_signal, Row::multiply,   Row::accumulate,
          Copies<T, W>::gather, Copies<T, W>::scatter, Copies<T, W>::scatter_product};
}
