// The outer pass of a transform above the size that L2 holds: of radix R over the whole signal, which leaves R complex signals
// of n1 * n2 points. Included by the files of a row inside namespace m2::<isa>, after fft_signals.inl.

template <class T, int W>
struct OuterPass {
  using C = Cplx<T, W>;
  const FftTables<T>& tables;

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
};
