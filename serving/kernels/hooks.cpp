// Operators and measuring loops without ONNX Runtime, one thread: for tests, sanitizers and `qexport bench`.
//
// Every function returns 0, 1 for an unknown instruction set, 2 for one that this processor lacks, 3 for an argument that cannot be.
// Shapes and dtypes are those of core.h; memory is the caller's.

#include "core.h"

#if defined(_WIN32)
#define QEXPORT_API extern "C" __declspec(dllexport)
#else
#define QEXPORT_API extern "C" __attribute__((visibility("default")))
#endif

using namespace qexport;

static void run_serially(const void*, void (*task)(void*, size_t), size_t total, void* user) {
  for (size_t i = 0; i < total; ++i) task(user, i);
}
static const Threads ONE_THREAD = {nullptr, run_serially};

static int find(const char* name, const Isa** isa) {
  *isa = isa_by_name(name);
  if (*isa == nullptr) return 1;
  return isa_runs_here(*isa) ? 0 : 2;
}

// Bytes of room that qexport_matmul needs for a weight [n, k] and m rows.
QEXPORT_API int64_t qexport_matmul_room(int bits, int64_t m, int64_t n, int64_t k) {
  return static_cast<int64_t>(weight_bytes(bits, n, k)) + m * round_up(k, K_MULTIPLE) + 64;
}

// Fills `room` with the repacked weight; qexport_matmul may then be called any number of times.
QEXPORT_API int qexport_matmul_prepare(int bits, int64_t n, int64_t k, const uint8_t* packed, void* room) {
  if (bits < 1 || bits > 8 || n < 1 || k < 1 || k > MAX_K) return 3;
  Weight weight;
  repack(weight, bits, n, k, packed, room);
  return 0;
}

// Y [m, n] of A uint8 [m, k]; a_scale [m] or [1], w_scale [n] or [1], bias [n].
QEXPORT_API int qexport_matmul(
    const char* isa_name, int bits, int64_t m, int64_t n, int64_t k, const uint8_t* a, int zero_point,
    const float* a_scale, int a_per_token, const float* w_scale, int w_per_row, const float* bias, void* room, float* y) {
  const Isa* isa;
  if (int problem = find(isa_name, &isa)) return problem;
  if (bits < 1 || bits > 8 || m < 0 || n < 1 || k < 1 || k > MAX_K) return 3;
  Weight weight;
  describe(weight, bits, n, k, room);
  const uint8_t* rows = a;
  if (weight.padded_k != k) {
    uint8_t* padded = static_cast<uint8_t*>(room) + weight_bytes(bits, n, k);
    const int32_t bias_value = bits == 8 ? isa->wide_bias : isa->narrow_bias;
    for (int64_t row = 0; row < m; ++row)
      for (int64_t i = 0; i < weight.padded_k; ++i)
        padded[row * weight.padded_k + i] = i < k ? a[row * k + i] : static_cast<uint8_t>(bias_value);
    rows = padded;
  }
  MatMul call = {rows, m, weight.padded_k, zero_point, a_scale, a_per_token != 0,
                 &weight, w_scale, w_per_row != 0, bias, y};
  isa->matmul(call, ONE_THREAD);
  return 0;
}

static Rows rows_call(const float* x, int64_t rows, int64_t width, float clip, uint8_t* codes, float* scale) {
  Rows call = {};
  call.x = x;
  call.rows = rows;
  call.width = width;
  call.clip = clip;
  call.codes = codes;
  call.scale = scale;
  return call;
}

// x [rows, width] -> codes [rows, width], scale [rows].
QEXPORT_API int qexport_quantize_per_token(
    const char* isa_name, const float* x, int64_t rows, int64_t width, float clip, uint8_t* codes, float* scale) {
  const Isa* isa;
  if (int problem = find(isa_name, &isa)) return problem;
  isa->quantize(rows_call(x, rows, width, clip, codes, scale), ONE_THREAD);
  return 0;
}

// The same of gelu(x), which is left in y [rows, width].
QEXPORT_API int qexport_gelu_quantize_per_token(
    const char* isa_name, const float* x, int64_t rows, int64_t width, float clip, float* y, uint8_t* codes,
    float* scale) {
  const Isa* isa;
  if (int problem = find(isa_name, &isa)) return problem;
  Rows call = rows_call(x, rows, width, clip, codes, scale);
  call.y = y;
  isa->gelu_quantize(call, ONE_THREAD);
  return 0;
}

// y = LayerNorm(x + residual) and its codes; residual [rows, width].
QEXPORT_API int qexport_add_layer_norm_quantize_per_token(
    const char* isa_name, const float* x, const float* residual, const float* gamma, const float* beta, int64_t rows,
    int64_t width, float epsilon, float clip, float* y, uint8_t* codes, float* scale) {
  const Isa* isa;
  if (int problem = find(isa_name, &isa)) return problem;
  Rows call = rows_call(x, rows, width, clip, codes, scale);
  call.residual = residual;
  call.residual_rows = rows;
  call.gamma = gamma;
  call.beta = beta;
  call.epsilon = epsilon;
  call.y = y;
  isa->add_norm_quantize(call, ONE_THREAD);
  return 0;
}

struct Piece {
  char* memory;
  int64_t bytes;
};

// QuantizedAttention and its variants: scales 0 per token, 1 per tensor, 2 static; `fixed` are the four static scales.
// `room` must hold 64 bytes for each token and channel of one head, and 1 MiB more.
QEXPORT_API int qexport_attention(
    const char* isa_name, const float* q, const float* k, const float* v, const uint8_t* mask, int64_t batch,
    int64_t tokens, int64_t heads, int64_t width, float scaling, float clip, int scales, int quantize_pv,
    const float* fixed, void* room, int64_t room_bytes, float* y) {
  const Isa* isa;
  if (int problem = find(isa_name, &isa)) return problem;
  if (scales < 0 || scales > 2 || batch < 0 || tokens < 0 || heads < 1 || width < 1) return 3;
  Attention call = {};
  call.q = q;
  call.k = k;
  call.v = v;
  call.mask = mask;
  call.y = y;
  call.batch = batch;
  call.tokens = tokens;
  call.heads = heads;
  call.width = width;
  call.scaling = scaling;
  call.clip = clip;
  call.scales = static_cast<AttentionScales>(scales);
  call.quantize_pv = quantize_pv != 0;
  call.top = call.p_top = 127;
  if (scales == STATIC) {
    call.q_scale = fixed[0];
    call.k_scale = fixed[1];
    call.p_scale = fixed[2];
    call.v_scale = fixed[3];
  }
  const int64_t used = round_up(batch * heads * 4, 64);
  if (used > room_bytes) return 3;
  call.largest_p = static_cast<float*>(room);
  const Piece piece = {static_cast<char*>(room) + used, room_bytes - used};
  call.memory = {&piece,
                 [](const void* context, size_t bytes) -> void* {
                   const Piece* all = static_cast<const Piece*>(context);
                   return static_cast<int64_t>(bytes) <= all->bytes ? all->memory : nullptr;
                 },
                 [](const void*, void*) {}};
  int failed = 0;
  call.failed = &failed;
  if (batch > 0 && tokens > 0) isa->attention(call, ONE_THREAD);
  return failed ? 3 : 0;
}

// Multiply-accumulates done by the instruction set's peak loop, -1 where it cannot run.
QEXPORT_API long long qexport_peak(const char* isa_name, long long rounds) {
  const Isa* isa;
  return find(isa_name, &isa) ? -1 : isa->peak(rounds);
}

QEXPORT_API void qexport_stream(void* to, const void* from, long long bytes) { current_isa()->stream(to, from, bytes); }
