// Floats in vectors of LANES, in the compiler's own vector types: the same source for every instruction set.
//
// To be included inside the namespace of an instruction set, after `constexpr int LANES`. One of simd_*.inl follows it: what these
// types cannot say well.
//   put_u8(p, I32)                   LANES whole numbers, in range, to bytes
//   put_four(p, c)                   I32 c[4], in range, to bytes p[0 .. 4 * LANES)
//   put_steps(p, c)                  to int8: elements 4 i .. 4 i + 3 of c[0], then of c[1], c[2] and c[3], to the 16 bytes at
//                                    p + i * STEP_BYTES: four rows of a panel (core.h)
//   at_most(x, bound), at_least(x, bound)   the smaller and the larger of the two; `bound` where x is NaN
//   largest_of(x), sum_of(x)        over the lanes; the sum in halves: lane i + lane i + LANES / 2, and so on
//   rounded(x)                       the nearest whole number, halves to even, as a float of any magnitude; infinite and NaN stay
//   load_wide(p), store_narrow(p, F64)   LANES / 2 floats as doubles, and back, rounded (GCC 12 takes its own conversions apart)
//   multiply_add(a, b, c)            a * b + c, rounded once where the processor can; never used where results must be exact
//   and what unpack.inl asks for

typedef float F32 __attribute__((vector_size(LANES * 4)));
typedef double F64 __attribute__((vector_size(LANES * 4)));  // LANES / 2 of them
typedef int32_t I32 __attribute__((vector_size(LANES * 4)));
typedef uint8_t U8 __attribute__((vector_size(LANES)));
typedef int8_t S8 __attribute__((vector_size(LANES)));
// The same in memory, at any address.
typedef float F32M __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
typedef double F64M __attribute__((vector_size(LANES * 4), aligned(8), may_alias));
typedef int32_t I32M __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
typedef uint8_t U8M __attribute__((vector_size(LANES), aligned(1), may_alias));
typedef int8_t S8M __attribute__((vector_size(LANES), aligned(1), may_alias));

#define QX_INLINE static inline __attribute__((always_inline))
#define QX_APART [[maybe_unused]] __attribute__((noinline)) static

// body(i, count) for i = 0, LANES, ..: all but a last, shorter piece with the constant LANES for `count`.
template <class Body>
QX_INLINE void sweep(int64_t width, Body body) {
  int64_t i = 0;
  for (; i + LANES <= width; i += LANES) body(i, int64_t(LANES));
  if (i < width) body(i, width - i);
}

QX_INLINE F32 load(const float* p) { return *reinterpret_cast<const F32M*>(p); }
QX_INLINE void store(float* p, F32 x) { *reinterpret_cast<F32M*>(p) = x; }
// `count` floats, 0 in the lanes past them. Apart, because compilers unroll these loops wherever they are inlined.
QX_APART F32 load_piece(const float* p, int64_t count) {
  F32 x = {};
  for (int64_t i = 0; i < count; ++i) x[i] = p[i];
  return x;
}
QX_APART void store_piece(float* p, F32 x, int64_t count) {
  for (int64_t i = 0; i < count; ++i) p[i] = x[i];
}
QX_INLINE F32 load(const float* p, int64_t count) { return count >= LANES ? load(p) : load_piece(p, count); }
QX_INLINE void store(float* p, F32 x, int64_t count) { count >= LANES ? store(p, x) : store_piece(p, x, count); }
QX_INLINE F32 all(float x) { return x - F32{}; }  // (x + 0 would stay an addition: it turns -0 to 0)
QX_INLINE F64 all(double x) { return x - F64{}; }
QX_INLINE F32 to_float(I32 x) { return __builtin_convertvector(x, F32); }
QX_INLINE F32 as_float(I32 x) { return reinterpret_cast<F32>(x); }
QX_INLINE I32 as_int(F32 x) { return reinterpret_cast<I32>(x); }
QX_INLINE F32 magnitude(F32 x) { return as_float(as_int(x) & 0x7fffffff); }
// x + 1.5 * 2**23: the nearest whole number, halves to even, stands in the low bits. |x| < 2**22.
constexpr float MAGIC = 12582912.0f;
constexpr int32_t MAGIC_BITS = 0x4b400000;
QX_INLINE I32 nearest(F32 x) { return as_int(x + MAGIC) - MAGIC_BITS; }

// Keeps compilers from making vectors of a loop over the few values that are left.
QX_INLINE void alone(int64_t& i) { __asm__ volatile("" : "+r"(i)); }

// Tells the compiler that the value is needed.
QX_INLINE void keep(const void* value) { __asm__ volatile("" : : "r"(value) : "memory"); }
