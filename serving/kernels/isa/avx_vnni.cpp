// AVX-VNNI: vpdpbusd on 256 bits multiplies uint8 by int8 and adds four products to an int32, for weights of any width.

#include <immintrin.h>

#include "isa.h"

namespace qexport {
namespace avx_vnni {

constexpr const char* NAME = "avx-vnni";
constexpr int LANES = 8;
constexpr int GROUP = 1;
constexpr int64_t STEPS = 1;
constexpr int32_t NARROW_BIAS = 0, WIDE_BIAS = 0, SMALL_BIAS = 0;
constexpr bool ALWAYS_UNPACK = false, SIGN_AND_SIZE = false, FRESH_SUMS = false;
constexpr int LENGTH = 32;

#include "vector.inl"
#include "simd_256.inl"
#include "math.inl"
#include "unpack.inl"

struct Dot {
  static constexpr int ROWS = 6, PANELS = 1, VECTORS = 2, LENGTH = 32;
  static constexpr bool INT16 = false, PAIRS = false;
  typedef __m256i Codes;
  typedef __m256i Spread;
  typedef __m256i Part;
  QX_INLINE __m256i zero() { return _mm256_setzero_si256(); }
  QX_INLINE __m256i codes(const int8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
  QX_INLINE __m256i spread(const uint8_t* p, int64_t) {
    int32_t bytes;
    __builtin_memcpy(&bytes, p, 4);
    return _mm256_set1_epi32(bytes);
  }
  QX_INLINE __m256i dot(__m256i part, __m256i a, __m256i w) { return _mm256_dpbusd_avx_epi32(part, a, w); }
  QX_INLINE void add(int32_t* sums, __m256i part) {
    __m256i* to = reinterpret_cast<__m256i*>(sums);
    _mm256_storeu_si256(to, _mm256_add_epi32(_mm256_loadu_si256(to), part));
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
  const __m256i a = _mm256_set1_epi8(1), w = _mm256_set1_epi8(1);
  __m256i r[12];
  for (int j = 0; j < 12; ++j) r[j] = _mm256_setzero_si256();
  for (int64_t i = 0; i < rounds; ++i) {
#pragma GCC unroll 12
    for (int j = 0; j < 12; ++j) r[j] = _mm256_dpbusd_avx_epi32(r[j], a, w);
  }
  for (int j = 0; j < 12; ++j) keep(&r[j]);
  return rounds * 12 * 32;
}

#include "table.inl"

}  // namespace avx_vnni
}  // namespace qexport
