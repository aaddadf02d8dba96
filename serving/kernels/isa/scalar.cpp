// Portable C++: what runs where nothing better does, and the arithmetic that the other files are tested against.

#include "isa.h"

namespace qexport {
namespace scalar {

constexpr const char* NAME = "scalar";
constexpr int LANES = 4;
constexpr int GROUP = 1;
constexpr int64_t STEPS = 1;
constexpr int32_t NARROW_BIAS = 0, WIDE_BIAS = 0, SMALL_BIAS = 0;
constexpr bool ALWAYS_UNPACK = false, SIGN_AND_SIZE = false, FRESH_SUMS = false;

#include "vector.inl"
#include "simd_plain.inl"
#include "math.inl"

static void unpack_steps(Storage storage, const uint8_t* packed, int64_t steps, int8_t* codes) {
  const int per_row = steps_per_row(storage), bits = 8 / per_row;
  for (int64_t step = 0; step < steps; ++step) {
    const uint8_t* from = packed + step / per_row * STEP_BYTES;
    const int shift = static_cast<int>(step % per_row) * bits;
    for (int place = 0; place < STEP_BYTES; ++place) {
      const int code = from[place] >> shift & ((1 << bits) - 1);
      const int value = storage == ONE_BIT ? 2 * code - 1 : storage == TWO_BITS ? code - 1 : code - 8;
      codes[step * STEP_BYTES + place] = static_cast<int8_t>(value);
    }
  }
}

struct Plain {
  static constexpr int ROWS = 4, PANELS = 1, VECTORS = 1, LENGTH = 64;
  static constexpr bool INT16 = false, PAIRS = false;
  typedef const int8_t* Codes;
  typedef const uint8_t* Spread;
  struct Part {
    int32_t sums[PANEL];
  };
  QX_INLINE Part zero() { return {}; }
  QX_INLINE Codes codes(const int8_t* p) { return p; }
  QX_INLINE Spread spread(const uint8_t* p, int64_t) { return p; }
  QX_INLINE Part dot(Part part, Spread a, Codes w) {
    for (int row = 0; row < PANEL; ++row)
      for (int i = 0; i < 4; ++i) part.sums[row] += a[i] * w[4 * row + i];
    return part;
  }
  QX_INLINE void add(int32_t* sums, const Part& part) {
    for (int row = 0; row < PANEL; ++row) sums[row] += part.sums[row];
  }
};
typedef Plain Narrow;
typedef Plain Wide;
typedef Plain Small;
typedef Plain Scores;

#include "product.inl"
#include "rows.inl"
#include "attention.inl"

static int64_t peak_loop(int64_t rounds) {
  int32_t sums[8] = {};
  for (int64_t i = 0; i < rounds; ++i) {
    for (int j = 0; j < 8; ++j) {
      sums[j] += static_cast<int32_t>(i) * j;
      __asm__ volatile("" : "+r"(sums[j]));
    }
  }
  return rounds * 8;
}

#include "table.inl"

}  // namespace scalar
}  // namespace qexport
