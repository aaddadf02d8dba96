// Whole numbers in range to bytes: AVX-512. (Masked forms: GCC 12 warns of undefined values inside the plain ones.)

QX_INLINE U8 narrow_u8(I32 x) { return reinterpret_cast<U8>(_mm512_maskz_cvtepi32_epi8(0xffff, reinterpret_cast<__m512i>(x))); }
QX_INLINE S8 narrow_s8(I32 x) { return reinterpret_cast<S8>(_mm512_maskz_cvtepi32_epi8(0xffff, reinterpret_cast<__m512i>(x))); }
