// The dot product extension of Armv8.2: sdot adds four products of int8 to an int32.

#include <arm_neon.h>

#include "isa.h"

namespace qexport {
namespace dotprod {

constexpr const char* NAME = "dotprod";
constexpr int LANES = 4;
constexpr int GROUP = 1;
constexpr int64_t STEPS = 1;
constexpr int32_t NARROW_BIAS = 128, WIDE_BIAS = 128, SMALL_BIAS = 128;
constexpr bool ALWAYS_UNPACK = false, SIGN_AND_SIZE = false, FRESH_SUMS = false;
constexpr int LENGTH = 16;

#include "vector.inl"
#include "simd_neon.inl"
#include "math.inl"
#include "unpack.inl"

struct Dot {
  static constexpr int ROWS = 6, PANELS = 1, VECTORS = 4, LENGTH = 16;
  static constexpr bool INT16 = false, PAIRS = false;
  typedef int8x16_t Codes;
  typedef int8x16_t Spread;
  typedef int32x4_t Part;
  QX_INLINE Part zero() { return vdupq_n_s32(0); }
  QX_INLINE Codes codes(const int8_t* p) { return vld1q_s8(p); }
  QX_INLINE Spread spread(const uint8_t* p, int64_t) { return four_signed(p); }
  QX_INLINE Part dot(Part part, Spread a, Codes w) { return vdotq_s32(part, w, a); }
  QX_INLINE void add(int32_t* sums, Part part) { vst1q_s32(sums, vaddq_s32(vld1q_s32(sums), part)); }
};
typedef Dot Narrow;
typedef Dot Wide;
typedef Dot Small;
typedef Dot Scores;

#include "product.inl"
#include "rows.inl"
#include "attention.inl"

static int64_t peak_loop(int64_t rounds) {
  const int8x16_t a = vdupq_n_s8(1), w = vdupq_n_s8(1);
  int32x4_t r[16];
  for (int j = 0; j < 16; ++j) r[j] = vdupq_n_s32(0);
  for (int64_t i = 0; i < rounds; ++i) {
#pragma GCC unroll 16
    for (int j = 0; j < 16; ++j) r[j] = vdotq_s32(r[j], w, a);
  }
  for (int j = 0; j < 16; ++j) keep(&r[j]);
  return rounds * 16 * 16;
}

#include "table.inl"

}  // namespace dotprod
}  // namespace qexport
