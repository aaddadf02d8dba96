// Powers and erf of serving/kernels/isa/math.inl on arrays, as plain C++ and with fused multiply-add: for accuracy tests.

#include <stddef.h>
#include <stdint.h>
#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include "isa.h"
using qexport::STEP_BYTES;

namespace plain {
constexpr int LANES = 4;
#include "vector.inl"
#include "simd_plain.inl"
#include "math.inl"
}  // namespace plain

namespace fused {
#if defined(__AVX2__)
constexpr int LANES = 8;
#include "vector.inl"
#include "simd_256.inl"
#elif defined(__aarch64__)
constexpr int LANES = 4;
#include "vector.inl"
#include "simd_neon.inl"
#else
using namespace plain;
#endif
#if defined(__AVX2__) || defined(__aarch64__)
#include "math.inl"
#endif
}  // namespace fused

#define FUNCTIONS(space)                                                                                     \
  extern "C" __attribute__((visibility("default"))) void space##_powers(const float* x, float* y, int64_t count) { \
    for (int64_t i = 0; i < count; i += space::LANES) {                                                       \
      space::F32 one[] = {space::load(x + i, count - i)};                                                     \
      space::powers(one);                                                                                     \
      space::store(y + i, one[0], count - i);                                                                 \
    }                                                                                                         \
  }                                                                                                           \
  extern "C" __attribute__((visibility("default"))) void space##_erf(const float* x, float* y, int64_t count) { \
    for (int64_t i = 0; i < count; i += space::LANES)                                                         \
      space::store(y + i, space::error_function(space::load(x + i, count - i)), count - i);                   \
  }

FUNCTIONS(plain)
FUNCTIONS(fused)
