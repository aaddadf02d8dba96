// Whole numbers in range to bytes: AVX2. (GCC 12 takes the general conversion apart, element by element.)

QX_INLINE U8 narrow_u8(I32 x) {
  const __m256i whole = reinterpret_cast<__m256i>(x);
  const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(whole), _mm256_extracti128_si256(whole, 1));
  const int64_t bytes = _mm_cvtsi128_si64(_mm_packus_epi16(words, words));
  U8 result;
  __builtin_memcpy(&result, &bytes, 8);
  return result;
}
QX_INLINE S8 narrow_s8(I32 x) {
  const __m256i whole = reinterpret_cast<__m256i>(x);
  const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(whole), _mm256_extracti128_si256(whole, 1));
  const int64_t bytes = _mm_cvtsi128_si64(_mm_packs_epi16(words, words));
  S8 result;
  __builtin_memcpy(&result, &bytes, 8);
  return result;
}
