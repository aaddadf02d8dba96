// Packed weights: from the bytes of the file to the panels of core.h, and single rows of an embedding table.
//
// File formats, row by row: 1 bit eight a byte, ternary five trits a byte (sum of (code + 1) * 3**j), 3 to 7 bits
// as planes of 4, 2 and 1 bits of code + 2**(bits - 1), 8 bits as code + 128. See graphs/packing.py.
// A trit byte above 242 is no ternary weight; its digits are taken modulo 3, so no byte is out of bounds.

#include "core.h"

namespace qexport {
namespace {

struct Trits {
  uint8_t of[256][5];
  constexpr Trits() : of() {
    for (int byte = 0; byte < 256; ++byte) {
      int rest = byte;
      for (int j = 0; j < 5; ++j, rest /= 3) of[byte][j] = static_cast<uint8_t>(rest % 3);
    }
  }
};
constexpr Trits TRITS;

// What a digit of the file is above its code; a digit d of 1 bit is the code 2 d - 1.
int32_t offset_of(int bits) { return bits <= 2 ? 1 : 1 << (bits - 1); }

// Digits start .. start + count - 1 of a row of k. `start` is a multiple of 40, so that it begins a byte in every format.
void unpack(const uint8_t* packed, int bits, int64_t k, int64_t start, int64_t count, uint8_t* digits) {
  if (bits == 8) {
    packed += start;
    for (int64_t i = 0; i < count; ++i) digits[i] = packed[i];
  } else if (bits == 2) {
    packed += start / 5;
    int64_t i = 0;
    for (; i + 5 <= count; i += 5, ++packed)
      for (int j = 0; j < 5; ++j) digits[i + j] = TRITS.of[*packed][j];
    for (int j = 0; i < count; ++i, ++j) digits[i] = TRITS.of[*packed][j];
  } else if (bits == 1) {
    packed += start / 8;
    for (int64_t i = 0; i < count; ++i) digits[i] = packed[i >> 3] >> (i & 7) & 1;
  } else {
    for (int64_t i = 0; i < count; ++i) digits[i] = 0;
    int shift = 0;
    for (int size = 4; size >= 1; size >>= 1) {
      if (!(bits & size)) continue;
      const int in_byte = 8 / size;
      const uint8_t* plane = packed + start / in_byte;
      for (int64_t i = 0; i < count; ++i) {
        const int digit = plane[i / in_byte] >> (size * (i % in_byte)) & ((1 << size) - 1);
        digits[i] = static_cast<uint8_t>(digits[i] | digit << shift);
      }
      packed += (k + in_byte - 1) / in_byte;
      shift += size;
    }
  }
}

constexpr int64_t PIECE = 2000;  // codes unpacked at a time
static_assert(PIECE % 40 == 0, "a piece begins a byte in every format, and a step");

}  // namespace

int64_t packed_width(int64_t k, int bits) {
  if (bits == 8) return k;
  if (bits == 2) return (k + 4) / 5;
  int64_t bytes = 0;
  for (int size = 4; size >= 1; size >>= 1)
    if (bits & size) bytes += (k + 8 / size - 1) / (8 / size);
  return bytes;
}

static int64_t panel_bytes(Storage storage, int64_t padded_k) {
  return padded_k / 4 / steps_per_row(storage) * STEP_BYTES;
}

size_t weight_bytes(int bits, int64_t n, int64_t k) {
  const int64_t panels = (n + PANEL - 1) / PANEL;
  const int64_t codes = panels * panel_bytes(storage_of(bits), round_up(k, K_MULTIPLE));
  return static_cast<size_t>(codes + panels * PANEL * 4 + 64);
}

void describe(Weight& weight, int bits, int64_t n, int64_t k, void* memory) {
  weight.bits = bits;
  weight.storage = storage_of(bits);
  weight.n = n;
  weight.k = k;
  weight.padded_k = round_up(k, K_MULTIPLE);
  weight.panels = (n + PANEL - 1) / PANEL;
  weight.panel_bytes = panel_bytes(weight.storage, weight.padded_k);
  weight.codes = reinterpret_cast<uint8_t*>(round_up(reinterpret_cast<intptr_t>(memory), 64));
  weight.sums = reinterpret_cast<int32_t*>(weight.codes + weight.panels * weight.panel_bytes);
}

void repack(Weight& weight, int bits, int64_t n, int64_t k, const uint8_t* packed, void* memory) {
  describe(weight, bits, n, k, memory);
  const int64_t width = packed_width(k, bits);
  const int steps = steps_per_row(weight.storage);
  const int code_bits = 8 / steps;
  const int32_t offset = offset_of(bits);
  // From a digit of the file to what a panel stores: 3 bits are stored as 4 with another offset, 5 to 8 bits as int8.
  const uint8_t moved = static_cast<uint8_t>(
      weight.storage == FOUR_BITS ? 8 - offset : weight.storage == EIGHT_BITS ? -offset : 0);
  const int64_t all = weight.panels * weight.panel_bytes;
  for (int64_t i = 0; i < all; ++i) weight.codes[i] = 0;
  for (int64_t i = 0; i < weight.panels * PANEL; ++i) weight.sums[i] = 0;

  uint8_t piece[PIECE + 4];
  for (int64_t row = 0; row < n; ++row) {
    const uint8_t* bytes = packed + row * width;
    uint8_t* panel = weight.codes + row / PANEL * weight.panel_bytes + row % PANEL * 4;
    int64_t sum = 0;
    for (int64_t start = 0; start < k; start += PIECE) {
      const int64_t count = smaller(PIECE, k - start);
      unpack(bytes, bits, k, start, count, piece);
      for (int64_t i = 0; i < count; ++i) sum += piece[i];
      if (moved)
        for (int64_t i = 0; i < count; ++i) piece[i] = static_cast<uint8_t>(piece[i] + moved);
      for (int64_t i = count; i < round_up(count, 4); ++i) piece[i] = 0;
      // four codes of a step at a time
      for (int64_t i = 0; i < count; i += 4) {
        const int64_t step = (start + i) / 4;
        uint32_t four, held;
        uint8_t* to = panel + step / steps * STEP_BYTES;
        __builtin_memcpy(&four, piece + i, 4);
        __builtin_memcpy(&held, to, 4);
        held |= four << (step % steps * code_bits);
        __builtin_memcpy(to, &held, 4);
      }
    }
    weight.sums[row] = static_cast<int32_t>(bits == 1 ? 2 * sum - k : sum - offset * k);
  }
}

void gather(const uint8_t* table, const float* scale, bool scale_per_row, int bits, int64_t k, int64_t row, float* y) {
  const uint8_t* packed = table + row * packed_width(k, bits);
  const float factor = scale[scale_per_row ? row : 0];
  const int32_t offset = offset_of(bits), step = bits == 1 ? 2 : 1;
  uint8_t piece[PIECE];
  for (int64_t start = 0; start < k; start += PIECE) {
    const int64_t count = smaller(PIECE, k - start);
    unpack(packed, bits, k, start, count, piece);
    for (int64_t i = 0; i < count; ++i) y[start + i] = static_cast<float>(piece[i] * step - offset) * factor;
  }
}

}  // namespace qexport
