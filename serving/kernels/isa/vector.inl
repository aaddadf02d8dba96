// Floats in vectors of LANES, in the compiler's own vector types: the same source for every instruction set.
//
// To be included inside the namespace of an instruction set, after `constexpr int LANES`. One of simd_*.inl follows it: what these
// types cannot say well.
//   put_u8(p, I32), put_s8(p, I32)   LANES whole numbers, in range, to bytes
//   at_most(x, bound), at_least(x, bound)   the smaller and the larger of the two; `bound` where x is NaN
//   largest_of(x), sum_of(x)        over the lanes; the sum in halves: lane i + lane i + LANES / 2, and so on
//   multiply_add(a, b, c)            a * b + c, rounded once where the processor can; never used where results must be exact
//   and what unpack.inl asks for

typedef float F32 __attribute__((vector_size(LANES * 4)));
typedef int32_t I32 __attribute__((vector_size(LANES * 4)));
typedef uint8_t U8 __attribute__((vector_size(LANES)));
typedef int8_t S8 __attribute__((vector_size(LANES)));
// The same in memory, at any address.
typedef float F32M __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
typedef int32_t I32M __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
typedef uint8_t U8M __attribute__((vector_size(LANES), aligned(1), may_alias));
typedef int8_t S8M __attribute__((vector_size(LANES), aligned(1), may_alias));

#define QX_INLINE static inline __attribute__((always_inline))

// body(i, count) for i = 0, LANES, ..: all but a last, shorter piece with the constant LANES for `count`.
template <class Body>
QX_INLINE void sweep(int64_t width, Body body) {
  int64_t i = 0;
  for (; i + LANES <= width; i += LANES) body(i, int64_t(LANES));
  if (i < width) body(i, width - i);
}

QX_INLINE F32 load(const float* p) { return *reinterpret_cast<const F32M*>(p); }
QX_INLINE void store(float* p, F32 x) { *reinterpret_cast<F32M*>(p) = x; }
QX_INLINE F32 load(const float* p, int64_t count) {
  if (count >= LANES) return load(p);
  F32 x = {};
  for (int64_t i = 0; i < count; ++i) x[i] = p[i];
  return x;
}
QX_INLINE void store(float* p, F32 x, int64_t count) {
  if (count >= LANES) return store(p, x);
  for (int64_t i = 0; i < count; ++i) p[i] = x[i];
}
QX_INLINE F32 all(float x) { return F32{} + x; }
QX_INLINE F32 to_float(I32 x) { return __builtin_convertvector(x, F32); }
QX_INLINE I32 to_int(F32 x) { return __builtin_convertvector(x, I32); }
QX_INLINE F32 as_float(I32 x) { return reinterpret_cast<F32>(x); }
QX_INLINE I32 as_int(F32 x) { return reinterpret_cast<I32>(x); }
QX_INLINE F32 magnitude(F32 x) { return as_float(as_int(x) & 0x7fffffff); }
// Nearest whole number, halves to even; |x| < 2**22.
QX_INLINE F32 nearest(F32 x) {
  const F32 magic = all(12582912.0f);  // 1.5 * 2**23
  return (x + magic) - magic;
}

// Tells the compiler that the value is needed.
QX_INLINE void keep(const void* value) { __asm__ volatile("" : : "r"(value) : "memory"); }
