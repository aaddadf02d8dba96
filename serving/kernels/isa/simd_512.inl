// AVX-512, for vector.inl and unpack.inl. (Masked forms: GCC 12 warns of undefined values inside the plain ones.)

QX_INLINE __m128i bytes_of(I32 x) { return _mm512_maskz_cvtepi32_epi8(0xffff, reinterpret_cast<__m512i>(x)); }
QX_INLINE void put_u8(uint8_t* p, I32 x) { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), bytes_of(x)); }
QX_INLINE void put_four(uint8_t* p, const I32 (&c)[4]) {
  for (int i = 0; i < 4; ++i) put_u8(p + i * LANES, c[i]);
}
QX_INLINE void put_steps(int8_t* p, const I32 (&c)[4]) {
  const __m128i row[4] = {bytes_of(c[0]), bytes_of(c[1]), bytes_of(c[2]), bytes_of(c[3])};
  const __m128i low[2] = {_mm_unpacklo_epi32(row[0], row[1]), _mm_unpacklo_epi32(row[2], row[3])};
  const __m128i high[2] = {_mm_unpackhi_epi32(row[0], row[1]), _mm_unpackhi_epi32(row[2], row[3])};
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm_unpacklo_epi64(low[0], low[1]));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p + STEP_BYTES), _mm_unpackhi_epi64(low[0], low[1]));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p + 2 * STEP_BYTES), _mm_unpacklo_epi64(high[0], high[1]));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p + 3 * STEP_BYTES), _mm_unpackhi_epi64(high[0], high[1]));
}
QX_INLINE __m256 low_half(F32 x) { return _mm512_maskz_extractf32x8_ps(0xff, reinterpret_cast<__m512>(x), 0); }
QX_INLINE __m256 high_half(F32 x) { return _mm512_maskz_extractf32x8_ps(0xff, reinterpret_cast<__m512>(x), 1); }
QX_INLINE float largest_of(F32 x) {
  const __m256 eight = _mm256_max_ps(low_half(x), high_half(x));
  __m128 most = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  most = _mm_max_ps(most, _mm_movehl_ps(most, most));
  return _mm_cvtss_f32(_mm_max_ss(most, _mm_movehdup_ps(most)));
}
QX_INLINE float sum_of(F32 x) {
  const __m256 eight = _mm256_add_ps(low_half(x), high_half(x));
  __m128 sum = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
  return _mm_cvtss_f32(_mm_add_ss(sum, _mm_movehdup_ps(sum)));
}
// The instructions give their second operand where one is NaN.
QX_INLINE F32 at_most(F32 x, F32 bound) {
  return reinterpret_cast<F32>(_mm512_maskz_min_ps(0xffff, reinterpret_cast<__m512>(x), reinterpret_cast<__m512>(bound)));
}
QX_INLINE F32 at_least(F32 x, F32 bound) {
  return reinterpret_cast<F32>(_mm512_maskz_max_ps(0xffff, reinterpret_cast<__m512>(x), reinterpret_cast<__m512>(bound)));
}
QX_INLINE F32 rounded(F32 x) {
  return reinterpret_cast<F32>(_mm512_maskz_roundscale_ps(
      0xffff, reinterpret_cast<__m512>(x), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
QX_INLINE F64 load_wide(const float* p) { return reinterpret_cast<F64>(_mm512_maskz_cvtps_pd(0xff, _mm256_loadu_ps(p))); }
QX_INLINE void store_narrow(float* p, F64 x) {
  _mm256_storeu_ps(p, _mm512_maskz_cvtpd_ps(0xff, reinterpret_cast<__m512d>(x)));
}
QX_INLINE F64 multiply_add(F64 a, F64 b, F64 c) {
  return reinterpret_cast<F64>(
      _mm512_fmadd_pd(reinterpret_cast<__m512d>(a), reinterpret_cast<__m512d>(b), reinterpret_cast<__m512d>(c)));
}
QX_INLINE F32 multiply_add(F32 a, F32 b, F32 c) {
  return reinterpret_cast<F32>(
      _mm512_fmadd_ps(reinterpret_cast<__m512>(a), reinterpret_cast<__m512>(b), reinterpret_cast<__m512>(c)));
}

typedef __m512i Nibbles;
QX_INLINE __m512i nibbles(const uint8_t* p) { return _mm512_loadu_si512(p); }
QX_INLINE __m512i low(__m512i x) { return _mm512_and_si512(x, _mm512_set1_epi8(15)); }
QX_INLINE __m512i high(__m512i x) { return low(_mm512_srli_epi16(x, 4)); }
QX_INLINE __m512i table(const int8_t* t) {
  return _mm512_maskz_broadcast_i32x4(0xffff, _mm_loadu_si128(reinterpret_cast<const __m128i*>(t)));
}
QX_INLINE __m512i lookup(__m512i entries, __m512i index) { return _mm512_shuffle_epi8(entries, index); }
QX_INLINE void put(int8_t* p, __m512i x) { _mm512_storeu_si512(p, x); }
