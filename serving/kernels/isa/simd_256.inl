// AVX2, for vector.inl and unpack.inl.

// (GCC 12 takes its own conversion to bytes apart, element by element.)
QX_INLINE __m128i words_of(I32 x) {
  const __m256i whole = reinterpret_cast<__m256i>(x);
  return _mm_packs_epi32(_mm256_castsi256_si128(whole), _mm256_extracti128_si256(whole, 1));
}
QX_INLINE void put_u8(uint8_t* p, I32 x) {
  const __m128i words = words_of(x);
  _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packus_epi16(words, words));
}
// (Packing works in each half alone, so bytes come out as elements 0..3 of a, b, c and d, then 4..7 of each.)
QX_INLINE __m256i shorts_of(I32 a, I32 b) {
  return _mm256_packs_epi32(reinterpret_cast<__m256i>(a), reinterpret_cast<__m256i>(b));
}
QX_INLINE void put_four(uint8_t* p, const I32 (&c)[4]) {
  const __m256i bytes = _mm256_packus_epi16(shorts_of(c[0], c[1]), shorts_of(c[2], c[3]));
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_permutevar8x32_epi32(bytes, order));
}
QX_INLINE void put_steps(int8_t* p, const I32 (&c)[4]) {
  const __m256i bytes = _mm256_packs_epi16(shorts_of(c[0], c[1]), shorts_of(c[2], c[3]));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(bytes));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p + STEP_BYTES), _mm256_extracti128_si256(bytes, 1));
}
QX_INLINE float largest_of(F32 x) {
  const __m256 all_lanes = reinterpret_cast<__m256>(x);
  __m128 most = _mm_max_ps(_mm256_castps256_ps128(all_lanes), _mm256_extractf128_ps(all_lanes, 1));
  most = _mm_max_ps(most, _mm_movehl_ps(most, most));
  return _mm_cvtss_f32(_mm_max_ss(most, _mm_movehdup_ps(most)));
}
QX_INLINE float sum_of(F32 x) {
  const __m256 all_lanes = reinterpret_cast<__m256>(x);
  __m128 sum = _mm_add_ps(_mm256_castps256_ps128(all_lanes), _mm256_extractf128_ps(all_lanes, 1));
  sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
  return _mm_cvtss_f32(_mm_add_ss(sum, _mm_movehdup_ps(sum)));
}
// The instructions give their second operand where one is NaN.
QX_INLINE F32 at_most(F32 x, F32 bound) {
  return reinterpret_cast<F32>(_mm256_min_ps(reinterpret_cast<__m256>(x), reinterpret_cast<__m256>(bound)));
}
QX_INLINE F32 at_least(F32 x, F32 bound) {
  return reinterpret_cast<F32>(_mm256_max_ps(reinterpret_cast<__m256>(x), reinterpret_cast<__m256>(bound)));
}
QX_INLINE F32 rounded(F32 x) {
  return reinterpret_cast<F32>(
      _mm256_round_ps(reinterpret_cast<__m256>(x), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
QX_INLINE F64 load_wide(const float* p) { return reinterpret_cast<F64>(_mm256_cvtps_pd(_mm_loadu_ps(p))); }
QX_INLINE void store_narrow(float* p, F64 x) { _mm_storeu_ps(p, _mm256_cvtpd_ps(reinterpret_cast<__m256d>(x))); }
QX_INLINE F64 multiply_add(F64 a, F64 b, F64 c) {
  return reinterpret_cast<F64>(
      _mm256_fmadd_pd(reinterpret_cast<__m256d>(a), reinterpret_cast<__m256d>(b), reinterpret_cast<__m256d>(c)));
}
QX_INLINE F32 multiply_add(F32 a, F32 b, F32 c) {
  return reinterpret_cast<F32>(
      _mm256_fmadd_ps(reinterpret_cast<__m256>(a), reinterpret_cast<__m256>(b), reinterpret_cast<__m256>(c)));
}

typedef __m256i Nibbles;
QX_INLINE __m256i nibbles(const uint8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
QX_INLINE __m256i low(__m256i x) { return _mm256_and_si256(x, _mm256_set1_epi8(15)); }
QX_INLINE __m256i high(__m256i x) { return low(_mm256_srli_epi16(x, 4)); }
QX_INLINE __m256i table(const int8_t* t) {
  return _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(t)));
}
QX_INLINE __m256i lookup(__m256i entries, __m256i index) { return _mm256_shuffle_epi8(entries, index); }
QX_INLINE void put(int8_t* p, __m256i x) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), x); }
