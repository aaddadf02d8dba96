// The int8 matrix extension of Armv8.6: usmmla multiplies 2 rows of A by 2 rows of W, 8 values of k each.
//
// Two steps of a panel, zipped by columns, are 8 values of k of 2 rows of W in a vector. A tile is 8 rows of A by half a panel.

#include <arm_neon.h>

#include "isa.h"

namespace qexport {
namespace i8mm {

constexpr const char* NAME = "i8mm";
constexpr int LANES = 4;
constexpr int GROUP = 1;
constexpr int64_t STEPS = 2;
constexpr int32_t NARROW_BIAS = 0, WIDE_BIAS = 0, SMALL_BIAS = 0;
constexpr bool ALWAYS_UNPACK = false, SIGN_AND_SIZE = false, FRESH_SUMS = false;
constexpr int LENGTH = 16;

#include "vector.inl"
#include "simd_neon.inl"
#include "math.inl"
#include "unpack.inl"

// 2 * P rows of A by 8 columns; `rows` of them count, the last one standing in for those that are missing.
template <int P>
static void tile(
    const uint8_t* a, int64_t lda, int64_t rows, const int8_t* w, int64_t steps, int32_t* sums, int64_t sums_stride) {
  const uint8_t* row[2 * P];
  for (int r = 0; r < 2 * P; ++r) row[r] = a + (r < rows ? r : rows - 1) * lda;
  int32x4_t part[P][4];
  for (int p = 0; p < P; ++p)
    for (int c = 0; c < 4; ++c) part[p][c] = vdupq_n_s32(0);
  for (int64_t step = 0; step < steps; step += 2) {
    int8x16_t codes[4];
    for (int half = 0; half < 2; ++half) {
      const int32x4_t first = vreinterpretq_s32_s8(vld1q_s8(w + step * STEP_BYTES + 16 * half));
      const int32x4_t second = vreinterpretq_s32_s8(vld1q_s8(w + (step + 1) * STEP_BYTES + 16 * half));
      codes[2 * half] = vreinterpretq_s8_s32(vzip1q_s32(first, second));
      codes[2 * half + 1] = vreinterpretq_s8_s32(vzip2q_s32(first, second));
    }
    for (int p = 0; p < P; ++p) {
      const uint8x16_t two = vcombine_u8(vld1_u8(row[2 * p] + 4 * step), vld1_u8(row[2 * p + 1] + 4 * step));
      for (int c = 0; c < 4; ++c) part[p][c] = vusmmlaq_s32(part[p][c], two, codes[c]);
    }
  }
  for (int r = 0; r < 2 * P && r < rows; ++r) {
    for (int c = 0; c < 4; ++c) {
      const int32x2_t columns = r % 2 ? vget_high_s32(part[r / 2][c]) : vget_low_s32(part[r / 2][c]);
      int32_t* to = sums + r * sums_stride + 2 * c;
      vst1_s32(to, vadd_s32(vld1_s32(to), columns));
    }
  }
}

// Same contract as in product.inl.
static void accumulate(
    const uint8_t* a, int64_t lda, int64_t rows, const int8_t* w, int64_t panel_stride, int64_t panels, int64_t steps, int,
    int32_t* sums, int64_t sums_stride) {
  for (int64_t row = 0; row < rows; row += 8) {
    const int64_t count = smaller(8, rows - row);
    for (int64_t half = 0; half < 2 * panels; ++half) {
      const uint8_t* from = a + row * lda;
      int32_t* to = sums + row * sums_stride + 8 * half;
      const int8_t* codes = w + half / 2 * panel_stride + 32 * (half % 2);
      if (count > 6)
        tile<4>(from, lda, count, codes, steps, to, sums_stride);
      else if (count > 4)
        tile<3>(from, lda, count, codes, steps, to, sums_stride);
      else if (count > 2)
        tile<2>(from, lda, count, codes, steps, to, sums_stride);
      else
        tile<1>(from, lda, count, codes, steps, to, sums_stride);
    }
  }
}

#define QX_OWN_ACCUMULATE 1
#include "product.inl"
#include "rows.inl"
#include "attention.inl"

static int64_t peak_loop(int64_t rounds) {
  const uint8x16_t a = vdupq_n_u8(1);
  const int8x16_t w = vdupq_n_s8(1);
  int32x4_t r[16];
  for (int j = 0; j < 16; ++j) r[j] = vdupq_n_s32(0);
  for (int64_t i = 0; i < rounds; ++i) {
#pragma GCC unroll 16
    for (int j = 0; j < 16; ++j) r[j] = vusmmlaq_s32(r[j], a, w);
  }
  for (int j = 0; j < 16; ++j) keep(&r[j]);
  return rounds * 16 * 32;
}

#include "table.inl"

}  // namespace i8mm
}  // namespace qexport
