// Nibbles of 64 bytes, for unpack.inl: AVX-512 BW.

typedef __m512i Nibbles;
QX_INLINE __m512i nibbles(const uint8_t* p) { return _mm512_loadu_si512(p); }
QX_INLINE __m512i low(__m512i x) { return _mm512_and_si512(x, _mm512_set1_epi8(15)); }
QX_INLINE __m512i high(__m512i x) { return low(_mm512_srli_epi16(x, 4)); }
QX_INLINE __m512i table(const int8_t* t) {
  // the masked form: GCC 12 warns of an undefined value inside the plain one
  return _mm512_maskz_broadcast_i32x4(0xffff, _mm_loadu_si128(reinterpret_cast<const __m128i*>(t)));
}
QX_INLINE __m512i lookup(__m512i entries, __m512i index) { return _mm512_shuffle_epi8(entries, index); }
QX_INLINE void put(int8_t* p, __m512i x) { _mm512_storeu_si512(p, x); }
