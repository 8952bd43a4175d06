// The functions of the kernel table that transform and convolve. Included by the files of a row inside namespace m2::<isa>,
// after fft_transform.inl.

// `on` calls f with the width of a register and the transform for the lanes of the plan.
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
