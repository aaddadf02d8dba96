// Codes of a packed panel by table look-up in a vector: every nibble holds 4, 2 or 1 codes.
//
// To be included inside the namespace of an instruction set, after
//   Nibbles            a vector of LENGTH bytes
//   nibbles(p)         LENGTH bytes from memory
//   low(x), high(x)    the low and the high nibble of every byte
//   table(t)           16 entries, for lookup(table, nibbles)
//   put(p, x)          LENGTH codes to memory

struct CodeTables {
  alignas(16) int8_t one[4][16], two[2][16], four[16];
  constexpr CodeTables() : one(), two(), four() {
    for (int i = 0; i < 16; ++i) {
      for (int j = 0; j < 4; ++j) one[j][i] = static_cast<int8_t>((i >> j & 1) * 2 - 1);
      for (int j = 0; j < 2; ++j) two[j][i] = static_cast<int8_t>((i >> (2 * j) & 3) - 1);
      four[i] = static_cast<int8_t>(i - 8);
    }
  }
};
alignas(16) static constexpr CodeTables TABLES;

// COUNT tables: COUNT codes a nibble.
template <int COUNT>
QX_INLINE void unpack_nibbles(const int8_t (*tables)[16], const uint8_t* packed, int64_t steps, int8_t* codes) {
  decltype(table(nullptr)) entries[COUNT];
  for (int j = 0; j < COUNT; ++j) entries[j] = table(tables[j]);
  for (int64_t step = 0; step < steps; step += 2 * COUNT, packed += STEP_BYTES) {
#pragma GCC unroll 8
    for (int part = 0; part < STEP_BYTES; part += LENGTH) {
      const Nibbles bytes = nibbles(packed + part);
      const Nibbles first = low(bytes), second = high(bytes);
      int8_t* to = codes + step * STEP_BYTES + part;
#pragma GCC unroll 8
      for (int j = 0; j < COUNT; ++j) {
        put(to + j * STEP_BYTES, lookup(entries[j], first));
        put(to + (COUNT + j) * STEP_BYTES, lookup(entries[j], second));
      }
    }
  }
}

static void unpack_steps(Storage storage, const uint8_t* packed, int64_t steps, int8_t* codes) {
  switch (storage) {
    case ONE_BIT: return unpack_nibbles<4>(TABLES.one, packed, steps, codes);
    case TWO_BITS: return unpack_nibbles<2>(TABLES.two, packed, steps, codes);
    case FOUR_BITS: return unpack_nibbles<1>(&TABLES.four, packed, steps, codes);
    default:
      for (int64_t i = 0; i < steps * STEP_BYTES; ++i) codes[i] = static_cast<int8_t>(packed[i]);
  }
}
