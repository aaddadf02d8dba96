// Runs every operator through the hooks on every instruction set of the processor, over many shapes, and compares, bit for bit: integer
// products with a plain loop, everything else with the scalar instruction set. What is summed in
// float64, in LayerNorm and in the QK forms of attention, may round a value to its neighbour. For emulators and sanitizers: every array has its exact size.
//
//   kernel-driver SEED ROUNDS
//
// Prints one line for each instruction set; exits with 1 at the first difference.

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

extern "C" {
const char* qexport_supported_isas(void);
int qexport_set_isa(const char*);
const char* qexport_isa(void);
int64_t qexport_matmul_room(int, int64_t, int64_t, int64_t);
int qexport_matmul_prepare(int, int64_t, int64_t, const uint8_t*, void*);
int qexport_matmul(
    const char*, int, int64_t, int64_t, int64_t, const uint8_t*, int, const float*, int, const float*, int, const float*,
    void*, float*);
int qexport_quantize_per_token(const char*, const float*, int64_t, int64_t, float, uint8_t*, float*);
int qexport_gelu_quantize_per_token(const char*, const float*, int64_t, int64_t, float, float*, uint8_t*, float*);
int qexport_add_layer_norm_quantize_per_token(
    const char*, const float*, const float*, const float*, const float*, int64_t, int64_t, float, float, float*, uint8_t*,
    float*);
int qexport_attention(
    const char*, const float*, const float*, const float*, const uint8_t*, int64_t, int64_t, int64_t, int64_t, float, float,
    int, int, const float*, void*, int64_t, float*);
long long qexport_peak(const char*, long long);
void qexport_stream(void*, const void*, long long);
}

static uint64_t state;
static uint32_t next() {
  state = state * 6364136223846793005u + 1442695040888963407u;
  return static_cast<uint32_t>(state >> 33);
}
static int64_t between(int64_t low, int64_t high) { return low + next() % (high - low + 1); }
static float normal() {
  float sum = 0;
  for (int i = 0; i < 6; ++i) sum += static_cast<float>(next() % 65536) / 65536 - 0.5f;
  return sum * 1.4142f;
}

static void require(bool held, const char* isa, const char* what) {
  if (held) return;
  printf("%s: %s\n", isa, what);
  exit(1);
}

// Memory of exactly `count` elements.
template <class T>
struct Array {
  int64_t count;
  T* at;
  explicit Array(int64_t n) : count(n), at(static_cast<T*>(malloc(static_cast<size_t>(n) * sizeof(T)))) {}
  ~Array() { free(at); }
  Array(const Array&) = delete;
  void operator=(const Array&) = delete;
  T& operator[](int64_t i) { return at[i]; }
};
typedef Array<float> Floats;
typedef Array<uint8_t> Bytes;

static void fill(Floats& x, float size) {
  for (int64_t i = 0; i < x.count; ++i) x[i] = normal() * size;
}
static float one_of(const float* from, int count) { return from[next() % static_cast<uint32_t>(count)]; }
static void spoil(Floats& x) {
  static const float special[] = {0.0f, -0.0f, 1e-40f, INFINITY, -INFINITY, NAN, 3e38f};
  for (int64_t i = 0; i < x.count; ++i)
    if (next() % 5 == 0) x[i] = one_of(special, 7);
}

static int planes(int bits, int* sizes) {
  int count = 0;
  for (int size = 4; size >= 1; size >>= 1)
    if (bits & size) sizes[count++] = size;
  return count;
}
static int64_t width_of(int bits, int64_t k) {
  if (bits == 8) return k;
  if (bits == 2) return (k + 4) / 5;
  int sizes[3];
  int64_t bytes = 0;
  for (int i = 0, n = planes(bits, sizes); i < n; ++i) bytes += (k + 8 / sizes[i] - 1) / (8 / sizes[i]);
  return bytes;
}
// The storage formats of graphs/packing.py.
static void pack(const int8_t* codes, int64_t k, int bits, uint8_t* bytes) {
  memset(bytes, 0, static_cast<size_t>(width_of(bits, k)));
  static const int powers[] = {1, 3, 9, 27, 81};
  if (bits == 8) {
    for (int64_t i = 0; i < k; ++i) bytes[i] = static_cast<uint8_t>(codes[i] + 128);
  } else if (bits == 2) {
    for (int64_t i = 0; i < k; ++i) bytes[i / 5] = static_cast<uint8_t>(bytes[i / 5] + (codes[i] + 1) * powers[i % 5]);
  } else if (bits == 1) {
    for (int64_t i = 0; i < k; ++i) bytes[i / 8] = static_cast<uint8_t>(bytes[i / 8] | (codes[i] > 0) << (i % 8));
  } else {
    int sizes[3], shift = 0;
    for (int p = 0, n = planes(bits, sizes); p < n; ++p) {
      const int digits = 8 / sizes[p];
      for (int64_t i = 0; i < k; ++i) {
        const int digit = (codes[i] + (1 << (bits - 1))) >> shift & ((1 << sizes[p]) - 1);
        bytes[i / digits] = static_cast<uint8_t>(bytes[i / digits] | digit << (sizes[p] * (i % digits)));
      }
      bytes += (k + digits - 1) / digits;
      shift += sizes[p];
    }
  }
}

struct Isas {
  char names[8][16];
  int count;
};

// Y is -1 where it must be left alone; a NaN equals a NaN.
static bool equal(const float* a, const float* b, int64_t count) {
  for (int64_t i = 0; i < count; ++i)
    if (!(a[i] == b[i] || (a[i] != a[i] && b[i] != b[i]))) return false;
  return true;
}

static void products(const Isas& isas, int bits) {
  static const int64_t ms[] = {1, 5, 6, 7, 8, 17, 95, 97}, ks[] = {1, 64, 65, 320, 1023, 1024, 1025, 1500};
  const int64_t m = next() % 2 ? between(1, 40) : ms[next() % 8], n = between(1, 70);
  const int64_t k = next() % 2 ? between(1, 400) : ks[next() % 8];
  const int top = bits <= 2 ? 1 : (1 << (bits - 1)) - 1;
  const uint32_t kind = next() % 4;
  Array<int8_t> codes(n * k);
  for (int64_t i = 0; i < codes.count; ++i) {
    const bool sign = next() % 2;
    codes[i] = static_cast<int8_t>(
        kind == 0 ? top : kind == 1 ? -top : bits == 1 ? (sign ? 1 : -1) : between(-top, top));
  }
  Bytes packed(n * width_of(bits, k)), a(m * k);
  for (int64_t row = 0; row < n; ++row) pack(codes.at + row * k, k, bits, packed.at + row * width_of(bits, k));
  for (int64_t i = 0; i < a.count; ++i) a[i] = static_cast<uint8_t>(kind == 0 || kind == 1 ? 255 : next());
  static const int zeros[] = {0, 1, 128, 255};
  const int zero = zeros[next() % 4];
  Floats a_scale(next() % 2 ? m : 1), w_scale(next() % 2 ? n : 1), bias(n), y(m * n), expected(m * n);
  fill(a_scale, 1);
  fill(w_scale, 1);
  fill(bias, 5);
  if (next() % 3 == 0) {
    spoil(a_scale);
    spoil(w_scale);
    spoil(bias);
  }
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t j = 0; j < n; ++j) {
      int32_t sum = 0;
      for (int64_t l = 0; l < k; ++l) sum += (a[i * k + l] - zero) * codes[j * k + l];
      volatile float product = static_cast<float>(sum) * w_scale[w_scale.count > 1 ? j : 0];
      volatile float scaled = product * a_scale[a_scale.count > 1 ? i : 0];
      expected[i * n + j] = scaled + bias[j];
    }
  }
  for (int s = 0; s < isas.count; ++s) {
    Bytes room(qexport_matmul_room(bits, m, n, k));
    require(qexport_matmul_prepare(bits, n, k, packed.at, room.at) == 0, isas.names[s], "prepare");
    const int problem = qexport_matmul(
        isas.names[s], bits, m, n, k, a.at, zero, a_scale.at, a_scale.count > 1, w_scale.at, w_scale.count > 1, bias.at,
        room.at, y.at);
    require(problem == 0, isas.names[s], "matmul refused");
    if (!equal(y.at, expected.at, y.count)) {
      printf("bits %d m %lld n %lld k %lld zero %d\n", bits, (long long)m, (long long)n, (long long)k, zero);
      require(false, isas.names[s], "product differs");
    }
  }
}

// Values that differ, each by a unit in the last place at most; -1 where one differs by more.
static int64_t differing(const float* a, const float* b, int64_t count) {
  int64_t found = 0;
  for (int64_t i = 0; i < count; ++i) {
    if (equal(a + i, b + i, 1)) continue;
    if (!(nextafterf(a[i], b[i]) == b[i])) return -1;
    ++found;
  }
  return found;
}

static void rows(const Isas& isas) {
  static const int64_t widths[] = {1, 15, 16, 17, 64, 768};
  const int64_t count = between(1, 20), width = next() % 2 ? between(1, 200) : widths[next() % 6];
  const float clip = next() % 2 ? 0.0f : 1.5f;
  Floats x(count * width), residual(count * width), gamma(width), beta(width);
  fill(x, 2);
  fill(residual, 1);
  fill(gamma, 1);
  fill(beta, 1);
  Floats y(count * width), y0(count * width), scale(count), scale0(count);
  Bytes codes(count * width), codes0(count * width);
  const char* plain = "scalar";
  for (int spoiled = 0; spoiled < 2; ++spoiled) {
    if (spoiled) spoil(x);
    qexport_quantize_per_token(plain, x.at, count, width, clip, codes0.at, scale0.at);
    for (int s = 0; s < isas.count; ++s) {
      qexport_quantize_per_token(isas.names[s], x.at, count, width, clip, codes.at, scale.at);
      require(!memcmp(codes.at, codes0.at, static_cast<size_t>(codes.count)), isas.names[s], "codes differ");
      require(equal(scale.at, scale0.at, count), isas.names[s], "scales differ");
    }
    qexport_gelu_quantize_per_token(plain, x.at, count, width, clip, y0.at, codes0.at, scale0.at);
    for (int s = 0; s < isas.count; ++s) {
      qexport_gelu_quantize_per_token(isas.names[s], x.at, count, width, clip, y.at, codes.at, scale.at);
      require(equal(y.at, y0.at, y.count) && equal(scale.at, scale0.at, count), isas.names[s], "gelu differs");
      require(!memcmp(codes.at, codes0.at, static_cast<size_t>(codes.count)), isas.names[s], "codes of gelu differ");
    }
    qexport_add_layer_norm_quantize_per_token(
        plain, x.at, residual.at, gamma.at, beta.at, count, width, 1e-5f, clip, y0.at, codes0.at, scale0.at);
    for (int s = 0; s < isas.count; ++s) {
      qexport_add_layer_norm_quantize_per_token(
          isas.names[s], x.at, residual.at, gamma.at, beta.at, count, width, 1e-5f, clip, y.at, codes.at, scale.at);
      const int64_t different = differing(y.at, y0.at, y.count);
      require(different >= 0 && different <= 1 + y.count / 10000, isas.names[s], "LayerNorm differs");
      if (different > 0) continue;  // codes follow from y
      require(!memcmp(codes.at, codes0.at, static_cast<size_t>(codes.count)), isas.names[s], "codes of LayerNorm differ");
      require(equal(scale.at, scale0.at, count), isas.names[s], "scales of LayerNorm differ");
    }
  }
}

static void attention(const Isas& isas) {
  static const int64_t lengths[] = {1, 16, 24, 25, 64, 65}, widths[] = {1, 3, 20, 32, 64, 80};
  const int64_t batch = between(1, 2), tokens = next() % 2 ? between(1, 70) : lengths[next() % 6];
  const int64_t heads = between(1, 3), width = widths[next() % 6];
  Floats q(batch * tokens * heads * width), k(q.count), v(q.count), y(q.count), y0(q.count), fixed(4);
  Bytes mask(batch * tokens);
  fill(q, 1);
  fill(k, 1);
  fill(v, 1);
  for (int64_t i = 0; i < mask.count; ++i) mask[i] = next() % 4 > 0;
  fixed[0] = 0.02f;
  fixed[1] = 0.03f;
  fixed[2] = 1 / 127.0f;
  fixed[3] = 0.025f;
  for (int form = 0; form < 12; ++form) {
    const int scales = form % 3, pv = form / 3 % 2;
    if (form == 6) {
      spoil(q);
      spoil(k);
      spoil(v);
      spoil(fixed);
    }
    for (int s = isas.count - 1; s >= 0; --s) {  // scalar is the last
      Floats& to = s == isas.count - 1 ? y0 : y;
      Bytes room(64 * (tokens + 64) * (width + 64) + (1 << 20));
      const int problem = qexport_attention(
          isas.names[s], q.at, k.at, v.at, mask.at, batch, tokens, heads, width, 0.2f, form % 2 ? 0.0f : 2.0f, scales, pv,
          fixed.at, room.at, room.count, to.at);
      require(problem == 0, isas.names[s], "attention refused");
      const int64_t different = differing(to.at, y0.at, to.count);
      require(different >= 0 && different <= (pv ? 0 : 1), isas.names[s], "attention differs");
    }
  }
}

int main(int argc, char** argv) {
  if (argc != 3) {
    fprintf(stderr, "usage: kernel-driver SEED ROUNDS\n");
    return 2;
  }
  state = strtoull(argv[1], nullptr, 10) * 2 + 1;
  const long rounds = strtol(argv[2], nullptr, 10);
  Isas isas = {};
  for (const char* c = qexport_supported_isas(); *c; ++isas.count) {
    int length = 0;
    for (; *c && *c != ' '; ++c) isas.names[isas.count][length++] = *c;
    if (*c) ++c;
  }
  for (long round = 0; round < rounds; ++round) {
    for (int bits = 1; bits <= 8; ++bits) products(isas, bits);
    rows(isas);
    attention(isas);
  }
  for (int s = 0; s < isas.count; ++s) {
    require(qexport_set_isa(isas.names[s]) == 0 && !strcmp(qexport_isa(), isas.names[s]), isas.names[s], "not set");
    require(qexport_peak(isas.names[s], 10) > 0, isas.names[s], "no peak");
    Floats from(37), to(37);
    fill(from, 1);
    qexport_stream(to.at, from.at, 37 * 4);
    require(!memcmp(from.at, to.at, 37 * 4), isas.names[s], "stream");
    printf("%s: %ld rounds\n", isas.names[s], rounds);
  }
  require(qexport_set_isa("avx3") == 1, "avx3", "is known");
  require(qexport_peak("avx3", 10) == -1, "avx3", "has a peak");
  return 0;
}
