// Attention with 8-bit products: one task for each sentence and head.
//
//   t = (float(q_codes k_codes^T) * k_scale) * ((q_scale * scaling) * 256) - (kept ? 0 : 2560000)      256 times the score
//   E = round(1117 * exp(round(t - max t) / 256)),  p = E / sum E          max and sum over the tokens of the row; E is 0..1117
//   codes of p = round(p / p_scale) in 0..p_top
//   Y = float(p_codes v_codes) * (p_scale * v_scale), or Y = float(sum of E v) / sum E
//
// Codes of q, k and v are round(x / scale). Every step is one float32 operation, rounded, and sum E is exact below 2**24, so in
// whatever order, every processor finds the same Y. The sum of E v is taken in float64, where its order shows once in 1e8 values.
// A score that is infinite or NaN, as only infinite scales and overflow make it, has E = 0; a row of such scores has p = 0 and Y = 0.
//
// k and v are laid out as panels of 8-bit codes (core.h), so the products are those of an 8-bit weight: k [tokens, width]
// has a token in a row, v^T [width, tokens] a channel.

constexpr float DROP = 10000 * SCORE_STEPS;
// Queries whose scores are in memory at once: whole tiles of AMX, and elsewhere a multiple of the rows of every tile.
constexpr int64_t QUERY_BLOCK = STEPS == 16 ? 32 : 24;
constexpr size_t STACK_ROOM = 45056;  // a task that needs no more takes it from its stack: 128 tokens of 64 channels
constexpr int64_t Q_HALVES = SIGN_AND_SIZE ? 2 : 1;
constexpr int64_t WIDTH_MULTIPLE = 4 * STEPS > LANES ? 4 * STEPS : LANES;

// What a task works on: one head of one sentence.
struct Head {
  const float *q, *k, *v;  // of its first token
  float* y;
  const uint8_t* mask;
  int64_t stride;          // floats from one token to the next
};

// Room of one task, cut from one piece of memory.
struct Room {
  int64_t width, tokens;      // padded to whole steps, the width to whole vectors
  int64_t token_panels, width_panels;
  int64_t columns;   // token_panels * 16
  uint8_t* q;        // [QUERY_BLOCK, Q_HALVES * width]
  int8_t* k;         // token panels of [width / 4][16][4]
  int8_t* v;         // width panels of [tokens / 4][16][4]
  int64_t p_width;   // the larger of columns and tokens
  uint8_t* p;        // [QUERY_BLOCK, p_width]
  float* scores;     // [QUERY_BLOCK, columns]; before that, int32 sums of products
  int32_t* sums;     // [QUERY_BLOCK, width_panels * 16]
  int32_t* k_sums;   // [columns]: sums of codes
  int32_t* v_sums;   // [width_panels * 16]
  float* k_scale;    // [columns]
  float* drop;       // [columns]: 0 or DROP; inf past the tokens
  float* q_scale;    // [QUERY_BLOCK, in whole panels]: (q_scale * scaling) * 256
  float* p_scale;    // [QUERY_BLOCK]; where p stays float: the sums of its powers
  double* powers;    // [4, columns], where p stays float
};

static size_t place(Room& room, const Attention& call, char* memory) {
  room.width = round_up(call.width, WIDTH_MULTIPLE);
  room.tokens = round_up(call.tokens, 4 * STEPS);
  room.token_panels = (call.tokens + PANEL - 1) / PANEL;
  room.width_panels = (call.width + PANEL - 1) / PANEL;
  room.columns = room.token_panels * PANEL;
  room.p_width = room.columns > room.tokens ? room.columns : room.tokens;
  size_t used = 0;
  auto take = [&](auto*& pointer, int64_t count) {
    pointer = reinterpret_cast<decltype(+pointer)>(memory + used);
    used += static_cast<size_t>(round_up(count * static_cast<int64_t>(sizeof *pointer), 64));
  };
  take(room.q, QUERY_BLOCK * Q_HALVES * room.width);
  take(room.k, room.columns * room.width);
  take(room.v, call.quantize_pv ? room.width_panels * PANEL * room.tokens : 0);
  take(room.p, call.quantize_pv ? QUERY_BLOCK * room.p_width : 0);
  take(room.scores, QUERY_BLOCK * room.columns);
  take(room.sums, QUERY_BLOCK * room.width_panels * PANEL);
  take(room.k_sums, room.columns);
  take(room.v_sums, room.width_panels * PANEL);
  take(room.k_scale, room.columns);
  take(room.drop, room.columns);
  take(room.q_scale, round_up(QUERY_BLOCK, PANEL));
  take(room.p_scale, QUERY_BLOCK);
  take(room.powers, call.quantize_pv ? 0 : 4 * room.columns);
  return used;
}

// What the loops below read is copied to locals first: a store of bytes may change anything that is read through a pointer.

// body(i, count) for whole vectors up to `padded`: `count` is the constant LANES while whole vectors of `width` last, then what is
// left of it, 0 or less in the end.
template <class Body>
QX_INLINE void sweep_padded(int64_t width, int64_t padded, Body body) {
  int64_t i = 0;
  for (; i + LANES <= width; i += LANES) body(i, int64_t(LANES));
  for (; i < padded; i += LANES) body(i, width - i);
}

// Asks for the channels of a token that is needed soon.
QX_INLINE void fetch(const float* x, int64_t width) {
  for (int64_t i = 0; i < width; i += 16) __builtin_prefetch(x + i);
}

// Largest magnitudes of `width` values; they stay in lanes.
QX_INLINE void look(const float* x, int64_t width, F32 (&found)[4]) {
  int64_t i = 0;
  for (; i + 4 * LANES <= width; i += 4 * LANES)
    for (int j = 0; j < 4; ++j) found[j] = at_least(magnitude(load(x + i + j * LANES)), found[j]);
  for (; i < width; i += LANES) found[0] = at_least(magnitude(load(x + i, width - i)), found[0]);
}
QX_INLINE float seen(const F32 (&found)[4]) {
  return largest_of(at_least(at_least(found[0], found[1]), at_least(found[2], found[3])));
}

// Scales of the next tokens, PANEL of those present, twice. Of those that are not, `scale` is 0, and `divisor` infinite, which
// makes all codes 0.
QX_APART void find_scales(
    const Attention& call, const float* x, int64_t stride, int64_t present, float fixed, float* scale, float* divisor) {
  const int64_t count = smaller(PANEL, present);
  alignas(64) float largest_of_token[PANEL] = {};
  if (call.scales == PER_TOKEN) {
    for (int64_t t = 0; t < count; ++t) {
      F32 found[4] = {};
      if (t + PANEL < present) fetch(x + (t + PANEL) * stride, call.width);
      look(x + t * stride, call.width, found);
      largest_of_token[t] = seen(found);
    }
  }
  for (int t = 0; t < PANEL; t += LANES) {
    F32 of_tokens = all(fixed);
    if (call.scales == PER_TOKEN) {
      of_tokens = load(largest_of_token + t);
      if (call.clip > 0) of_tokens = at_most(of_tokens, all(call.clip));
      of_tokens = at_least(of_tokens / 127.0f, all(SMALLEST_SCALE));
    }
    store(scale + t, of_tokens);
    store(divisor + t, of_tokens);
  }
  for (int64_t t = count; t < PANEL; ++t) {
    scale[t] = 0;
    divisor[t] = __builtin_inff();
  }
}

QX_APART void load_keys(const Attention& call, const Room& room, const Head& head) {
  const int64_t width = call.width, padded = room.width, stride = head.stride, columns = room.columns;
  const F32 top = all(call.top);
  for (int64_t first = 0; first < columns; first += PANEL) {
    const int64_t count = smaller(PANEL, call.tokens - first);
    const float* k = head.k + first * stride;
    alignas(64) float divisor[PANEL];
    find_scales(call, k, stride, call.tokens - first, call.k_scale, room.k_scale + first, divisor);
    for (int64_t t = 0; t < PANEL; t += 4) {
      int8_t* panel = room.k + first * padded + 4 * t;
      if (t >= count) {
        for (int64_t d = 0; d < padded; d += LANES) put_steps(panel + d * PANEL, {});
        continue;
      }
      // A token that is not there is the first one over infinity.
      const float* row[4];
      F32 divisors[4];
      for (int i = 0; i < 4; ++i) {
        row[i] = k + (t + i < count ? (t + i) * stride : 0);
        divisors[i] = all(divisor[t + i]);
      }
      I32 sums[4] = {};
      sweep_padded(width, padded, [&](int64_t d, int64_t channels) __attribute__((always_inline)) {
        I32 codes[4];
        for (int i = 0; i < 4; ++i) {
          codes[i] = bounded_code(load(row[i] + d, channels) / divisors[i], top);
          if constexpr (WIDE_BIAS != ZERO_POINT) sums[i] = sums[i] + codes[i];
        }
        put_steps(panel + d * PANEL, codes);
      });
      if constexpr (WIDE_BIAS != ZERO_POINT) {
        for (int i = 0; i < 4; ++i) {
          int32_t sum = 0;
          for (int j = 0; j < LANES; ++j) sum += sums[i][j];
          room.k_sums[first + t + i] = sum;
        }
      }
    }
  }
  float* drop = room.drop;
  for (int64_t t = 0; t < call.tokens; ++t) drop[t] = head.mask[t] ? 0.0f : DROP;
  for (int64_t t = call.tokens; t < columns; ++t) drop[t] = __builtin_inff();
}

// Returns the scale of v.
QX_APART float load_values(const Attention& call, const Room& room, const Head& head) {
  const int64_t width = call.width, stride = head.stride, tokens = call.tokens, padded = room.tokens;
  const int64_t channels = room.width_panels * PANEL;
  float scale = call.v_scale;
  if (call.scales == PER_TOKEN) {
    F32 found[4] = {};
    for (int64_t t = 0; t < tokens; ++t) {
      if (t + PANEL < tokens) fetch(head.v + (t + PANEL) * stride, width);
      if (head.mask[t]) look(head.v + t * stride, width, found);
    }
    scale = dynamic_scale(seen(found), call.clip);
  }
  const F32 top = all(call.top);
  for (int64_t t = 0; t < padded; t += 4) {
    const float* row[4];
    F32 divisors[4];
    for (int i = 0; i < 4; ++i) {
      row[i] = head.v + (t + i < tokens ? t + i : 0) * stride;
      divisors[i] = all(t + i < tokens ? scale : __builtin_inff());
    }
    int8_t* step = room.v + t * PANEL;
    int32_t* v_sums = room.v_sums;
    sweep_padded(width, channels, [&](int64_t d, int64_t count) __attribute__((always_inline)) {
      I32 codes[4];
      for (int i = 0; i < 4; ++i) codes[i] = bounded_code(load(row[i] + d, count) / divisors[i], top);
      // a channel's four tokens, side by side
      const I32 four = (codes[0] & 255) | (codes[1] & 255) << 8 | (codes[2] & 255) << 16 | codes[3] << 24;
      *reinterpret_cast<I32M*>(step + (d & -PANEL) * padded + d % PANEL * 4) = four;
      if constexpr (SMALL_BIAS != 0) {
        I32M& sums = *reinterpret_cast<I32M*>(v_sums + d);
        sums = (t == 0 ? I32{} : sums) + codes[0] + codes[1] + codes[2] + codes[3];
      }
    });
  }
  return scale;
}

// Codes of queries first .. first + count - 1, and their scales times `scaling` and 256.
QX_APART void load_queries(const Attention& call, const Room& room, const Head& head, int64_t first, int64_t count) {
  const int64_t width = call.width, padded = room.width, stride = head.stride;
  const F32 top = all(call.top);
  for (int64_t block = 0; block < count; block += PANEL) {
    const int64_t rows = smaller(PANEL, count - block);
    const float* q = head.q + (first + block) * stride;
    alignas(64) float divisor[PANEL];
    find_scales(call, q, stride, call.tokens - first - block, call.q_scale, room.q_scale + block, divisor);
    for (int64_t r = 0; r < rows; ++r, q += stride) {
      room.q_scale[block + r] = (room.q_scale[block + r] * call.scaling) * SCORE_STEPS;
      fetch(head.y + (first + block + r) * stride, width);
      uint8_t* codes = room.q + (block + r) * Q_HALVES * padded;
      const F32 divisors = all(divisor[r]);
      sweep_padded(width, padded, [&](int64_t d, int64_t channels) __attribute__((always_inline)) {
        const I32 code = bounded_code(load(q + d, channels) / divisors, top);
        if constexpr (SIGN_AND_SIZE) {
          put_u8(codes + d, code & 255);
          put_u8(codes + padded + d, code < 0 ? -code : code);
        } else {
          put_u8(codes + d, code + ZERO_POINT);
        }
      });
    }
  }
}

// Sums of products to t, in place; returns the largest.
QX_APART float score(const Room& room, int64_t r) {
  const int64_t columns = room.columns;
  const float *k_scale = room.k_scale, *drop = room.drop;
  float* scores = room.scores + r * columns;
  const F32 q_scale = all(room.q_scale[r]);
  F32 top = all(-__builtin_inff());
  for (int64_t c = 0; c < columns; c += LANES) {
    I32 sum = *reinterpret_cast<const I32M*>(scores + c);
    if constexpr (WIDE_BIAS != ZERO_POINT)
      sum = sum - *reinterpret_cast<const I32M*>(room.k_sums + c) * (ZERO_POINT - WIDE_BIAS);
    const F32 value = (to_float(sum) * load(k_scale + c)) * q_scale - load(drop + c);
    store(scores + c, value);
    top = at_least(value, top);
  }
  return largest_of(top);
}

// use(c, power) for the powers E of a row, from column c on, with F32 power[4] or, at the end, power[1]; returns their sum, which is
// 1117 at least where it is not 0.
template <class Use>
QX_INLINE float softmax(const float* scores, int64_t columns, float most, Use use) {
  const F32 largest_score = all(most);
  F32 total = {};
  int64_t c = 0;
  for (; c + 4 * LANES <= columns; c += 4 * LANES) {
    F32 power[4];
    for (int i = 0; i < 4; ++i) power[i] = load(scores + c + i * LANES) - largest_score;
    powers(power);
    for (int i = 0; i < 4; ++i) total = total + power[i];
    use(c, power);
  }
  for (; c < columns; c += LANES) {
    F32 power[1] = {load(scores + c) - largest_score};
    powers(power);
    total = total + power[0];
    use(c, power);
  }
  const float sum = sum_of(total);
  return sum > 0 ? sum : LARGEST_POWER;
}

// Codes of probabilities, `steps` in 0..127, rounded.
QX_INLINE void put_codes(uint8_t* codes, const F32 (&steps)[4]) {
  const I32 code[4] = {nearest(steps[0]), nearest(steps[1]), nearest(steps[2]), nearest(steps[3])};
  put_four(codes, code);
}
QX_INLINE void put_codes(uint8_t* codes, const F32 (&steps)[1]) { put_u8(codes, nearest(steps[0])); }

// Products of `rows` rows by all panels, sums [rows, panels * 16].
QX_APART void products(
    const uint8_t* a, int64_t lda, int64_t rows, const int8_t* w, int64_t panels, int64_t steps, int kind, int32_t* sums) {
  if constexpr (!FRESH_SUMS)
    for (int64_t i = 0; i < rows * panels * PANEL; i += LANES) *reinterpret_cast<I32M*>(sums + i) = I32{};
  accumulate(a, lda, rows, w, steps * STEP_BYTES, panels, steps, kind, sums, panels * PANEL);
}

// Sums of E v in float64, rounded to float32 once, for R queries and D half vectors of channels. The product of a power and a float32 is
// exact in float64, so fused multiply-add changes nothing; the sum is taken token after token.
template <int R, int D>
QX_INLINE void sum_values_of(const double* powers, int64_t columns, const float* v, int64_t stride, int64_t tokens, float* y) {
  constexpr int64_t HALF = LANES / 2;
  F64 sums[R][D] = {};
  for (int64_t t = 0; t < tokens; ++t) {
    F64 value[D];
    for (int j = 0; j < D; ++j) value[j] = load_wide(v + t * stride + j * HALF);
    for (int i = 0; i < R; ++i)
      for (int j = 0; j < D; ++j) sums[i][j] = multiply_add(all(powers[i * columns + t]), value[j], sums[i][j]);
  }
  for (int i = 0; i < R; ++i)
    for (int j = 0; j < D; ++j) store_narrow(y + i * stride + j * HALF, sums[i][j]);
}

// Y = float(sum of E v) / sum of E for R queries from row r of the scores on, which is query `query`.
template <int R>
QX_APART void float_values(const Room& room, const Head& head, int64_t tokens, int64_t width, int64_t query, int64_t r) {
  constexpr int64_t HALF = LANES / 2;
  const int64_t columns = room.columns, stride = head.stride;
  const float* scores = room.scores + r * columns;
  double* powers = room.powers;
  for (int64_t i = 0; i < R * columns; i += HALF) *reinterpret_cast<F64M*>(powers + i) = load_wide(scores + i);
  float* y = head.y + query * stride;
  int64_t d = 0;
  for (; d + 2 * HALF <= width; d += 2 * HALF) sum_values_of<R, 2>(powers, columns, head.v + d, stride, tokens, y + d);
  for (; d + HALF <= width; d += HALF) sum_values_of<R, 1>(powers, columns, head.v + d, stride, tokens, y + d);
  for (; d < width; ++d) {
    for (int i = 0; i < R; ++i) {
      double sum = 0;
      for (int64_t t = 0; t < tokens; ++t) sum += static_cast<double>(head.v[t * stride + d]) * powers[i * columns + t];
      y[i * stride + d] = static_cast<float>(sum);
    }
  }
  for (int i = 0; i < R; ++i) {
    const F32 sum = all(room.p_scale[r + i]);
    float* row = y + i * stride;
    sweep(width, [&](int64_t c, int64_t count) __attribute__((always_inline)) { store(row + c, load(row + c, count) / sum, count); });
  }
}

struct AttentionTasks {
  Attention* call;
  bool only_largest;  // first pass of PER_TENSOR: find the largest probability
};

static void attend(const AttentionTasks& tasks, const Room& room, const Head& head, int64_t index) {
  Attention& call = *tasks.call;
  load_keys(call, room, head);
  const bool integers = call.quantize_pv && !tasks.only_largest;
  const bool at_once = integers && call.scales == PER_TOKEN;  // codes of p need no other row, and not the sum of this one
  const float v_scale = integers ? load_values(call, room, head) : 1.0f;
  const int64_t columns = room.columns, p_width = room.p_width, channels = room.width_panels * PANEL;
  if (integers)  // past the columns there are no codes, but there may be steps
    for (int64_t r = 0; r < QUERY_BLOCK; ++r)
      for (int64_t t = columns; t < p_width; ++t) room.p[r * p_width + t] = 0;
  const F32 p_top = all(call.p_top);
  float most = 0;

  for (int64_t first = 0; first < call.tokens; first += QUERY_BLOCK) {
    const int64_t count = smaller(QUERY_BLOCK, call.tokens - first);
    load_queries(call, room, head, first, count);
    products(
        room.q, Q_HALVES * room.width, count, room.k, room.token_panels, room.width / 4, SCORES,
        reinterpret_cast<int32_t*>(room.scores));
    for (int64_t r = 0; r < count; ++r) {
      const float top = score(room, r);
      float* scores = room.scores + r * columns;
      uint8_t* codes = room.p + r * p_width;
      if (at_once) {
        // p / p_scale = (E / sum) / ((1117 / sum) / 127). The roundings do not matter: E * 127 / 1117 is 4e-4 or more away from a tie.
        const float sum = softmax(scores, columns, top, [=](int64_t c, auto& power) {
          for (F32& some : power) some = some * (127.0f / LARGEST_POWER);
          put_codes(codes + c, power);
        });
        room.p_scale[r] = dynamic_scale(LARGEST_POWER / sum, 0);
        continue;
      }
      const float sum = softmax(scores, columns, top, [=](int64_t c, const auto& power) {
        for (const F32& some : power) {
          store(scores + c, some);
          c += LANES;
        }
      });
      const float largest_p = LARGEST_POWER / sum;
      most = largest_p > most ? largest_p : most;
      room.p_scale[r] = integers ? call.p_scale : sum;
      if (!integers) continue;
      for (int64_t c = 0; c < columns; c += LANES) {
        const F32 p = load(scores + c) / sum;
        put_codes(codes + c, {at_most(at_least(p / call.p_scale, F32{}), p_top)});
      }
    }
    if (tasks.only_largest) continue;
    if (!integers) {
      int64_t r = 0;
      for (; r + 4 <= count; r += 4) float_values<4>(room, head, call.tokens, call.width, first + r, r);
      for (; r < count; ++r) float_values<1>(room, head, call.tokens, call.width, first + r, r);
      continue;
    }
    products(room.p, p_width, count, room.v, room.width_panels, room.tokens / 4, PROBABILITIES, room.sums);
    for (int64_t r = 0; r < count; ++r) {
      float* y = head.y + (first + r) * head.stride;
      const int32_t* sums = room.sums + r * channels;
      const F32 scale = all(room.p_scale[r] * v_scale);
      sweep(call.width, [&](int64_t d, int64_t some) __attribute__((always_inline)) {
        I32 sum = *reinterpret_cast<const I32M*>(sums + d);
        if constexpr (SMALL_BIAS != 0) sum = sum + *reinterpret_cast<const I32M*>(room.v_sums + d) * SMALL_BIAS;
        store(y + d, to_float(sum) * scale, some);
      });
    }
  }
  if (tasks.only_largest) call.largest_p[index] = most;
}

static void attention_task(void* user, size_t index) {
  const AttentionTasks& tasks = *static_cast<const AttentionTasks*>(user);
  Attention& call = *tasks.call;
  alignas(64) char here[STACK_ROOM];
  Room room;
  const size_t needed = place(room, call, nullptr);
  char* memory = nullptr;
  if (needed > sizeof here) {
    memory = static_cast<char*>(call.memory.take(call.memory.context, needed + 63));
    if (memory == nullptr) {
      *call.failed = 1;
      return;
    }
  }
  place(room, call, memory ? reinterpret_cast<char*>(round_up(reinterpret_cast<intptr_t>(memory), 64)) : here);
  const int64_t sentence = static_cast<int64_t>(index) / call.heads, column = static_cast<int64_t>(index) % call.heads * call.width;
  const int64_t stride = call.heads * call.width, start = sentence * call.tokens * stride + column;
  const Head head = {call.q + start, call.k + start, call.v + start, call.y + start, call.mask + sentence * call.tokens, stride};
  attend(tasks, room, head, static_cast<int64_t>(index));
  if (memory) call.memory.give(call.memory.context, memory);
}

static void attention(Attention& call, const Threads& threads) {
  const size_t total = static_cast<size_t>(call.batch * call.heads);
  if (call.scales == PER_TENSOR) {
    const int64_t count = call.batch * call.tokens * call.heads * call.width;
    call.q_scale = dynamic_scale(largest(call.q, count), call.clip);
    call.k_scale = dynamic_scale(largest(call.k, count), call.clip);
    call.v_scale = dynamic_scale(largest(call.v, count), call.clip);
    if (call.quantize_pv) {
      AttentionTasks first = {&call, true};
      threads.run(threads.context, attention_task, total, &first);
      call.p_scale = dynamic_scale(largest(call.largest_p, call.batch * call.heads), 0);
    }
  }
  AttentionTasks all_of_it = {&call, false};
  threads.run(threads.context, attention_task, total, &all_of_it);
}
