// Attention with 8-bit products: one task for each sentence and head.
//
//   scores = float(q_codes k_codes^T) * ((q_scale * scaling) * k_scale) + (kept ? 0 : -10000)
//   p = softmax(scores),  codes of p = round(p / p_scale) in 0..p_top
//   Y = float(p_codes v_codes) * (p_scale * v_scale)
//
// k and v are laid out as panels of 8-bit codes (core.h), so the products are those of an 8-bit weight: k [tokens, width]
// has a token in a row, v^T [width, tokens] a channel.

constexpr float MASKED = -10000.0f;
// Queries whose scores are in memory at once: whole tiles of AMX, and elsewhere a multiple of the rows of every tile.
constexpr int64_t QUERY_BLOCK = STEPS == 16 ? 32 : 24;

// Room of one task, cut from one piece of memory.
struct Room {
  int64_t width, tokens;      // padded to whole steps
  int64_t token_panels, width_panels;
  uint8_t* q;        // [QUERY_BLOCK, width]
  int8_t* k;         // token panels of [width / 4][16][4]
  int8_t* v;         // width panels of [tokens / 4][16][4]
  uint8_t* p;        // [QUERY_BLOCK, tokens]
  float* scores;     // [QUERY_BLOCK, token_panels * 16]
  int32_t* sums;     // [QUERY_BLOCK, token_panels or width_panels * 16]
  int32_t* k_sums;   // [token_panels * 16]: sums of codes
  int32_t* v_sums;   // [width_panels * 16]
  float* k_scale;    // [token_panels * 16]
  float* drop;       // [token_panels * 16]: 0 or -10000; -inf past the tokens
  float* q_scale;    // [QUERY_BLOCK]
  float* p_scale;    // [QUERY_BLOCK]
};

typedef int32_t FourCodes __attribute__((aligned(1), may_alias));

static size_t place(Room& room, const Attention& call, char* memory) {
  room.width = round_up(call.width, 4 * STEPS);
  room.tokens = round_up(call.tokens, 4 * STEPS);
  room.token_panels = (call.tokens + PANEL - 1) / PANEL;
  room.width_panels = (call.width + PANEL - 1) / PANEL;
  const int64_t columns = room.token_panels * PANEL;
  const int64_t widest = columns > room.width_panels * PANEL ? columns : room.width_panels * PANEL;
  size_t used = 0;
  auto take = [&](auto*& pointer, int64_t count) {
    pointer = reinterpret_cast<decltype(+pointer)>(memory + used);
    used += static_cast<size_t>(round_up(count * static_cast<int64_t>(sizeof *pointer), 64));
  };
  take(room.q, QUERY_BLOCK * room.width);
  take(room.k, columns * room.width);
  take(room.v, room.width_panels * PANEL * room.tokens);
  take(room.p, QUERY_BLOCK * room.tokens);
  take(room.scores, QUERY_BLOCK * columns);
  take(room.sums, QUERY_BLOCK * widest);
  take(room.k_sums, columns);
  take(room.v_sums, room.width_panels * PANEL);
  take(room.k_scale, columns);
  take(room.drop, columns);
  take(room.q_scale, QUERY_BLOCK);
  take(room.p_scale, QUERY_BLOCK);
  return used + 64;
}

QX_INLINE float scale_of_row(const Attention& call, const float* x, float fixed) {
  return call.scales == PER_TOKEN ? dynamic_scale(largest(x, call.width), call.clip) : fixed;
}

// Products of `rows` rows by all panels, sums [rows][panels * 16].
static void products(
    const uint8_t* a, int64_t lda, int64_t rows, const int8_t* w, int64_t panels, int64_t steps, int bits, int32_t* sums) {
  for (int64_t i = 0; i < rows * panels * PANEL; ++i) sums[i] = 0;
  accumulate(a, lda, rows, w, steps * STEP_BYTES, panels, steps, bits, sums, panels * PANEL);
}

static void load_keys(const Attention& call, const Room& room, int64_t row, int64_t column, const uint8_t* mask) {
  const int64_t stride = call.heads * call.width;
  const int64_t steps = room.width / 4;
  for (int64_t t = 0; t < room.token_panels * PANEL; ++t) {
    int8_t* panel = room.k + t / PANEL * steps * STEP_BYTES + t % PANEL * 4;
    const bool present = t < call.tokens;
    const float* k = call.k + (row + (present ? t : 0)) * stride + column;
    const float scale = present ? scale_of_row(call, k, call.k_scale) : 0.0f;
    room.k_scale[t] = scale;
    const F32 factor = all(1.0f / scale);
    room.drop[t] = !present ? -__builtin_inff() : mask[t] ? 0.0f : MASKED;
    I32 sums = {};
    for (int64_t d = 0; d < room.width; d += LANES) {
      I32 codes = {};
      if (present && d < call.width) codes = bounded_code(load(k + d, call.width - d) * factor, call.top);
      alignas(LANES) int8_t bytes[LANES];
      put_s8(bytes, codes);
      sums = sums + codes;
      for (int64_t i = 0; i < LANES / 4 && d + 4 * i < room.width; ++i)
        *reinterpret_cast<FourCodes*>(panel + (d / 4 + i) * STEP_BYTES) = *reinterpret_cast<const FourCodes*>(bytes + 4 * i);
    }
    room.k_sums[t] = 0;
    for (int i = 0; i < LANES; ++i) room.k_sums[t] += sums[i];
  }
}

// Returns the scale of v.
static float load_values(const Attention& call, const Room& room, int64_t row, int64_t column, const uint8_t* mask) {
  const int64_t stride = call.heads * call.width;
  float scale = call.v_scale;
  if (call.scales == PER_TOKEN) {
    float found = 0;
    for (int64_t t = 0; t < call.tokens; ++t) {
      if (!mask[t]) continue;
      const float of_token = largest(call.v + (row + t) * stride + column, call.width);
      found = of_token > found ? of_token : found;
    }
    scale = dynamic_scale(found, call.clip);
  }
  const F32 factor = all(1.0f / scale);
  for (int64_t d = 0; d < room.width_panels * PANEL; d += LANES) {
    int8_t* panel = room.v + d / PANEL * room.tokens * PANEL + d % PANEL * 4;
    I32 sums = {};
    for (int64_t t = 0; t < room.tokens; t += 4) {
      I32 codes[4] = {};
      for (int64_t i = 0; i < 4 && t + i < call.tokens && d < call.width; ++i) {
        const float* v = call.v + (row + t + i) * stride + column;
        codes[i] = bounded_code(load(v + d, call.width - d) * factor, call.top);
        sums = sums + codes[i];
      }
      // a channel's four tokens, side by side
      const I32 four = (codes[0] & 255) | (codes[1] & 255) << 8 | (codes[2] & 255) << 16 | codes[3] << 24;
      *reinterpret_cast<I32M*>(panel + t / 4 * STEP_BYTES) = four;
    }
    *reinterpret_cast<I32M*>(room.v_sums + d) = sums;
  }
  return scale;
}

// exp(score - largest score) of queries first .. first + count - 1 into room.scores; 1 / their sum, which is the largest
// probability, into room.p_scale.
static void powers(
    const Attention& call, const Room& room, int64_t row, int64_t column, int64_t first, int64_t count) {
  const int64_t stride = call.heads * call.width;
  const int64_t columns = room.token_panels * PANEL;
  for (int64_t r = 0; r < count; ++r) {
    const float* q = call.q + (row + first + r) * stride + column;
    const float scale = scale_of_row(call, q, call.q_scale);
    const F32 factor = all(1.0f / scale);
    room.q_scale[r] = scale * call.scaling;
    uint8_t* codes = room.q + r * room.width;
    for (int64_t d = 0; d < call.width; d += LANES)
      store_bytes(codes + d, bounded_code(load(q + d, call.width - d) * factor, call.top) + ZERO_POINT, call.width - d);
    for (int64_t d = call.width; d < room.width; ++d) codes[d] = 0;
  }
  products(room.q, room.width, count, room.k, room.token_panels, room.width / 4, 8, room.sums);
  for (int64_t r = 0; r < count; ++r) {
    float* scores = room.scores + r * columns;
    const int32_t* sums = room.sums + r * columns;
    F32 top = all(-__builtin_inff());
    for (int64_t c = 0; c < columns; c += LANES) {
      const I32 sum = *reinterpret_cast<const I32M*>(sums + c) -
                      *reinterpret_cast<const I32M*>(room.k_sums + c) * (ZERO_POINT - WIDE_BIAS);
      const F32 scale = all(room.q_scale[r]) * load(room.k_scale + c);
      const F32 score = to_float(sum) * scale + load(room.drop + c);
      store(scores + c, score);
      top = at_least(score, top);
    }
    const F32 most = all(largest_of(top));
    F32 total = {};
    for (int64_t c = 0; c < columns; c += LANES) {
      const F32 power = exponential(load(scores + c) - most);
      store(scores + c, power);
      total = total + power;
    }
    room.p_scale[r] = 1.0f / sum_of(total);
  }
}

// Y = P V in float32 for queries first .. first + count - 1, R of them at a time.
template <int R>
static void float_values(
    const Attention& call, const Room& room, int64_t row, int64_t column, int64_t first, int64_t count) {
  const int64_t stride = call.heads * call.width;
  const int64_t columns = room.token_panels * PANEL;
  const float* v = call.v + row * stride + column;
  int64_t r = 0;
  for (; r + R <= count; r += R) {
    const float* p = room.scores + r * columns;
    float* y = call.y + (row + first + r) * stride + column;
    sweep(call.width, [&](int64_t d, int64_t channels) __attribute__((always_inline)) {
      F32 sums[R] = {};
      for (int64_t t = 0; t < call.tokens; ++t) {
        const F32 value = load(v + t * stride + d, channels);
        for (int i = 0; i < R; ++i) sums[i] = multiply_add(all(p[i * columns + t]), value, sums[i]);
      }
      for (int i = 0; i < R; ++i) store(y + i * stride + d, sums[i] * room.p_scale[r + i], channels);
    });
  }
  if constexpr (R > 1) {
    for (; r < count; ++r) {
      Room one = room;
      one.scores = room.scores + r * columns;
      one.p_scale = room.p_scale + r;
      float_values<1>(call, one, row, column, first + r, 1);
    }
  }
}

struct AttentionTasks {
  Attention* call;
  bool only_largest;  // first pass of PER_TENSOR: find the largest probability
};

static void attention_task(void* user, size_t index) {
  const AttentionTasks& tasks = *static_cast<const AttentionTasks*>(user);
  Attention& call = *tasks.call;
  Room room;
  char* memory = static_cast<char*>(call.memory.take(call.memory.context, place(room, call, nullptr)));
  if (memory == nullptr) {
    *call.failed = 1;
    return;
  }
  place(room, call, reinterpret_cast<char*>(round_up(reinterpret_cast<intptr_t>(memory), 64)));

  const int64_t stride = call.heads * call.width;
  const int64_t columns = room.token_panels * PANEL;
  const int64_t sentence = static_cast<int64_t>(index) / call.heads;
  const int64_t head = static_cast<int64_t>(index) % call.heads;
  const int64_t row = sentence * call.tokens, column = head * call.width;
  const uint8_t* mask = call.mask + sentence * call.tokens;
  load_keys(call, room, row, column, mask);
  const bool integers = call.quantize_pv && !tasks.only_largest;
  const float v_scale = integers ? load_values(call, room, row, column, mask) : 1.0f;
  float most = 0;

  for (int64_t first = 0; first < call.tokens; first += QUERY_BLOCK) {
    const int64_t count = smaller(QUERY_BLOCK, call.tokens - first);
    powers(call, room, row, column, first, count);
    if (tasks.only_largest) {
      for (int64_t r = 0; r < count; ++r) most = room.p_scale[r] > most ? room.p_scale[r] : most;
      continue;
    }
    if (!integers) {
      float_values<4>(call, room, row, column, first, count);
      continue;
    }
    for (int64_t r = 0; r < count; ++r) {
      // p / p_scale, where p = power * largest. One scale a token: the largest probability has code 127, so that is power * 127.
      const float most_likely = room.p_scale[r];
      const bool own = call.scales == PER_TOKEN;
      room.p_scale[r] = own ? dynamic_scale(most_likely, 0) : call.p_scale;
      const F32 steps = all(own ? 127.0f : most_likely / call.p_scale);
      uint8_t* codes = room.p + r * room.tokens;
      const float* power = room.scores + r * columns;
      for (int64_t t = 0; t < room.tokens; t += LANES) {
        const F32 code = t < columns ? at_most(load(power + t) * steps, all(call.p_top)) : F32{};
        store_bytes(codes + t, to_int(nearest(code)), room.tokens - t);
      }
    }
    products(room.p, room.tokens, count, room.v, room.width_panels, room.tokens / 4, PROBABILITIES, room.sums);
    for (int64_t r = 0; r < count; ++r) {
      float* y = call.y + (row + first + r) * stride + column;
      const int32_t* sums = room.sums + r * room.width_panels * PANEL;
      const F32 scale = all(room.p_scale[r] * v_scale);
      for (int64_t d = 0; d < call.width; d += LANES) {
        const I32 sum = *reinterpret_cast<const I32M*>(sums + d) +
                        *reinterpret_cast<const I32M*>(room.v_sums + d) * SMALL_BIAS;
        store(y + d, to_float(sum) * scale, call.width - d);
      }
    }
  }
  if (tasks.only_largest) call.largest_p[index] = most;
  call.memory.give(call.memory.context, memory);
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
