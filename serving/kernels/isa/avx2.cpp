// AVX2 without VNNI: vpmaddubsw multiplies uint8 by int8 and adds two products in 16 bits.
//
// Narrow weights: sums stay in 16 bits for as many steps as cannot overflow (64 for ternary), then they are widened. That is two
// instructions for 32 products, where 8-bit weights need four.
// Small: in attention A holds probabilities, below 128, and no product of two can overflow.
// 8-bit weights: |A - 128| times the weight with the sign of A - 128, which cannot saturate: 2 * 128 * 127 < 2**15.
// Scores: the same, but attention writes A - 128 and |A - 128| once, where the 8-bit product finds them for every panel anew.

#include <immintrin.h>

#include "isa.h"

namespace qexport {
namespace avx2 {

constexpr const char* NAME = "avx2";
constexpr int LANES = 8;
constexpr int GROUP = 1;
constexpr int64_t STEPS = 1;
constexpr int32_t NARROW_BIAS = 0, WIDE_BIAS = 128, SMALL_BIAS = 0;
constexpr bool ALWAYS_UNPACK = false, SIGN_AND_SIZE = true, FRESH_SUMS = true;
constexpr int LENGTH = 32;

#include "vector.inl"
#include "simd_256.inl"
#include "math.inl"
#include "unpack.inl"

struct Common {
  static constexpr int VECTORS = 2, LENGTH = 32;
  typedef __m256i Codes;
  typedef __m256i Spread;
  typedef __m256i Part;
  QX_INLINE __m256i zero() { return _mm256_setzero_si256(); }
  QX_INLINE __m256i codes(const int8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
  QX_INLINE __m256i four(const uint8_t* p) {
    int32_t bytes;
    __builtin_memcpy(&bytes, p, 4);
    return _mm256_set1_epi32(bytes);
  }
  QX_INLINE __m256i spread(const uint8_t* p, int64_t) { return four(p); }
  QX_INLINE void write(int32_t* sums, __m256i x) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(sums), x); }
  QX_INLINE void add_to(int32_t* sums, __m256i x) {
    __m256i* to = reinterpret_cast<__m256i*>(sums);
    _mm256_storeu_si256(to, _mm256_add_epi32(_mm256_loadu_si256(to), x));
  }
};

struct Narrow : Common {
  static constexpr int ROWS = 6, PANELS = 1;
  static constexpr bool INT16 = true, PAIRS = true;
  // In assembly to keep the order: GCC 12 moves the loads of all rows to the front and then has no registers left for the sums.
  QX_INLINE Part dot(Part part, Spread a, Codes w) {
    __m256i pairs;
    __asm__ volatile(
        "vpmaddubsw %[w], %[a], %[pairs]\n\tvpaddw %[pairs], %[part], %[part]"
        : [part] "+x"(part), [pairs] "=&x"(pairs)
        : [a] "x"(a), [w] "x"(w));
    return part;
  }
  QX_INLINE void add(int32_t* sums, Part part) {
    add_to(sums, _mm256_madd_epi16(part, _mm256_set1_epi16(1)));
  }
};

struct Wide : Common {
  static constexpr int ROWS = 2, PANELS = 2;
  static constexpr bool INT16 = false, PAIRS = false;
  struct Spread {
    __m256i sign, size;
  };
  QX_INLINE Spread spread(const uint8_t* p, int64_t) {
    const __m256i sign = _mm256_xor_si256(four(p), _mm256_set1_epi8(-128));
    return {sign, _mm256_abs_epi8(sign)};
  }
  QX_INLINE Part dot(Part part, Spread a, Codes w) {
    __m256i pairs;
    __asm__ volatile(
        "vpsignb %[sign], %[w], %[pairs]\n\tvpmaddubsw %[pairs], %[size], %[pairs]\n\t"
        "vpmaddwd %[ones], %[pairs], %[pairs]\n\tvpaddd %[pairs], %[part], %[part]"
        : [part] "+x"(part), [pairs] "=&x"(pairs)
        : [sign] "x"(a.sign), [size] "x"(a.size), [w] "x"(w), [ones] "x"(_mm256_set1_epi16(1)));
    return part;
  }
  QX_INLINE void add(int32_t* sums, Part part) { add_to(sums, part); }
};

// Sign and size are read, each from its half of a row.
struct Scores : Wide {
  QX_INLINE Spread spread(const uint8_t* p, int64_t lda) { return {four(p), four(p + lda / 2)}; }
  QX_INLINE void add(int32_t* sums, Part part) { write(sums, part); }
};

// A below 128 by 8-bit codes: 2 * 127 * 127 fits 16 bits as it is.
struct Small : Common {
  static constexpr int ROWS = 2, PANELS = 2;
  static constexpr bool INT16 = false, PAIRS = false;
  QX_INLINE Part dot(Part part, Spread a, Codes w) {
    __m256i pairs;
    __asm__ volatile(
        "vpmaddubsw %[w], %[a], %[pairs]\n\tvpmaddwd %[ones], %[pairs], %[pairs]\n\tvpaddd %[pairs], %[part], %[part]"
        : [part] "+x"(part), [pairs] "=&x"(pairs)
        : [a] "x"(a), [w] "x"(w), [ones] "x"(_mm256_set1_epi16(1)));
    return part;
  }
  QX_INLINE void add(int32_t* sums, Part part) { write(sums, part); }
};

#include "product.inl"
#include "rows.inl"
#include "attention.inl"

// Twelve vpmaddubsw a round, none waiting for another: what the multipliers can do, without additions or memory.
static int64_t peak_loop(int64_t rounds) {
  __m256i a = _mm256_set1_epi8(1), w = _mm256_set1_epi8(1);
  for (int64_t i = 0; i < rounds; ++i) {
    __m256i r0, r1, r2, r3, r4, r5, r6, r7, r8, r9, r10, r11;
#define QX_ONE(r) __asm__ volatile("vpmaddubsw %2, %1, %0" : "=x"(r) : "x"(a), "x"(w))
    QX_ONE(r0); QX_ONE(r1); QX_ONE(r2); QX_ONE(r3); QX_ONE(r4); QX_ONE(r5);
    QX_ONE(r6); QX_ONE(r7); QX_ONE(r8); QX_ONE(r9); QX_ONE(r10); QX_ONE(r11);
#undef QX_ONE
  }
  return rounds * 12 * 32;
}

#include "table.inl"

}  // namespace avx2
}  // namespace qexport
