// NEON, for vector.inl and unpack.inl.

QX_INLINE void put_u8(uint8_t* p, I32 x) { *reinterpret_cast<U8M*>(p) = __builtin_convertvector(x, U8); }
QX_INLINE int8x16_t bytes_of(const I32 (&c)[4]) {
  const int16x8_t first = vcombine_s16(
      vmovn_s32(reinterpret_cast<int32x4_t>(c[0])), vmovn_s32(reinterpret_cast<int32x4_t>(c[1])));
  const int16x8_t second = vcombine_s16(
      vmovn_s32(reinterpret_cast<int32x4_t>(c[2])), vmovn_s32(reinterpret_cast<int32x4_t>(c[3])));
  return vcombine_s8(vmovn_s16(first), vmovn_s16(second));
}
QX_INLINE void put_four(uint8_t* p, const I32 (&c)[4]) { vst1q_u8(p, vreinterpretq_u8_s8(bytes_of(c))); }
QX_INLINE void put_steps(int8_t* p, const I32 (&c)[4]) { vst1q_s8(p, bytes_of(c)); }
QX_INLINE float largest_of(F32 x) {
  const float a = x[0] > x[2] ? x[0] : x[2], b = x[1] > x[3] ? x[1] : x[3];
  return a > b ? a : b;
}
QX_INLINE float sum_of(F32 x) { return (x[0] + x[2]) + (x[1] + x[3]); }
QX_INLINE F32 at_most(F32 x, F32 bound) { return x < bound ? x : bound; }
QX_INLINE F32 at_least(F32 x, F32 bound) { return x > bound ? x : bound; }
QX_INLINE F32 rounded(F32 x) { return reinterpret_cast<F32>(vrndnq_f32(reinterpret_cast<float32x4_t>(x))); }
QX_INLINE F64 load_wide(const float* p) { return reinterpret_cast<F64>(vcvt_f64_f32(vld1_f32(p))); }
QX_INLINE void store_narrow(float* p, F64 x) { vst1_f32(p, vcvt_f32_f64(reinterpret_cast<float64x2_t>(x))); }
QX_INLINE F64 multiply_add(F64 a, F64 b, F64 c) {
  return reinterpret_cast<F64>(vfmaq_f64(
      reinterpret_cast<float64x2_t>(c), reinterpret_cast<float64x2_t>(a), reinterpret_cast<float64x2_t>(b)));
}
QX_INLINE F32 multiply_add(F32 a, F32 b, F32 c) {
  return reinterpret_cast<F32>(vfmaq_f32(
      reinterpret_cast<float32x4_t>(c), reinterpret_cast<float32x4_t>(a), reinterpret_cast<float32x4_t>(b)));
}

typedef uint8x16_t Nibbles;
QX_INLINE uint8x16_t nibbles(const uint8_t* p) { return vld1q_u8(p); }
QX_INLINE uint8x16_t low(uint8x16_t x) { return vandq_u8(x, vdupq_n_u8(15)); }
QX_INLINE uint8x16_t high(uint8x16_t x) { return vshrq_n_u8(x, 4); }
QX_INLINE int8x16_t table(const int8_t* t) { return vld1q_s8(t); }
QX_INLINE int8x16_t lookup(int8x16_t entries, uint8x16_t index) { return vqtbl1q_s8(entries, index); }
QX_INLINE void put(int8_t* p, int8x16_t x) { vst1q_s8(p, x); }

// Four bytes of A less 128, four times.
QX_INLINE int8x16_t four_signed(const uint8_t* p) {
  uint32_t bytes;
  __builtin_memcpy(&bytes, p, 4);
  return vreinterpretq_s8_u32(vdupq_n_u32(bytes ^ 0x80808080u));
}
