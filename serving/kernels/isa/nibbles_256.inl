// Nibbles of 32 bytes, for unpack.inl: AVX2.

typedef __m256i Nibbles;
QX_INLINE __m256i nibbles(const uint8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
QX_INLINE __m256i low(__m256i x) { return _mm256_and_si256(x, _mm256_set1_epi8(15)); }
QX_INLINE __m256i high(__m256i x) { return low(_mm256_srli_epi16(x, 4)); }
QX_INLINE __m256i table(const int8_t* t) {
  return _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(t)));
}
QX_INLINE __m256i lookup(__m256i entries, __m256i index) { return _mm256_shuffle_epi8(entries, index); }
QX_INLINE void put(int8_t* p, __m256i x) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), x); }
