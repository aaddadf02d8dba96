// Whole numbers in range to bytes, in the compiler's own words.

QX_INLINE U8 narrow_u8(I32 x) { return __builtin_convertvector(x, U8); }
QX_INLINE S8 narrow_s8(I32 x) { return __builtin_convertvector(x, S8); }
