// Work on one row (token) after another: 8-bit codes, and what is fused in front of them.
//
// codes = clip(round_half_even(x / scale), -127, 127) + 128; a NaN gets the code of 0 (128). The scale of a row is that of its largest
// magnitude, NaN left out.

QX_APART void store_piece(uint8_t* p, I32 x, int64_t count) {
  uint8_t bytes[LANES];
  put_u8(bytes, x);
  for (int64_t i = 0; i < count; ++i) p[i] = bytes[i];
}
QX_INLINE void store_bytes(uint8_t* p, I32 x, int64_t count) { count >= LANES ? put_u8(p, x) : store_piece(p, x, count); }

// round_half_even(steps) between -top and top; 0 for NaN.
QX_INLINE I32 bounded_code(F32 steps, F32 top) {
  steps = steps == steps ? steps : F32{};
  return nearest(at_least(at_most(steps, top), -top));
}

static float largest(const float* x, int64_t count) {
  F32 found[4] = {};
  int64_t i = 0;
  for (; i + 4 * LANES <= count; i += 4 * LANES)
    for (int j = 0; j < 4; ++j) found[j] = at_least(magnitude(load(x + i + j * LANES)), found[j]);
  for (; i < count; i += LANES) found[0] = at_least(magnitude(load(x + i, count - i)), found[0]);
  return largest_of(at_least(at_least(found[0], found[1]), at_least(found[2], found[3])));
}

// Codes of a row whose largest magnitude is `most`, and its scale unless that is fixed.
static void encode_row(const Rows& call, int64_t row, const float* x, float most) {
  float scale = call.fixed_scale;
  if (call.scale != nullptr) {
    scale = dynamic_scale(most, call.clip);
    call.scale[row] = scale;
  }
  uint8_t* codes = call.codes + row * call.width;
  const F32 divisor = all(scale);
  sweep(call.width, [&](int64_t i, int64_t count) __attribute__((always_inline)) {
    store_bytes(codes + i, bounded_code(load(x + i, count) / divisor, all(127.0f)) + ZERO_POINT, count);
  });
}

constexpr int64_t ROWS_IN_TASK = 8;

template <void (*WORK)(const Rows&, int64_t)>
static void rows_task(void* user, size_t index) {
  const Rows& call = *static_cast<const Rows*>(user);
  const int64_t first = static_cast<int64_t>(index) * ROWS_IN_TASK;
  for (int64_t row = first; row < smaller(first + ROWS_IN_TASK, call.rows); ++row) WORK(call, row);
}

template <void (*WORK)(const Rows&, int64_t)>
static void each_row(const Rows& call, const Threads& threads) {
  const int64_t tasks = (call.rows + ROWS_IN_TASK - 1) / ROWS_IN_TASK;
  threads.run(threads.context, rows_task<WORK>, static_cast<size_t>(tasks), const_cast<Rows*>(&call));
}

static void quantize_row(const Rows& call, int64_t row) {
  const float* x = call.x + row * call.width;
  encode_row(call, row, x, call.scale ? largest(x, call.width) : 0);
}

// y is the room for gelu(x), [rows, width], or null where a row has at most LONGEST_ROW values and only its codes are asked for.
static void gelu_row(const Rows& call, int64_t row) {
  alignas(64) float here[LONGEST_ROW];
  const float* x = call.x + row * call.width;
  float* y = call.y ? call.y + row * call.width : here;
  F32 most = {};
  sweep(call.width, [&](int64_t i, int64_t count) __attribute__((always_inline)) {
    const F32 value = gelu_of(load(x + i, count));
    store(y + i, value, count);
    most = at_least(magnitude(value), most);
  });
  if (call.codes != nullptr) encode_row(call, row, y, largest_of(most));
}

QX_INLINE float whole(float x) { return (x + MAGIC) - MAGIC; }  // the nearest, halves to even; 0 <= x < 2**22

// z = x + residual, or x; n = z * i with i = 128 / max |z|; m and r from sums of whole numbers, which have no order (formats.py says up to
// which width); y = (n - m) * gamma / deviation + beta. float32, each step rounded. A NaN or an infinity makes the whole row NaN.
static void norm_row(const Rows& call, int64_t row) {
  const int64_t width = call.width;
  const float* x = call.x + row * width;
  float* y = call.y + row * width;
  F32 most = {};
  if (call.residual != nullptr) {
    const float* residual = call.residual + row % call.residual_rows * width;
    sweep(width, [&](int64_t i, int64_t count) __attribute__((always_inline)) {
      const F32 z = load(x + i, count) + load(residual + i, count);
      store(y + i, z, count);
      most = at_least(magnitude(z), most);
    });
    x = y;
  }
  const float size = call.residual != nullptr ? largest_of(most) : largest(x, width);
  const float stretch = 1.0f / ((size > SMALLEST_MAGNITUDE ? size : SMALLEST_MAGNITUDE) * (1.0f / NORM_RANGE));
  F32 steps = {}, squares = {};
  sweep(width, [&](int64_t i, int64_t count) __attribute__((always_inline)) {
    const F32 n = load(x + i, count) * stretch;
    store(y + i, n, count);
    steps += rounded(n * NORM_MEAN_STEPS);
    squares += rounded(n * n);
  });
  const float share = 1.0f / static_cast<float>(width);
  const float mean = sum_of(steps) * (share * (1.0f / NORM_MEAN_STEPS));
  const float spread = sum_of(squares) * share - mean * mean, variance = spread + stretch * call.epsilon * stretch;
  const float low = variance > SMALLEST_VARIANCE ? variance : SMALLEST_VARIANCE;
  const float w = (low < LARGEST_VARIANCE ? low : LARGEST_VARIANCE) * ROOT_STEPS, root = whole(__builtin_sqrtf(whole(w)));
  const F32 factor = all(root / (root * root + w));  // 8 of it: a step of Newton's method from 4 / root towards 1 / deviation
  const float *gamma = call.gamma, *beta = call.beta;
  most = F32{};
  sweep(width, [&](int64_t i, int64_t count) __attribute__((always_inline)) {
    const F32 value = (load(y + i, count) - mean) * (load(gamma + i, count) * 8.0f) * factor + load(beta + i, count);
    store(y + i, value, count);
    most = at_least(magnitude(value), most);
  });
  if (call.codes != nullptr) encode_row(call, row, y, largest_of(most));
}

static void quantize(const Rows& call, const Threads& threads) { each_row<quantize_row>(call, threads); }
static void gelu_quantize(const Rows& call, const Threads& threads) { each_row<gelu_row>(call, threads); }
static void add_norm_quantize(const Rows& call, const Threads& threads) { each_row<norm_row>(call, threads); }

static void stream(void* to, const void* from, int64_t bytes) {
  const float* f = static_cast<const float*>(from);
  float* t = static_cast<float*>(to);
  for (int64_t i = 0; i < bytes / 4; i += LANES) store(t + i, load(f + i, bytes / 4 - i), bytes / 4 - i);
}
