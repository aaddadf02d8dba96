// Packed weights: from the bytes of the file to the panels of core.h, and single rows of an embedding table.
//
// File formats, row by row: 1 bit eight a byte, ternary five trits a byte (sum of (code + 1) * 3**j), 3 to 7 bits
// as planes of 4, 2 and 1 bits of code + 2**(bits - 1), 8 bits as code + 128. See graphs/packing.py.
// A trit byte above 242 is no ternary weight; its digits are taken modulo 3, so no byte is out of bounds.

#include "core.h"

namespace qexport {
namespace {

struct Trits {
  int8_t of[256][5];
  constexpr Trits() : of() {
    for (int byte = 0; byte < 256; ++byte) {
      int rest = byte;
      for (int j = 0; j < 5; ++j, rest /= 3) of[byte][j] = static_cast<int8_t>(rest % 3 - 1);
    }
  }
};
constexpr Trits TRITS;

// Codes start .. start + count - 1 of a row of k codes, int8 [count]. `start` is a multiple of 40, so that it begins a byte.
void unpack(const uint8_t* packed, int bits, int64_t k, int64_t start, int64_t count, int8_t* codes) {
  if (bits == 8) {
    packed += start;
    for (int64_t i = 0; i < count; ++i) codes[i] = static_cast<int8_t>(packed[i] - 128);
  } else if (bits == 2) {
    packed += start / 5;
    int64_t i = 0;
    for (; i + 5 <= count; i += 5, ++packed)
      for (int j = 0; j < 5; ++j) codes[i + j] = TRITS.of[*packed][j];
    for (int j = 0; i < count; ++i, ++j) codes[i] = TRITS.of[*packed][j];
  } else if (bits == 1) {
    packed += start / 8;
    for (int64_t i = 0; i < count; ++i) codes[i] = static_cast<int8_t>((packed[i >> 3] >> (i & 7) & 1) * 2 - 1);
  } else {
    for (int64_t i = 0; i < count; ++i) codes[i] = static_cast<int8_t>(-(1 << (bits - 1)));
    int shift = 0;
    for (int size = 4; size >= 1; size >>= 1) {
      if (!(bits & size)) continue;
      const int digits = 8 / size;
      const uint8_t* plane = packed + start / digits;
      for (int64_t i = 0; i < count; ++i) {
        const int digit = plane[i / digits] >> (size * (i % digits)) & ((1 << size) - 1);
        codes[i] = static_cast<int8_t>(codes[i] + (digit << shift));
      }
      packed += (k + digits - 1) / digits;
      shift += size;
    }
  }
}

// What is or-ed into a zeroed byte for a code.
inline uint8_t stored(int8_t code, Storage storage) {
  switch (storage) {
    case ONE_BIT: return code > 0 ? 1 : 0;
    case TWO_BITS: return static_cast<uint8_t>(code + 1);
    case FOUR_BITS: return static_cast<uint8_t>((code + 8) & 15);
    default: return static_cast<uint8_t>(code);
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
  const int64_t all = weight.panels * weight.panel_bytes;
  for (int64_t i = 0; i < all; ++i) weight.codes[i] = 0;
  for (int64_t i = 0; i < weight.panels * PANEL; ++i) weight.sums[i] = 0;

  int8_t piece[PIECE];
  for (int64_t row = 0; row < n; ++row) {
    const uint8_t* bytes = packed + row * width;
    uint8_t* panel = weight.codes + row / PANEL * weight.panel_bytes + row % PANEL * 4;
    int32_t sum = 0;
    for (int64_t start = 0; start < k; start += PIECE) {
      const int64_t count = smaller(PIECE, k - start);
      unpack(bytes, bits, k, start, count, piece);
      for (int64_t i = 0; i < count; ++i) {
        const int64_t at = start + i;
        const int64_t step = at / 4;
        sum += piece[i];
        panel[step / steps * STEP_BYTES + at % 4] = static_cast<uint8_t>(
            panel[step / steps * STEP_BYTES + at % 4] | stored(piece[i], weight.storage) << (step % steps * code_bits));
      }
    }
    weight.sums[row] = sum;
  }
}

void gather(const uint8_t* table, const float* scale, bool scale_per_row, int bits, int64_t k, int64_t row, float* y) {
  const uint8_t* packed = table + row * packed_width(k, bits);
  const float factor = scale[scale_per_row ? row : 0];
  int8_t piece[PIECE];
  for (int64_t start = 0; start < k; start += PIECE) {
    const int64_t count = smaller(PIECE, k - start);
    unpack(packed, bits, k, start, count, piece);
    for (int64_t i = 0; i < count; ++i) y[start + i] = static_cast<float>(piece[i]) * factor;
  }
}

}  // namespace qexport
