// Work on one row (token) after another: 8-bit codes, and what is fused in front of them.
//
// codes = clip(round_half_even(x / scale), -127, 127) + 128; a NaN gets the code of 0 (128). The scale of a row is that of its largest
// magnitude, NaN left out.

// Codes and scale of a row that lies in memory.
static void encode_row(const Rows& call, int64_t row, const float* x) {
  const int64_t width = call.width;
  float scale = call.fixed_scale;
  if (call.scale != nullptr) {
    F32 largest = {};
    for (int64_t i = 0; i < width; i += LANES) largest = larger(largest, magnitude(load(x + i, width - i)));
    scale = dynamic_scale(largest_of(largest), call.clip);
    call.scale[row] = scale;
  }
  uint8_t* codes = call.codes + row * width;
  const F32 divisor = all(scale), high = all(127.0f), low = all(-127.0f);
  for (int64_t i = 0; i < width; i += LANES) {
    F32 steps = load(x + i, width - i) / divisor;
    steps = steps == steps ? steps : F32{};
    steps = nearest(at_least(at_most(steps, high), low));
    store(codes + i, to_int(steps) + ZERO_POINT, width - i);
  }
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

static void quantize_row(const Rows& call, int64_t row) { encode_row(call, row, call.x + row * call.width); }

// y is the room for gelu(x), [rows, width].
static void gelu_row(const Rows& call, int64_t row) {
  const float* x = call.x + row * call.width;
  float* y = call.y + row * call.width;
  for (int64_t i = 0; i < call.width; i += LANES) {
    const F32 value = load(x + i, call.width - i);
    const F32 half = value * 0.5f;
    store(y + i, half * (error_function(value * 0.70710678f) + 1.0f), call.width - i);
  }
  encode_row(call, row, y);
}

static void norm_row(const Rows& call, int64_t row) {
  const int64_t width = call.width;
  const float* x = call.x + row * width;
  const float* residual = call.residual + row % call.residual_rows * width;
  float* y = call.y + row * width;
  F32 sum = {};
  for (int64_t i = 0; i < width; i += LANES) {
    const F32 value = load(x + i, width - i) + load(residual + i, width - i);
    store(y + i, value, width - i);
    sum = sum + value;
  }
  const F32 mean = all(sum_of(sum) / static_cast<float>(width));
  F32 squares = {};
  int64_t i = 0;
  for (; i + LANES <= width; i += LANES) {
    const F32 distance = load(y + i) - mean;
    squares = squares + distance * distance;
  }
  float rest = 0;
  for (; i < width; ++i) rest += (y[i] - mean[0]) * (y[i] - mean[0]);
  const float variance = (sum_of(squares) + rest) / static_cast<float>(width);
  const F32 inverse = all(1.0f / __builtin_sqrtf(variance + call.epsilon));
  for (i = 0; i < width; i += LANES) {
    const F32 value = (load(y + i, width - i) - mean) * inverse;
    store(y + i, value * load(call.gamma + i, width - i) + load(call.beta + i, width - i), width - i);
  }
  if (call.codes != nullptr) encode_row(call, row, y);
}

static void quantize(const Rows& call, const Threads& threads) { each_row<quantize_row>(call, threads); }
static void gelu_quantize(const Rows& call, const Threads& threads) { each_row<gelu_row>(call, threads); }
static void add_norm_quantize(const Rows& call, const Threads& threads) { each_row<norm_row>(call, threads); }

static float largest(const float* x, int64_t count) {
  F32 found = {};
  for (int64_t i = 0; i < count; i += LANES) found = larger(found, magnitude(load(x + i, count - i)));
  return largest_of(found);
}

static void stream(void* to, const void* from, int64_t bytes) {
  const float* f = static_cast<const float*>(from);
  float* t = static_cast<float*>(to);
  for (int64_t i = 0; i < bytes / 4; i += LANES) store(t + i, load(f + i, bytes / 4 - i), bytes / 4 - i);
}
