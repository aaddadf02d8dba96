// Portable C++, for vector.inl.

QX_INLINE void put_u8(uint8_t* p, I32 x) { *reinterpret_cast<U8M*>(p) = __builtin_convertvector(x, U8); }
QX_INLINE void put_s8(int8_t* p, I32 x) { *reinterpret_cast<S8M*>(p) = __builtin_convertvector(x, S8); }
QX_INLINE F32 multiply_add(F32 a, F32 b, F32 c) { return a * b + c; }
