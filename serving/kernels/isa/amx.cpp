// AMX int8: a tile of 16 rows of A (64 values of k) by a tile of a panel (64 values of k, 16 rows of W).
//
// A step of a panel is a row of its tile, so a panel is a pile of tiles as it lies. Two panels and two row blocks are done at once:
// four tiles of sums, each tile of A and W used twice. Sums go through memory between blocks of K_BLOCK values of k.

#include <immintrin.h>

#include "isa.h"

namespace qexport {
namespace amx {

constexpr const char* NAME = "amx";
constexpr int LANES = 16;
constexpr int GROUP = 2;
constexpr int64_t STEPS = 16;
constexpr int32_t NARROW_BIAS = 0, WIDE_BIAS = 0, SMALL_BIAS = 0;
constexpr bool ALWAYS_UNPACK = false, SIGN_AND_SIZE = false, FRESH_SUMS = false;
constexpr int LENGTH = 64;

#include "vector.inl"
#include "simd_512.inl"
#include "math.inl"
#include "unpack.inl"

// The 64 bytes that ldtilecfg reads and sttilecfg writes.
struct alignas(64) TileShapes {
  uint8_t palette = 1, start = 0, unused[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};

// The compilers' intrinsics for tiles say nothing of the memory that they read: whatever was to be written before is written here.
QX_INLINE void settle() { __asm__ volatile("" : : : "memory"); }

// Tiles belong to a thread, and not to us alone: ONNX Runtime shapes its own once a thread. They get the shapes back that they had.
class BorrowedTiles {
 public:
  BorrowedTiles() { _tile_storeconfig(&before_); }
  ~BorrowedTiles() {
    settle();
    if (before_.palette != 0)
      _tile_loadconfig(&before_);
    else
      _tile_release();
  }
  BorrowedTiles(const BorrowedTiles&) = delete;
  BorrowedTiles& operator=(const BorrowedTiles&) = delete;

 private:
  TileShapes before_;
};

// Tiles 0..3 hold sums, 4 and 5 rows of A, 6 and 7 panels; the second row block has `second` rows, 0 for none.
static void shape_tiles(int64_t first, int64_t second) {
  TileShapes shapes;
  const int64_t rows[8] = {first, first, second, second, first, second, 16, 16};
  for (int i = 0; i < 8; ++i) {
    shapes.rows[i] = static_cast<uint8_t>(rows[i] ? rows[i] : 1);
    shapes.row_bytes[i] = 64;
  }
  keep(&shapes);
  _tile_loadconfig(&shapes);
}

template <bool TWO_BLOCKS, bool TWO_PANELS>
static void tile_products(
    const uint8_t* a, int64_t lda, const int8_t* w, int64_t panel_stride, int64_t steps, int32_t* sums,
    int64_t sums_stride) {
  const size_t row = static_cast<size_t>(sums_stride) * 4;
  settle();
  _tile_loadd(0, sums, row);
  if (TWO_PANELS) _tile_loadd(1, sums + PANEL, row);
  if (TWO_BLOCKS) _tile_loadd(2, sums + 16 * sums_stride, row);
  if (TWO_BLOCKS && TWO_PANELS) _tile_loadd(3, sums + 16 * sums_stride + PANEL, row);
  for (int64_t step = 0; step < steps; step += 16) {
    _tile_loadd(6, w + step * STEP_BYTES, STEP_BYTES);
    _tile_loadd(4, a + 4 * step, static_cast<size_t>(lda));
    _tile_dpbusd(0, 4, 6);
    if (TWO_PANELS) {
      _tile_loadd(7, w + panel_stride + step * STEP_BYTES, STEP_BYTES);
      _tile_dpbusd(1, 4, 7);
    }
    if (TWO_BLOCKS) {
      _tile_loadd(5, a + 16 * lda + 4 * step, static_cast<size_t>(lda));
      _tile_dpbusd(2, 5, 6);
      if (TWO_PANELS) _tile_dpbusd(3, 5, 7);
    }
  }
  _tile_stored(0, sums, row);
  if (TWO_PANELS) _tile_stored(1, sums + PANEL, row);
  if (TWO_BLOCKS) _tile_stored(2, sums + 16 * sums_stride, row);
  if (TWO_BLOCKS && TWO_PANELS) _tile_stored(3, sums + 16 * sums_stride + PANEL, row);
}

// Same contract as in product.inl.
static void accumulate(
    const uint8_t* a, int64_t lda, int64_t rows, const int8_t* w, int64_t panel_stride, int64_t panels, int64_t steps,
    int, int32_t* sums, int64_t sums_stride) {
  const BorrowedTiles borrowed;
  int64_t shaped_first = 0, shaped_second = -1;
  for (int64_t row = 0; row < rows; row += 32) {
    const int64_t first = smaller(16, rows - row), second = smaller(16, rows - row - first);
    if (first != shaped_first || second != shaped_second) shape_tiles(first, second);
    shaped_first = first;
    shaped_second = second;
    const uint8_t* from = a + row * lda;
    for (int64_t panel = 0; panel < panels; panel += 2) {
      const int8_t* codes = w + panel * panel_stride;
      int32_t* to = sums + row * sums_stride + panel * PANEL;
      const bool two = panel + 1 < panels;
      if (second > 0 && two)
        tile_products<true, true>(from, lda, codes, panel_stride, steps, to, sums_stride);
      else if (second > 0)
        tile_products<true, false>(from, lda, codes, panel_stride, steps, to, sums_stride);
      else if (two)
        tile_products<false, true>(from, lda, codes, panel_stride, steps, to, sums_stride);
      else
        tile_products<false, false>(from, lda, codes, panel_stride, steps, to, sums_stride);
    }
  }
}

#define QX_OWN_ACCUMULATE 1
#include "product.inl"
#include "rows.inl"
#include "attention.inl"

static int64_t peak_loop(int64_t rounds) {
  const BorrowedTiles borrowed;
  shape_tiles(16, 16);
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  _tile_zero(4);
  _tile_zero(5);
  _tile_zero(6);
  _tile_zero(7);
  for (int64_t i = 0; i < rounds; ++i) {
    _tile_dpbusd(0, 4, 6);
    _tile_dpbusd(1, 4, 7);
    _tile_dpbusd(2, 5, 6);
    _tile_dpbusd(3, 5, 7);
  }
  alignas(64) int32_t sums[16 * PANEL];
  _tile_stored(0, sums, 64);
  keep(sums);
  return rounds * 4 * 16 * 16 * 64;
}

#include "table.inl"

}  // namespace amx
}  // namespace qexport
