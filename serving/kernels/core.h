// What the operators and the instruction sets share: the weight in memory, and the table of an instruction set.
//
// Weight layout, the same for every instruction set. W [N, K] is cut into panels of 16 rows (16 columns of Y).
// A panel is a run of steps; a step holds 4 values of k for each of the 16 rows, 64 codes, row after row:
// code (row, k) has step k / 4 and place 4 * row + k % 4. K is padded to a multiple of 64, a whole number of steps for
// every storage. Several steps share 64 bytes:
//
//   storage  bits  steps in 64 bytes  code of step s in byte `place`         weights
//   0        1     8                  bit s                                  1 bit:  -1, 1
//   1        2     4                  bits 2s, 2s + 1, as code + 1           2 bits: -1, 0, 1
//   2        4     2                  bits 4s..4s + 3, as code + 8           3 and 4 bits
//   3        8     1                  the code itself, int8                  5 to 8 bits
//
// Codes are unpacked panel by panel into a buffer that stays in the first-level cache, and used there for
// every row of A: in main memory a ternary weight is 2 bits.

#pragma once

#include <stddef.h>
#include <stdint.h>

namespace qexport {

constexpr int PANEL = 16;        // rows of W in a panel
constexpr int STEP_BYTES = 64;   // codes in a step: 16 rows x 4 values of k
constexpr int K_MULTIPLE = 64;   // K is padded to it
constexpr int64_t MAX_K = 65536;  // 255 * 127 * K stays below 2**31
constexpr int64_t LONGEST_ROW = 4096;  // values of gelu(x) that a task keeps on its stack
constexpr int64_t MAX_DIM = int64_t(1) << 31;

enum Storage { ONE_BIT = 0, TWO_BITS = 1, FOUR_BITS = 2, EIGHT_BITS = 3 };

inline Storage storage_of(int bits) {
  return bits == 1 ? ONE_BIT : bits == 2 ? TWO_BITS : bits <= 4 ? FOUR_BITS : EIGHT_BITS;
}
inline int steps_per_row(Storage storage) { return 8 >> storage; }  // steps in 64 bytes
inline int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }
inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

struct Weight {
  int bits = 0;             // 1..8, as in the operator's name; 2 is ternary
  Storage storage = ONE_BIT;
  int64_t n = 0, k = 0;     // W is [n, k]
  int64_t padded_k = 0;
  int64_t panels = 0;
  int64_t panel_bytes = 0;
  uint8_t* codes = nullptr;  // panels * panel_bytes, 64-byte aligned
  int32_t* sums = nullptr;   // [panels * 16]: sum over k of W[n, k]; 0 past n
};

// Runs task(user, 0..total - 1), perhaps on several threads. The order has no influence on any result.
struct Threads {
  const void* context;
  void (*run)(const void* context, void (*task)(void*, size_t), size_t total, void* user);
};

// Memory for the length of one call; null when there is none left.
struct Memory {
  const void* context;
  void* (*take)(const void* context, size_t bytes);
  void (*give)(const void* context, void* memory);
};

// Y[m, n] = (float(sum_k (A[m, k] - zero_point) * W[n, k]) * w_scale[n]) * a_scale[m] + bias[n], each step rounded.
struct MatMul {
  const uint8_t* a;      // [m, padded_k]; past k stands the instruction set's bias
  int64_t m;
  int64_t lda;
  int32_t zero_point;
  const float* a_scale;  // [m], or one
  bool a_per_token;
  const Weight* weight;
  const float* w_scale;  // [n], or one
  bool w_per_row;
  const float* bias;     // [n]
  float* y;              // [m, n]
};

enum AttentionScales { PER_TOKEN, PER_TENSOR, STATIC };

struct Attention {
  const float *q, *k, *v;  // [batch, tokens, heads * width]
  const uint8_t* mask;     // bool [batch, tokens]: 1 keeps a token
  float* y;                // [batch, tokens, heads * width]
  int64_t batch, tokens, heads, width;
  float scaling, clip;
  AttentionScales scales;
  bool quantize_pv;
  float top, p_top;        // largest code of q, k and v, and of p: 127, less where activations have fewer than 8 bits
  float q_scale, k_scale, p_scale, v_scale;  // STATIC: given; PER_TENSOR: found
  float* largest_p;  // PER_TENSOR: [batch * heads]
  Memory memory;
  int* failed;       // set to 1 when memory ran out
};

// Rows of x [rows, width] -> codes and, where scales are dynamic, one scale a row.
struct Rows {
  const float* x;
  const float* residual;   // LayerNorm: null, or [residual_rows, width]; row r takes residual row r % residual_rows
  int64_t residual_rows;
  const float *gamma, *beta;  // [width], LayerNorm only
  float epsilon;
  float clip;              // 0 for none
  float fixed_scale;       // used when `scale` is null
  int64_t rows, width;
  float* y;                // [rows, width]; of gelu with codes: null where width <= LONGEST_ROW
  uint8_t* codes;          // [rows, width]; null for gelu(x) or LayerNorm alone
  float* scale;            // [rows], or null
};

// One instruction set.
struct Isa {
  const char* name;
  void (*matmul)(const MatMul&, const Threads&);
  void (*attention)(Attention&, const Threads&);
  void (*quantize)(const Rows&, const Threads&);            // codes of x
  void (*gelu_quantize)(const Rows&, const Threads&);       // gelu(x), or its codes, or both
  void (*add_norm_quantize)(const Rows&, const Threads&);   // y = LayerNorm(x + residual), and its codes
  float (*largest)(const float* x, int64_t count);          // max |x|
  int64_t (*peak)(int64_t rounds);                           // multiply-accumulates done by the peak loop
  void (*stream)(void* to, const void* from, int64_t bytes);
  // What the products take from A. A is padded with it, so that padding adds nothing.
  int32_t narrow_bias;  // 1 to 7 bits
  int32_t wide_bias;    // 8 bits
};

constexpr float SMALLEST_SCALE = 1.2e-32f;
constexpr int32_t ZERO_POINT = 128;

inline float dynamic_scale(float largest, float clip) {
  if (clip > 0 && largest > clip) largest = clip;
  const float scale = largest / 127.0f;
  return scale > SMALLEST_SCALE ? scale : SMALLEST_SCALE;
}

// weight.cpp
int64_t packed_width(int64_t k, int bits);  // bytes of a row in the file
size_t weight_bytes(int bits, int64_t n, int64_t k);  // memory that `repack` needs
void describe(Weight& weight, int bits, int64_t n, int64_t k, void* memory);  // of memory that was repacked before
void repack(Weight& weight, int bits, int64_t n, int64_t k, const uint8_t* packed, void* memory);
void gather(const uint8_t* table, const float* scale, bool scale_per_row, int bits, int64_t k, int64_t row, float* y);

// cpu_features.cpp
const Isa* isa_by_name(const char* name);  // null when unknown
bool isa_runs_here(const Isa* isa);
const Isa* current_isa();
int choose_isa(const char* name);  // 0 done, 1 unknown, 2 this CPU lacks it; null or "" for the best
const char* supported_isas();
const char* wanted_by_environment();  // QEXPORT_ISA, or null
bool same_text(const char* a, const char* b);

}  // namespace qexport
