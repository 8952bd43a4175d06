// What the transforms of fft_transform.inl and fft_outer.inl read and write: rows of tensors with their gates, complex rows;
// and memory that is asked for ahead. Included by the files of a row inside namespace m2::<isa>, after dft.inl.

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
