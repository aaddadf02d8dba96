// Integer products: A uint8 (or a part of it) by panels of int8 codes, sums in int32.
//
// To be included inside the namespace of an instruction set, after
//   GROUP              panels that are unpacked at once
//   STEPS              steps come in multiples of it
//   unpack_steps(storage, packed, steps, codes)   packed panel -> int8 [steps][16][4]
//   NARROW_BIAS, WIDE_BIAS, SMALL_BIAS   what is taken from A before the products, 0 or 128
//   ALWAYS_UNPACK      whether 8-bit codes, too, go through unpack_steps
//   Narrow, Wide, Small, Scores   how four values of A meet a vector of codes: up to 7 bits, 8 bits, 8 bits and A < 128, 8 bits
//                      and A as SIGN_AND_SIZE says:
//     ROWS, PANELS       rows of A and panels that a tile takes at once
//     INT16, PAIRS       whether parts are 16-bit lanes, and whether such a lane adds two products in one step
//     VECTORS            vectors in a step of one panel
//     LENGTH             codes in a vector
//     Codes, Spread, Part, Sum
//     codes(p)           LENGTH codes
//     spread(p, lda)     four bytes of A, whose rows are lda bytes, repeated
//     dot(part, spread, codes)   part + products
//     add(sums, part)    sums[0 ..] += part, one int32 for each four codes
//   SIGN_AND_SIZE      false: Scores takes A as Wide does. true: A less 128 in the first half of a row, its magnitude in the second
//   FRESH_SUMS         whether `add` of Small and of Scores writes the sums instead, which is for attention to know
// or, with QX_OWN_ACCUMULATE, after `accumulate` itself.

// In the place of `bits`, both with codes of 8 bits:
constexpr int PROBABILITIES = 0;        // A is below 128
constexpr int SCORES = -1;              // A is as SIGN_AND_SIZE says
constexpr int64_t K_BLOCK = 1024;      // values of k unpacked at a time: a panel of 16 kB
constexpr int64_t ROW_BLOCK = 96;      // rows of A in a task
constexpr int64_t TASK_PANELS = GROUP == 1 ? 4 : 2 * GROUP;  // so that a row of Y is written 256 bytes at a time

#ifndef QX_OWN_ACCUMULATE

// Steps after which a part must be widened. A 16-bit lane holds 32767; in a step it gets one product, of at most 128 * |w|, or on
// x86 two at once, of at most 255 * |w| each.
template <class Dot>
QX_INLINE int64_t flush_of(int bits) {
  const int largest = bits <= 2 ? 1 : 1 << (bits - 1);
  return !Dot::INT16 ? MAX_K : 32767 / (Dot::PAIRS ? 2 * 255 * largest : 128 * largest);
}

template <class Dot, int R, int G>
__attribute__((noinline)) static void tile(
    const uint8_t* a, int64_t lda, const int8_t* w, int64_t panel_stride, int64_t steps, int64_t flush, int32_t* sums,
    int64_t sums_stride) {
  constexpr int V = G * Dot::VECTORS;
  for (int64_t start = 0; start < steps; start += flush) {
    const int64_t stop = smaller(steps, start + flush);
    typename Dot::Part part[R][V];
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
      for (int v = 0; v < V; ++v) part[r][v] = Dot::zero();
    for (int64_t step = start; step < stop; ++step) {
      typename Dot::Codes codes[V];
#pragma GCC unroll 16
      for (int v = 0; v < V; ++v)
        codes[v] = Dot::codes(w + v / Dot::VECTORS * panel_stride + step * STEP_BYTES + v % Dot::VECTORS * Dot::LENGTH);
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) {
        const typename Dot::Spread four = Dot::spread(a + r * lda + 4 * step, lda);
#pragma GCC unroll 16
        for (int v = 0; v < V; ++v) part[r][v] = Dot::dot(part[r][v], four, codes[v]);
      }
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
      for (int v = 0; v < V; ++v) Dot::add(sums + r * sums_stride + v * (Dot::LENGTH / 4), part[r][v]);
  }
}

template <class Dot, int G, int R>
static void remaining_rows(
    const uint8_t* a, int64_t lda, int64_t rows, const int8_t* w, int64_t panel_stride, int64_t steps, int64_t flush,
    int32_t* sums, int64_t sums_stride) {
  if constexpr (R > 0) {
    if (rows == R) return tile<Dot, R, G>(a, lda, w, panel_stride, steps, flush, sums, sums_stride);
    remaining_rows<Dot, G, R - 1>(a, lda, rows, w, panel_stride, steps, flush, sums, sums_stride);
  }
}

template <class Dot, int G>
static void accumulate_panels(
    const uint8_t* a, int64_t lda, int64_t rows, const int8_t* w, int64_t panel_stride, int64_t steps, int64_t flush,
    int32_t* sums, int64_t sums_stride) {
  int64_t row = 0;
  for (; row + Dot::ROWS <= rows; row += Dot::ROWS)
    tile<Dot, Dot::ROWS, G>(
        a + row * lda, lda, w, panel_stride, steps, flush, sums + row * sums_stride, sums_stride);
  remaining_rows<Dot, G, Dot::ROWS - 1>(
      a + row * lda, lda, rows - row, w, panel_stride, steps, flush, sums + row * sums_stride, sums_stride);
}

template <class Dot, int G>
static void remaining_panels(
    const uint8_t* a, int64_t lda, int64_t rows, const int8_t* w, int64_t panel_stride, int64_t panels, int64_t steps,
    int64_t flush, int32_t* sums, int64_t sums_stride) {
  if constexpr (G > 0) {
    if (panels == G)
      return accumulate_panels<Dot, G>(a, lda, rows, w, panel_stride, steps, flush, sums, sums_stride);
    remaining_panels<Dot, G - 1>(a, lda, rows, w, panel_stride, panels, steps, flush, sums, sums_stride);
  }
}

template <class Dot>
static void accumulate_groups(
    const uint8_t* a, int64_t lda, int64_t rows, const int8_t* w, int64_t panel_stride, int64_t panels, int64_t steps,
    int64_t flush, int32_t* sums, int64_t sums_stride) {
  constexpr int G = Dot::PANELS;
  for (; panels >= G; panels -= G, w += G * panel_stride, sums += G * PANEL)
    accumulate_panels<Dot, G>(a, lda, rows, w, panel_stride, steps, flush, sums, sums_stride);
  remaining_panels<Dot, G - 1>(a, lda, rows, w, panel_stride, panels, steps, flush, sums, sums_stride);
}

// sums[rows][panels * 16] += (A - bias)[rows, 4 * steps] times the panels.
static void accumulate(
    const uint8_t* a, int64_t lda, int64_t rows, const int8_t* w, int64_t panel_stride, int64_t panels, int64_t steps,
    int bits, int32_t* sums, int64_t sums_stride) {
  if (bits == PROBABILITIES)
    accumulate_groups<Small>(
        a, lda, rows, w, panel_stride, panels, steps, flush_of<Small>(8), sums, sums_stride);
  else if (bits == SCORES)
    accumulate_groups<Scores>(a, lda, rows, w, panel_stride, panels, steps, flush_of<Scores>(8), sums, sums_stride);
  else if (bits == 8)
    accumulate_groups<Wide>(a, lda, rows, w, panel_stride, panels, steps, flush_of<Wide>(bits), sums, sums_stride);
  else
    accumulate_groups<Narrow>(
        a, lda, rows, w, panel_stride, panels, steps, flush_of<Narrow>(bits), sums, sums_stride);
}

#endif

QX_INLINE int32_t bias_of(int bits) { return bits == 8 ? WIDE_BIAS : NARROW_BIAS; }

// sums[rows][..] = (A - bias) W^T for a group of panels of a packed weight, unpacked into `codes` piece by piece.
static void multiply(
    const uint8_t* a, int64_t lda, int64_t rows, const Weight& weight, int64_t panel, int64_t panels, int8_t* codes,
    int32_t* sums, int64_t sums_stride) {
  const int per_row = steps_per_row(weight.storage);
  for (int64_t k = 0; k < weight.padded_k; k += K_BLOCK) {
    const int64_t steps = smaller(K_BLOCK, weight.padded_k - k) / 4;
    const int8_t* w = codes;
    int64_t stride = K_BLOCK * PANEL;
    const uint8_t* packed = weight.codes + panel * weight.panel_bytes + k / 4 / per_row * STEP_BYTES;
    if (weight.storage == EIGHT_BITS && !ALWAYS_UNPACK) {
      w = reinterpret_cast<const int8_t*>(packed);
      stride = weight.panel_bytes;
    } else {
      for (int64_t p = 0; p < panels; ++p)
        unpack_steps(weight.storage, packed + p * weight.panel_bytes, steps, codes + p * stride);
    }
    accumulate(a + k, lda, rows, w, stride, panels, steps, weight.bits, sums, sums_stride);
  }
}

struct MatMulTasks {
  const MatMul* call;
  int64_t groups;
};

static void matmul_task(void* user, size_t index) {
  const MatMulTasks& tasks = *static_cast<const MatMulTasks*>(user);
  const MatMul& call = *tasks.call;
  const Weight& weight = *call.weight;
  alignas(64) int8_t codes[GROUP * K_BLOCK * PANEL];
  alignas(64) int32_t sums[ROW_BLOCK * TASK_PANELS * PANEL];

  const int64_t task = static_cast<int64_t>(index);
  const int64_t panel = task % tasks.groups * TASK_PANELS;
  const int64_t panels = smaller(TASK_PANELS, weight.panels - panel);
  const int64_t first = task / tasks.groups * ROW_BLOCK;
  const int64_t rows = smaller(ROW_BLOCK, call.m - first);
  for (int64_t i = 0; i < rows * panels * PANEL; ++i) sums[i] = 0;
  const bool as_they_lie = weight.storage == EIGHT_BITS && !ALWAYS_UNPACK;
  const int64_t group = as_they_lie ? TASK_PANELS : GROUP;
  for (int64_t p = 0; p < panels; p += group)
    multiply(
        call.a + first * call.lda, call.lda, rows, weight, panel + p, smaller(group, panels - p), codes,
        sums + p * PANEL, panels * PANEL);

  const int64_t column = panel * PANEL;
  const int64_t columns = smaller(panels * PANEL, weight.n - column);
  const int32_t zero = call.zero_point - bias_of(weight.bits);
  for (int64_t r = 0; r < rows; ++r) {
    const F32 a_scale = all(call.a_scale[call.a_per_token ? first + r : 0]);
    const int32_t* from = sums + r * panels * PANEL;
    float* y = call.y + (first + r) * weight.n + column;
    sweep(columns, [&](int64_t c, int64_t count) __attribute__((always_inline)) {
      const F32 w_scale = call.w_per_row ? load(call.w_scale + column + c, count) : all(call.w_scale[0]);
      const I32 offset = *reinterpret_cast<const I32M*>(weight.sums + column + c) * zero;
      const I32 sum = *reinterpret_cast<const I32M*>(from + c) - offset;
      store(y + c, (to_float(sum) * w_scale) * a_scale + load(call.bias + column + c, count), count);
    });
  }
}

static void matmul(const MatMul& call, const Threads& threads) {
  MatMulTasks tasks = {&call, (call.weight->panels + TASK_PANELS - 1) / TASK_PANELS};
  const int64_t blocks = (call.m + ROW_BLOCK - 1) / ROW_BLOCK;
  threads.run(threads.context, matmul_task, static_cast<size_t>(tasks.groups * blocks), &tasks);
}
