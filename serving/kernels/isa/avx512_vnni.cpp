// AVX-512 VNNI: vpdpbusd on 512 bits, a step of a panel in one vector.

#include <immintrin.h>

#include "isa.h"

namespace qexport {
namespace avx512_vnni {

constexpr const char* NAME = "avx512-vnni";
constexpr int LANES = 16;
constexpr int GROUP = 3;
constexpr int64_t STEPS = 1;
constexpr int32_t NARROW_BIAS = 0, WIDE_BIAS = 0, SMALL_BIAS = 0;
constexpr bool ALWAYS_UNPACK = false, SIGN_AND_SIZE = false, FRESH_SUMS = false;
constexpr int LENGTH = 64;

#include "vector.inl"
#include "simd_512.inl"
#include "math.inl"
#include "unpack.inl"

struct Dot {
  static constexpr int ROWS = 8, PANELS = 3, VECTORS = 1, LENGTH = 64;
  static constexpr bool INT16 = false, PAIRS = false;
  typedef __m512i Codes;
  typedef __m512i Spread;
  typedef __m512i Part;
  QX_INLINE __m512i zero() { return _mm512_setzero_si512(); }
  QX_INLINE __m512i codes(const int8_t* p) { return _mm512_loadu_si512(p); }
  QX_INLINE __m512i spread(const uint8_t* p, int64_t) {
    int32_t bytes;
    __builtin_memcpy(&bytes, p, 4);
    return _mm512_set1_epi32(bytes);
  }
  QX_INLINE __m512i dot(__m512i part, __m512i a, __m512i w) { return _mm512_dpbusd_epi32(part, a, w); }
  QX_INLINE void add(int32_t* sums, __m512i part) {
    _mm512_storeu_si512(sums, _mm512_add_epi32(_mm512_loadu_si512(sums), part));
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
  const __m512i a = _mm512_set1_epi8(1), w = _mm512_set1_epi8(1);
  __m512i r[16];
  for (int j = 0; j < 16; ++j) r[j] = _mm512_setzero_si512();
  for (int64_t i = 0; i < rounds; ++i) {
#pragma GCC unroll 16
    for (int j = 0; j < 16; ++j) r[j] = _mm512_dpbusd_epi32(r[j], a, w);
  }
  for (int j = 0; j < 16; ++j) keep(&r[j]);
  return rounds * 16 * 64;
}

#include "table.inl"

}  // namespace avx512_vnni
}  // namespace qexport
