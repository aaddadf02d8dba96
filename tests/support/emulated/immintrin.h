// AVX-VNNI, AVX-512 and AMX in plain C++, as far as serving/kernels/isa uses them, so that those files run on a processor
// that has AVX2 only. First in the include path; the real header follows, and what it lacks replaces its names.
//
// Written after the operation sections of Intel's instruction set reference. Where that says #UD, this traps.

#pragma once

#include_next <immintrin.h>

#include <stddef.h>
#include <stdint.h>

namespace emulated {

#define EMULATED static inline __attribute__((always_inline, unused))
// Loops, kept out of the callers, which would take minutes to compile.
#define OUTSIDE static __attribute__((noinline, unused))

typedef int8_t I8x64 __attribute__((vector_size(64)));
typedef uint16_t U16x32 __attribute__((vector_size(64)));
typedef int32_t I32x16 __attribute__((vector_size(64)));
typedef __m512i Unaligned512 __attribute__((aligned(1), may_alias));

template <class V>
EMULATED V as(__m512i x) { return reinterpret_cast<V>(x); }
template <class V>
EMULATED __m512i whole(V x) { return reinterpret_cast<__m512i>(x); }

EMULATED __m512i loadu(const void* p) { return *static_cast<const Unaligned512*>(p); }
EMULATED void storeu(void* p, __m512i x) { *static_cast<Unaligned512*>(p) = x; }
EMULATED __m512i setzero() { return __m512i{}; }
EMULATED __m512i set1_epi8(int x) { return whole(I8x64{} + static_cast<int8_t>(x)); }
EMULATED __m512i set1_epi32(int32_t x) { return whole(I32x16{} + x); }
EMULATED __m512i add_epi32(__m512i a, __m512i b) { return whole(as<I32x16>(a) + as<I32x16>(b)); }
EMULATED __m512i sub_epi32(__m512i a, __m512i b) { return whole(as<I32x16>(a) - as<I32x16>(b)); }
EMULATED __m512i and_si512(__m512i a, __m512i b) { return a & b; }
EMULATED __m512i or_si512(__m512i a, __m512i b) { return a | b; }
EMULATED __m512i xor_si512(__m512i a, __m512i b) { return a ^ b; }
EMULATED __m512i srli_epi16(__m512i a, unsigned count) {
  return count > 15 ? __m512i{} : whole(as<U16x32>(a) >> static_cast<uint16_t>(count));
}

// In each 128-bit lane: byte i is 0 where bit 7 of index i is set, else the byte at the low 4 bits of the index.
OUTSIDE void shuffle(uint8_t* to, const uint8_t* from, const uint8_t* at) {
  for (int i = 0; i < 64; ++i) to[i] = at[i] & 0x80 ? 0 : from[(i & ~15) | (at[i] & 15)];
}
EMULATED __m512i shuffle_epi8(__m512i a, __m512i index) {
  __m512i to;
  shuffle(reinterpret_cast<uint8_t*>(&to), reinterpret_cast<uint8_t*>(&a), reinterpret_cast<uint8_t*>(&index));
  return to;
}
EMULATED __m512i maskz_broadcast_i32x4(__mmask16 mask, __m128i a) {
  int32_t four[4];
  __builtin_memcpy(four, &a, 16);
  I32x16 to = {};
  for (int i = 0; i < 16; ++i) to[i] = mask >> i & 1 ? four[i % 4] : 0;
  return whole(to);
}
EMULATED __m128i maskz_cvtepi32_epi8(__mmask16 mask, __m512i a) {
  const I32x16 from = as<I32x16>(a);
  int8_t to[16];
  for (int i = 0; i < 16; ++i) to[i] = mask >> i & 1 ? static_cast<int8_t>(from[i]) : 0;
  __m128i result;
  __builtin_memcpy(&result, to, 16);
  return result;
}

// Floats: both halves as AVX does them.
EMULATED __m256 half(__m512 x, int which) {
  __m256 halves[2];
  __builtin_memcpy(halves, &x, 64);
  return halves[which];
}
EMULATED __m512 joined(__m256 low, __m256 high) {
  const __m256 halves[2] = {low, high};
  __m512 x;
  __builtin_memcpy(&x, halves, 64);
  return x;
}
EMULATED __m512 fmadd_ps(__m512 a, __m512 b, __m512 c) {
  return joined(
      _mm256_fmadd_ps(half(a, 0), half(b, 0), half(c, 0)), _mm256_fmadd_ps(half(a, 1), half(b, 1), half(c, 1)));
}
EMULATED __m512 masked(__mmask16 mask, __m512 x) {
  float lanes[16];
  __builtin_memcpy(lanes, &x, 64);
  for (int i = 0; i < 16; ++i)
    if (!(mask >> i & 1)) lanes[i] = 0;
  __builtin_memcpy(&x, lanes, 64);
  return x;
}
EMULATED __m512 maskz_min_ps(__mmask16 mask, __m512 a, __m512 b) {
  return masked(mask, joined(_mm256_min_ps(half(a, 0), half(b, 0)), _mm256_min_ps(half(a, 1), half(b, 1))));
}
EMULATED __m512 maskz_max_ps(__mmask16 mask, __m512 a, __m512 b) {
  return masked(mask, joined(_mm256_max_ps(half(a, 0), half(b, 0)), _mm256_max_ps(half(a, 1), half(b, 1))));
}
template <int HOW>
EMULATED __m512 maskz_roundscale_ps(__mmask16 mask, __m512 x) {
  return masked(mask, joined(_mm256_round_ps(half(x, 0), HOW), _mm256_round_ps(half(x, 1), HOW)));
}
// Eight doubles, for a mask of all.
EMULATED __m512d maskz_cvtps_pd(__mmask8, __m256 x) {
  const __m256d halves[2] = {_mm256_cvtps_pd(_mm256_castps256_ps128(x)), _mm256_cvtps_pd(_mm256_extractf128_ps(x, 1))};
  __m512d wide;
  __builtin_memcpy(&wide, halves, 64);
  return wide;
}
EMULATED __m256d half(__m512d x, int which) {
  __m256d halves[2];
  __builtin_memcpy(halves, &x, 64);
  return halves[which];
}
EMULATED __m256 maskz_cvtpd_ps(__mmask8, __m512d x) {
  return _mm256_insertf128_ps(_mm256_castps128_ps256(_mm256_cvtpd_ps(half(x, 0))), _mm256_cvtpd_ps(half(x, 1)), 1);
}
EMULATED __m512d fmadd_pd(__m512d a, __m512d b, __m512d c) {
  const __m256d halves[2] = {
      _mm256_fmadd_pd(half(a, 0), half(b, 0), half(c, 0)), _mm256_fmadd_pd(half(a, 1), half(b, 1), half(c, 1))};
  __m512d sum;
  __builtin_memcpy(&sum, halves, 64);
  return sum;
}
EMULATED __m256 maskz_extractf32x8_ps(__mmask8 mask, __m512 x, int which) {
  return half(masked(static_cast<__mmask16>(which ? mask << 8 : mask), x), which);
}

// Each int32 takes four products of an unsigned byte of a by a signed byte of b; the sum wraps.
template <int LANES>
OUTSIDE void add_products(int32_t* sums, const uint8_t* a, const int8_t* b) {
  for (int lane = 0; lane < LANES; ++lane) {
    uint32_t sum = static_cast<uint32_t>(sums[lane]);
    for (int i = 0; i < 4; ++i) sum += static_cast<uint32_t>(int32_t(a[4 * lane + i]) * int32_t(b[4 * lane + i]));
    sums[lane] = static_cast<int32_t>(sum);
  }
}
template <class V>
EMULATED V dpbusd(V sums, V a, V b) {
  add_products<sizeof(V) / 4>(
      reinterpret_cast<int32_t*>(&sums), reinterpret_cast<uint8_t*>(&a), reinterpret_cast<int8_t*>(&b));
  return sums;
}

// AMX: eight tiles of at most 16 rows of 64 bytes, and their shapes, for each thread.
struct Tiles {
  bool configured;
  uint8_t rows[8];
  uint16_t row_bytes[8];
  uint8_t bytes[8][16][64];
};
inline Tiles& tiles() {
  static thread_local Tiles of_thread;
  return of_thread;
}

inline void tile_zero(int tile) {
  for (auto& row : tiles().bytes[tile])
    for (uint8_t& byte : row) byte = 0;
}
inline void check(bool held) {
  if (!held) __builtin_trap();
}
inline void check_tile(int tile) {
  check(tile >= 0 && tile < 8 && tiles().configured && tiles().rows[tile] > 0 && tiles().row_bytes[tile] > 0);
}
inline void tile_loadconfig(const void* memory) {
  const uint8_t* from = static_cast<const uint8_t*>(memory);
  check(from[0] == 1 && from[1] == 0);  // palette 1; start_row
  for (int i = 2; i < 16; ++i) check(from[i] == 0);
  for (int i = 8; i < 16; ++i) check(from[16 + 2 * i] == 0 && from[17 + 2 * i] == 0 && from[48 + i] == 0);
  for (int tile = 0; tile < 8; ++tile) {
    const int row_bytes = from[16 + 2 * tile] | from[17 + 2 * tile] << 8, rows = from[48 + tile];
    check(row_bytes <= 64 && rows <= 16 && (row_bytes == 0) == (rows == 0));
    tiles().row_bytes[tile] = static_cast<uint16_t>(row_bytes);
    tiles().rows[tile] = static_cast<uint8_t>(rows);
    tile_zero(tile);
  }
  tiles().configured = true;
}
inline void tile_storeconfig(void* memory) {
  uint8_t* to = static_cast<uint8_t*>(memory);
  __builtin_memset(to, 0, 64);
  if (!tiles().configured) return;
  to[0] = 1;
  for (int tile = 0; tile < 8; ++tile) {
    to[16 + 2 * tile] = static_cast<uint8_t>(tiles().row_bytes[tile]);
    to[48 + tile] = tiles().rows[tile];
  }
}
inline void tile_loadd(int tile, const void* base, size_t stride) {
  check_tile(tile);
  tile_zero(tile);
  for (int row = 0; row < tiles().rows[tile]; ++row)
    for (int i = 0; i < tiles().row_bytes[tile]; ++i)
      tiles().bytes[tile][row][i] = static_cast<const uint8_t*>(base)[static_cast<size_t>(row) * stride + static_cast<size_t>(i)];
}
inline void tile_stored(int tile, void* base, size_t stride) {
  check_tile(tile);
  for (int row = 0; row < tiles().rows[tile]; ++row)
    for (int i = 0; i < tiles().row_bytes[tile]; ++i)
      static_cast<uint8_t*>(base)[static_cast<size_t>(row) * stride + static_cast<size_t>(i)] = tiles().bytes[tile][row][i];
}
inline void tile_dpbusd(int to, int a, int b) {
  check_tile(to);
  check_tile(a);
  check_tile(b);
  Tiles& t = tiles();
  check(to != a && to != b && a != b);
  check(t.rows[to] == t.rows[a] && t.row_bytes[to] == t.row_bytes[b] && t.row_bytes[a] == 4 * t.rows[b]);
  check(t.row_bytes[to] % 4 == 0 && t.row_bytes[a] % 4 == 0);
  for (int m = 0; m < t.rows[to]; ++m) {
    int32_t sums[16];
    __builtin_memcpy(sums, t.bytes[to][m], 64);
    for (int k = 0; k < t.row_bytes[a] / 4; ++k) {
      uint8_t four[64];
      int8_t codes[64];
      for (int i = 0; i < 64; ++i) four[i] = t.bytes[a][m][4 * k + i % 4];
      __builtin_memcpy(codes, t.bytes[b][k], 64);
      add_products<16>(sums, four, codes);
    }
    __builtin_memcpy(t.bytes[to][m], sums, t.row_bytes[to]);
  }
}
inline void tile_release() {
  for (int tile = 0; tile < 8; ++tile) tile_zero(tile);
  tiles().configured = false;
}

// For tests: what another library of the process does with the tiles of this thread.
extern "C" __attribute__((used, visibility("default"))) inline void qexport_emulated_tiles(const void* load, void* store) {
  if (load != nullptr) tile_loadconfig(load);
  if (store != nullptr) tile_storeconfig(store);
}

}  // namespace emulated

// The real header may have macros of these names.
#undef _mm512_loadu_si512
#undef _mm512_storeu_si512
#undef _mm512_setzero_si512
#undef _mm512_set1_epi8
#undef _mm512_set1_epi32
#undef _mm512_add_epi32
#undef _mm512_sub_epi32
#undef _mm512_and_si512
#undef _mm512_or_si512
#undef _mm512_xor_si512
#undef _mm512_srli_epi16
#undef _mm512_shuffle_epi8
#undef _mm512_maskz_broadcast_i32x4
#undef _mm512_maskz_cvtepi32_epi8
#undef _mm512_fmadd_ps
#undef _mm512_maskz_min_ps
#undef _mm512_maskz_max_ps
#undef _mm512_maskz_extractf32x8_ps
#undef _mm512_maskz_roundscale_ps
#undef _mm512_maskz_cvtps_pd
#undef _mm512_maskz_cvtpd_ps
#undef _mm512_fmadd_pd
#undef _mm512_dpbusd_epi32
#undef _mm256_dpbusd_avx_epi32

#define _mm512_loadu_si512(p) emulated::loadu(p)
#define _mm512_storeu_si512(p, x) emulated::storeu(p, x)
#define _mm512_setzero_si512() emulated::setzero()
#define _mm512_set1_epi8(x) emulated::set1_epi8(x)
#define _mm512_set1_epi32(x) emulated::set1_epi32(x)
#define _mm512_add_epi32(a, b) emulated::add_epi32(a, b)
#define _mm512_sub_epi32(a, b) emulated::sub_epi32(a, b)
#define _mm512_and_si512(a, b) emulated::and_si512(a, b)
#define _mm512_or_si512(a, b) emulated::or_si512(a, b)
#define _mm512_xor_si512(a, b) emulated::xor_si512(a, b)
#define _mm512_srli_epi16(a, count) emulated::srli_epi16(a, count)
#define _mm512_shuffle_epi8(a, index) emulated::shuffle_epi8(a, index)
#define _mm512_maskz_broadcast_i32x4(mask, a) emulated::maskz_broadcast_i32x4(mask, a)
#define _mm512_maskz_cvtepi32_epi8(mask, a) emulated::maskz_cvtepi32_epi8(mask, a)
#define _mm512_fmadd_ps(a, b, c) emulated::fmadd_ps(a, b, c)
#define _mm512_maskz_min_ps(mask, a, b) emulated::maskz_min_ps(mask, a, b)
#define _mm512_maskz_max_ps(mask, a, b) emulated::maskz_max_ps(mask, a, b)
#define _mm512_maskz_extractf32x8_ps(mask, x, which) emulated::maskz_extractf32x8_ps(mask, x, which)
#define _mm512_maskz_roundscale_ps(mask, x, how) emulated::maskz_roundscale_ps<how>(mask, x)
#define _mm512_maskz_cvtps_pd(mask, x) emulated::maskz_cvtps_pd(mask, x)
#define _mm512_maskz_cvtpd_ps(mask, x) emulated::maskz_cvtpd_ps(mask, x)
#define _mm512_fmadd_pd(a, b, c) emulated::fmadd_pd(a, b, c)
#define _mm512_dpbusd_epi32(sums, a, b) emulated::dpbusd<__m512i>(sums, a, b)
#define _mm256_dpbusd_avx_epi32(sums, a, b) emulated::dpbusd<__m256i>(sums, a, b)

#undef _tile_loadconfig
#undef _tile_storeconfig
#undef _tile_loadd
#undef _tile_stored
#undef _tile_zero
#undef _tile_dpbusd
#undef _tile_release
#define _tile_loadconfig(p) emulated::tile_loadconfig(p)
#define _tile_storeconfig(p) emulated::tile_storeconfig(p)
#define _tile_loadd(tile, base, stride) emulated::tile_loadd(tile, base, stride)
#define _tile_stored(tile, base, stride) emulated::tile_stored(tile, base, stride)
#define _tile_zero(tile) emulated::tile_zero(tile)
#define _tile_dpbusd(to, a, b) emulated::tile_dpbusd(to, a, b)
#define _tile_release() emulated::tile_release()
