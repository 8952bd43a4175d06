// A small vector type over the compiler's vector extension: the same source for every instruction set.
// Included by row.h inside namespace m2::<isa>; M2_VEC_BYTES says how wide a register is.

#define M2_INLINE inline __attribute__((always_inline))

template <class T, int W>
struct VecOf {
  typedef T type __attribute__((vector_size(sizeof(T) * W)));
  typedef T unaligned __attribute__((vector_size(sizeof(T) * W), aligned(alignof(T)), may_alias));
};
template <class T, int W>
using Vec = typename VecOf<T, W>::type;

// Lanes used for element type T: never more than kLanes, and at least 1.
template <class T>
constexpr int lanes_of() {
  return M2_VEC_BYTES / int(sizeof(T)) < 1 ? 1 : M2_VEC_BYTES / int(sizeof(T));
}

// Vectors that a function can keep in registers.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kVectorRegisters = 32;
#else
constexpr int kVectorRegisters = 16;
#endif

template <class T, int W>
M2_INLINE Vec<T, W> load(const T* p) {
  return *reinterpret_cast<const typename VecOf<T, W>::unaligned*>(p);
}
template <class T, int W>
M2_INLINE void store(T* p, Vec<T, W> v) {
  *reinterpret_cast<typename VecOf<T, W>::unaligned*>(p) = v;
}

// Complex values: W real parts, W imaginary parts.
template <class T, int W>
struct Cplx {
  Vec<T, W> r, i;
};
template <class T, int W>
M2_INLINE Cplx<T, W> operator+(Cplx<T, W> a, Cplx<T, W> b) { return {a.r + b.r, a.i + b.i}; }
template <class T, int W>
M2_INLINE Cplx<T, W> operator-(Cplx<T, W> a, Cplx<T, W> b) { return {a.r - b.r, a.i - b.i}; }
template <class T, int W>
M2_INLINE Cplx<T, W> load_cplx(const T* p, int64_t im) { return {load<T, W>(p), load<T, W>(p + im)}; }
template <class T, int W>
M2_INLINE void store_cplx(T* p, int64_t im, Cplx<T, W> c) { store<T, W>(p, c.r); store<T, W>(p + im, c.i); }

// a * w, or a * conj(w); w is one complex number for all lanes, or one per lane.
template <bool CONJ, class T, int W, class S>
M2_INLINE Cplx<T, W> mul(Cplx<T, W> a, S wr, S wi) {
  if constexpr (CONJ) return {a.r * wr + a.i * wi, a.i * wr - a.r * wi};
  else return {a.r * wr - a.i * wi, a.r * wi + a.i * wr};
}

// Transpose of a W x W tile held in registers.
template <class T, int W>
M2_INLINE void transpose(Vec<T, W>* r) {
  if constexpr (W == 16 && sizeof(T) == 4) {
    Vec<T, W> t[16];
    for (int i = 0; i < 8; ++i) {
      t[2 * i] = __builtin_shufflevector(r[2 * i], r[2 * i + 1], 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29);
      t[2 * i + 1] = __builtin_shufflevector(r[2 * i], r[2 * i + 1], 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31);
    }
    for (int i = 0; i < 4; ++i)
      for (int h = 0; h < 2; ++h) {
        const Vec<T, W> a = t[4 * i + h], b = t[4 * i + 2 + h];
        r[4 * i + 2 * h] = __builtin_shufflevector(a, b, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29);
        r[4 * i + 2 * h + 1] = __builtin_shufflevector(a, b, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
      }
    for (int i = 0; i < 4; ++i)
      for (int h = 0; h < 2; ++h) {
        const Vec<T, W> a = r[i + 8 * h], b = r[i + 4 + 8 * h];
        t[i + 8 * h] = __builtin_shufflevector(a, b, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27);
        t[i + 4 + 8 * h] = __builtin_shufflevector(a, b, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
      }
    for (int i = 0; i < 8; ++i) {
      r[i] = __builtin_shufflevector(t[i], t[i + 8], 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27);
      r[i + 8] = __builtin_shufflevector(t[i], t[i + 8], 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
    }
  } else if constexpr (W == 8 && sizeof(T) == 4) {
    Vec<T, W> t[8];
    for (int i = 0; i < 4; ++i) {
      t[2 * i] = __builtin_shufflevector(r[2 * i], r[2 * i + 1], 0, 8, 1, 9, 4, 12, 5, 13);
      t[2 * i + 1] = __builtin_shufflevector(r[2 * i], r[2 * i + 1], 2, 10, 3, 11, 6, 14, 7, 15);
    }
    for (int i = 0; i < 2; ++i)
      for (int h = 0; h < 2; ++h) {
        const Vec<T, W> a = t[4 * i + h], b = t[4 * i + 2 + h];
        r[4 * i + 2 * h] = __builtin_shufflevector(a, b, 0, 1, 8, 9, 4, 5, 12, 13);
        r[4 * i + 2 * h + 1] = __builtin_shufflevector(a, b, 2, 3, 10, 11, 6, 7, 14, 15);
      }
    for (int i = 0; i < 4; ++i) {
      const Vec<T, W> a = r[i], b = r[i + 4];
      r[i] = __builtin_shufflevector(a, b, 0, 1, 2, 3, 8, 9, 10, 11);
      r[i + 4] = __builtin_shufflevector(a, b, 4, 5, 6, 7, 12, 13, 14, 15);
    }
  } else if constexpr (W == 4 && sizeof(T) == 4) {
    const Vec<T, W> a = __builtin_shufflevector(r[0], r[1], 0, 4, 2, 6), b = __builtin_shufflevector(r[0], r[1], 1, 5, 3, 7);
    const Vec<T, W> c = __builtin_shufflevector(r[2], r[3], 0, 4, 2, 6), d = __builtin_shufflevector(r[2], r[3], 1, 5, 3, 7);
    r[0] = __builtin_shufflevector(a, c, 0, 1, 4, 5), r[1] = __builtin_shufflevector(b, d, 0, 1, 4, 5);
    r[2] = __builtin_shufflevector(a, c, 2, 3, 6, 7), r[3] = __builtin_shufflevector(b, d, 2, 3, 6, 7);
  } else if constexpr (W == 2) {
    const Vec<T, W> a = r[0], b = r[1];
    r[0] = __builtin_shufflevector(a, b, 0, 2), r[1] = __builtin_shufflevector(a, b, 1, 3);
  } else if constexpr (W > 1) {
    T tile[W][W];
    for (int i = 0; i < W; ++i)
      for (int j = 0; j < W; ++j) tile[j][i] = r[i][j];
    for (int i = 0; i < W; ++i) r[i] = load<T, W>(tile[i]);
  }
}
