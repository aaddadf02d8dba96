// Portable C++, for vector.inl.

QX_INLINE void put_u8(uint8_t* p, I32 x) { *reinterpret_cast<U8M*>(p) = __builtin_convertvector(x, U8); }
QX_INLINE void put_four(uint8_t* p, const I32 (&c)[4]) {
  for (int i = 0; i < 4; ++i) put_u8(p + i * LANES, c[i]);
}
QX_INLINE void put_steps(int8_t* p, const I32 (&c)[4]) {
  for (int i = 0; i < 4; ++i) *reinterpret_cast<S8M*>(p + i * LANES) = __builtin_convertvector(c[i], S8);
}
QX_INLINE float largest_of(F32 x) {
  const float a = x[0] > x[2] ? x[0] : x[2], b = x[1] > x[3] ? x[1] : x[3];
  return a > b ? a : b;
}
QX_INLINE float sum_of(F32 x) { return (x[0] + x[2]) + (x[1] + x[3]); }
QX_INLINE F32 at_most(F32 x, F32 bound) { return x < bound ? x : bound; }
QX_INLINE F32 at_least(F32 x, F32 bound) { return x > bound ? x : bound; }
QX_INLINE F32 rounded(F32 x) {
  const F32 size = magnitude(x), near = (size + 8388608.0f) - 8388608.0f;  // from 2**23 on every float is whole
  return size < 8388608.0f ? as_float(as_int(near) | (as_int(x) & INT32_MIN)) : x;
}
QX_INLINE F64 load_wide(const float* p) { return F64{static_cast<double>(p[0]), static_cast<double>(p[1])}; }
QX_INLINE void store_narrow(float* p, F64 x) {
  p[0] = static_cast<float>(x[0]);
  p[1] = static_cast<float>(x[1]);
}
QX_INLINE F64 multiply_add(F64 a, F64 b, F64 c) { return a * b + c; }
QX_INLINE F32 multiply_add(F32 a, F32 b, F32 c) { return a * b + c; }
