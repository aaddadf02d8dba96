// NEON without the dot product extension: smlal adds products of int8 to 16-bit lanes, which are widened before they
// can overflow (every 255 steps for ternary weights, every step for 8 bits).

#include <arm_neon.h>

#include "isa.h"

namespace qexport {
namespace neon {

constexpr const char* NAME = "neon";
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
  static constexpr int ROWS = 3, PANELS = 1, VECTORS = 4, LENGTH = 16;
  static constexpr bool INT16 = true, PAIRS = false;
  typedef int8x16_t Codes;
  typedef int8x16_t Spread;
  struct Part {
    int16x8_t low, high;
  };
  QX_INLINE Part zero() { return {vdupq_n_s16(0), vdupq_n_s16(0)}; }
  QX_INLINE Codes codes(const int8_t* p) { return vld1q_s8(p); }
  QX_INLINE Spread spread(const uint8_t* p, int64_t) { return four_signed(p); }
  QX_INLINE Part dot(Part part, Spread a, Codes w) {
    return {vmlal_s8(part.low, vget_low_s8(a), vget_low_s8(w)), vmlal_high_s8(part.high, a, w)};
  }
  QX_INLINE void add(int32_t* sums, Part part) {
    const int32x4_t columns = vpaddq_s32(vpaddlq_s16(part.low), vpaddlq_s16(part.high));
    vst1q_s32(sums, vaddq_s32(vld1q_s32(sums), columns));
  }
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
  int16x8_t r[12];
  for (int j = 0; j < 12; ++j) r[j] = vdupq_n_s16(0);
  for (int64_t i = 0; i < rounds; ++i) {
#pragma GCC unroll 12
    for (int j = 0; j < 12; ++j) r[j] = vmlal_high_s8(r[j], a, w);
  }
  for (int j = 0; j < 12; ++j) keep(&r[j]);
  return rounds * 12 * 8;
}

#include "table.inl"

}  // namespace neon
}  // namespace qexport
