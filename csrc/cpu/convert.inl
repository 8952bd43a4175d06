// Loads and stores of float32, float64, bfloat16 and float16 as W lanes of the computing type T, and the copies
// between strided tensors and contiguous rows. Included by row.h inside namespace m2::<isa>.

struct bf16 { uint16_t bits; };
struct f16 { uint16_t bits; };
#if defined(__aarch64__)
using Half = __fp16;  // GCC 12 knows no _Float16 in C++ there
#else
using Half = _Float16;
#endif

M2_INLINE float to_float(bf16 x) { return __builtin_bit_cast(float, uint32_t(x.bits) << 16); }
M2_INLINE float to_float(f16 x) { return float(__builtin_bit_cast(Half, x.bits)); }
M2_INLINE float to_float(float x) { return x; }
M2_INLINE double to_float(double x) { return x; }

M2_INLINE bf16 to_bf16(float x) {  // round to nearest even, NaN stays NaN
  const uint32_t bits = __builtin_bit_cast(uint32_t, x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return {uint16_t((bits >> 16) | 0x40)};
  return {uint16_t((bits + 0x7fffu + ((bits >> 16) & 1)) >> 16)};
}
template <class S, class T>
M2_INLINE S from_float(T x) {
  if constexpr (sizeof(S) == 2 && __is_same(S, bf16)) return to_bf16(float(x));
  else if constexpr (sizeof(S) == 2) return {__builtin_bit_cast(uint16_t, Half(x))};
  else return S(x);
}

// The same for a vector.
template <int W>
M2_INLINE Vec<uint16_t, W> to_bf16_bits(Vec<float, W> v) {
  using Bits = Vec<uint32_t, W>;
  const Bits bits = (Bits)v, rounded = bits + 0x7fffu + ((bits >> 16) & 1u);
  return __builtin_convertvector((v == v ? rounded : bits | 0x400000u) >> 16, Vec<uint16_t, W>);
}

template <class T, int W, class S>
M2_INLINE Vec<T, W> load_as(const S* p) {
  if constexpr (__is_same(S, T)) return load<T, W>(p);
#if defined(__AVX512F__)
  else if constexpr (__is_same(S, bf16) && W == 16)
    return (Vec<T, W>)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)), 16);
  else if constexpr (__is_same(S, f16) && W == 16)
    return (Vec<T, W>)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p));
#endif
#if defined(__AVX2__)
  else if constexpr (__is_same(S, bf16) && W == 8)
    return (Vec<T, W>)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p)), 16);
  else if constexpr (__is_same(S, f16) && W == 8)
    return (Vec<T, W>)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p));
#endif
#if defined(__aarch64__)
  else if constexpr (__is_same(S, f16) && W == 4)
    return (Vec<T, W>)vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(&p->bits)));
#endif
  else if constexpr (__is_same(S, bf16) && W > 1)
    return (Vec<T, W>)(__builtin_convertvector(load<uint16_t, W>(&p->bits), Vec<uint32_t, W>) << 16);
  else {
    Vec<T, W> v;
    for (int i = 0; i < W; ++i) v[i] = T(to_float(p[i]));
    return v;
  }
}

template <class T, int W, class S>
M2_INLINE void store_as(S* p, Vec<T, W> v) {
  if constexpr (__is_same(S, T)) store<T, W>(p, v);
#if defined(__AVX512F__)
  else if constexpr (__is_same(S, bf16) && W == 16) {
    const __m512i bits = (__m512i)v;
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    const __mmask16 nan = _mm512_cmp_ps_mask((__m512)v, (__m512)v, _CMP_UNORD_Q);
    rounded = _mm512_mask_or_epi32(rounded, nan, bits, _mm512_set1_epi32(0x400000));
    _mm256_storeu_si256((__m256i*)p, _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16)));
  } else if constexpr (__is_same(S, f16) && W == 16)
    _mm256_storeu_si256((__m256i*)p, _mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT));
#endif
#if defined(__AVX2__)
  else if constexpr (__is_same(S, bf16) && W == 8) {
    const __m256i bits = (__m256i)v, odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    const __m256 nan = _mm256_cmp_ps((__m256)v, (__m256)v, _CMP_UNORD_Q), quiet = (__m256)_mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    const __m256i upper = _mm256_srli_epi32((__m256i)_mm256_blendv_ps((__m256)rounded, quiet, nan), 16);
    _mm_storeu_si128((__m128i*)p, _mm_packus_epi32(_mm256_castsi256_si128(upper), _mm256_extracti128_si256(upper, 1)));
  } else if constexpr (__is_same(S, f16) && W == 8)
    _mm_storeu_si128((__m128i*)p, _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT));
#endif
#if defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
  else if constexpr (__is_same(S, bf16) && W == 4)
    vst1_bf16((bfloat16_t*)p, vcvt_bf16_f32((float32x4_t)v));
#endif
#if defined(__aarch64__)
  else if constexpr (__is_same(S, f16) && W == 4)
    vst1_u16(&p->bits, vreinterpret_u16_f16(vcvt_f16_f32((float32x4_t)v)));
#endif
  else if constexpr (__is_same(S, bf16) && W > 1)
    store<uint16_t, W>(&p->bits, to_bf16_bits<W>(v));
  else
    for (int i = 0; i < W; ++i) p[i] = from_float<S>(v[i]);
}

// Call f with a typed pointer for a dtype; only the types computed in T.
template <class T, class F>
M2_INLINE void with_type(Dtype dtype, F f) {
  if constexpr (sizeof(T) == 8) f.template operator()<double>();
  else switch (dtype) {
    case Dtype::bf16: f.template operator()<bf16>(); break;
    case Dtype::f16: f.template operator()<f16>(); break;
    default: f.template operator()<float>();
  }
}

// x[c, t] of a block.
template <class S>
struct Strided {
  S* p;
  int64_t channel, seq;
  M2_INLINE S* at(int64_t c, int64_t t) const { return p + c * channel + t * seq; }
};
template <class S>
M2_INLINE Strided<S> strided(Block b) { return {static_cast<S*>(b.data), b.stride_channel, b.stride_seq}; }

// Covers the channels x seqlen area of a block: `wide(c, t)` handles W x W tiles (channels contiguous) or W positions
// of one channel (time contiguous), `single(c, t)` the rest.
template <int W, class Wide, class Single>
M2_INLINE void for_tiles(bool time_contiguous, int64_t channels, int64_t seqlen, Wide wide, Single single) {
  const int64_t whole = seqlen / W * W;
  if (time_contiguous) {
    for (int64_t c = 0; c < channels; ++c) {
      for (int64_t t = 0; t < whole; t += W) wide(c, t);
      for (int64_t t = whole; t < seqlen; ++t) single(c, t);
    }
    return;
  }
  const int64_t full = channels / W * W;
  for (int64_t t = 0; t < whole; t += W) {
    for (int64_t c = 0; c < full; c += W) wide(c, t);
    for (int64_t i = t; i < t + W; ++i)
      for (int64_t c = full; c < channels; ++c) single(c, i);
  }
  for (int64_t t = whole; t < seqlen; ++t)
    for (int64_t c = 0; c < channels; ++c) single(c, t);
}

template <class T, int W>
struct Copies {
  static void gather(Block x, Block gate, int64_t channels, int64_t seqlen, int64_t row_size, T* rows) {
    const bool by_time = x.time_contiguous;
    with_type<T>(x.dtype, [&]<class S>() {
      const auto a = strided<const S>(x), g = strided<const S>(gate);
      const auto single = [&](int64_t c, int64_t t) {
        const T v = T(to_float(*a.at(c, t)));
        rows[c * row_size + t] = g.p ? v * T(to_float(*g.at(c, t))) : v;
      };
      const auto wide = [&](int64_t c, int64_t t) {
        if (by_time) {
          Vec<T, W> v = load_as<T, W>(a.at(c, t));
          if (g.p) v *= load_as<T, W>(g.at(c, t));
          store<T, W>(rows + c * row_size + t, v);
          return;
        }
        Vec<T, W> v[W];
        for (int i = 0; i < W; ++i) v[i] = load_as<T, W>(a.at(c, t + i));
        if (g.p)
          for (int i = 0; i < W; ++i) v[i] *= load_as<T, W>(g.at(c, t + i));
        transpose<T, W>(v);
        for (int i = 0; i < W; ++i) store<T, W>(rows + (c + i) * row_size + t, v[i]);
      };
      for_tiles<W>(by_time, channels, seqlen, wide, single);
    });
    for (int64_t c = 0; c < channels; ++c)
      for (int64_t t = seqlen; t < row_size; ++t) rows[c * row_size + t] = T(0);
  }

  static void scatter(const T* rows, Block gate, int64_t channels, int64_t seqlen, int64_t row_size, Block out) {
    const bool by_time = out.time_contiguous;
    with_type<T>(out.dtype, [&]<class S>() {
      const auto y = strided<S>(out);
      const auto g = strided<const S>(gate);
      const auto single = [&](int64_t c, int64_t t) {
        const T v = rows[c * row_size + t];
        *y.at(c, t) = from_float<S>(g.p ? v * T(to_float(*g.at(c, t))) : v);
      };
      const auto wide = [&](int64_t c, int64_t t) {
        if (by_time) {
          Vec<T, W> v = load<T, W>(rows + c * row_size + t);
          if (g.p) v *= load_as<T, W>(g.at(c, t));
          store_as<T, W>(y.at(c, t), v);
          return;
        }
        Vec<T, W> v[W];
        for (int i = 0; i < W; ++i) v[i] = load<T, W>(rows + (c + i) * row_size + t);
        transpose<T, W>(v);
        if (g.p)
          for (int i = 0; i < W; ++i) v[i] *= load_as<T, W>(g.at(c, t + i));
        for (int i = 0; i < W; ++i) store_as<T, W>(y.at(c, t + i), v[i]);
      };
      for_tiles<W>(by_time, channels, seqlen, wide, single);
    });
  }

  static void scatter_product(const T* a, const T* b, int64_t channels, int64_t seqlen, int64_t row_size, Block out) {
    const bool by_time = out.time_contiguous;
    with_type<T>(out.dtype, [&]<class S>() {
      const auto y = strided<S>(out);
      const auto single = [&](int64_t c, int64_t t) {
        *y.at(c, t) = from_float<S>(a[c * row_size + t] * b[c * row_size + t]);
      };
      const auto wide = [&](int64_t c, int64_t t) {
        const auto product = [&](int64_t channel) {
          return load<T, W>(a + channel * row_size + t) * load<T, W>(b + channel * row_size + t);
        };
        if (by_time) return store_as<T, W>(y.at(c, t), product(c));
        Vec<T, W> v[W];
        for (int i = 0; i < W; ++i) v[i] = product(c + i);
        transpose<T, W>(v);
        for (int i = 0; i < W; ++i) store_as<T, W>(y.at(c, t + i), v[i]);
      };
      for_tiles<W>(by_time, channels, seqlen, wide, single);
    });
  }
};
