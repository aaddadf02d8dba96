// Powers for softmax and erf for GELU. To be included after simd_*.inl.
//
// Results that every processor must find alike are rounded so coarsely that the error of these polynomials cannot show: fused
// multiply-add, which not all have, is used inside them and nowhere else.

constexpr float SCORE_STEPS = 256;      // steps of a score: a power is exp(j / 256), j whole
constexpr float LARGEST_POWER = 1117;   // powers are whole numbers from 0 to it
constexpr float GELU_STEPS_IN = 128, GELU_STEPS_OUT = 256;  // steps of x and of gelu(x)
constexpr float NORM_RANGE = 128, NORM_MEAN_STEPS = 64;     // LayerNorm's: qexport/formats.py
constexpr float SMALLEST_MAGNITUDE = 1e-18f, SMALLEST_VARIANCE = 0.25f, LARGEST_VARIANCE = 16384, ROOT_STEPS = 16;

// t[i] = round(1117 * exp(round(t[i]) / 256)) for t <= 0; 0 for NaN. Exact: 1117 exp(j / 256) is at least 7.7e-6 of itself away from
// a tie for every whole j, and here it is within 3e-7. Below j = -1974 it is 0.
// With n = round(j / (256 ln 2)) and r = j - n * 256 ln 2, abs(r) <= 128 ln 2, it is 2**n * p(r). p is a minimax fit of degree 5
// (Lawson's weights, relative error 9.4e-8 before rounding), with p(0) = 1117.
// Each step is taken for all N before the next: a result waits for a chain of 50 cycles, and a processor looks a few of them ahead.
template <int N>
QX_INLINE void powers(F32 (&t)[N]) {
  F32 r[N], p[N];
  I32 power[N];
  for (int i = 0; i < N; ++i) {
    const F32 j = (at_least(t[i], all(-2048.0f)) + MAGIC) - MAGIC;
    const F32 shifted = multiply_add(j, all(5.63552743e-3f), all(MAGIC));
    const F32 n = shifted - MAGIC;
    power[i] = as_int(shifted) << 23;
    r[i] = multiply_add(n, all(-177.445679f), j);
    p[i] = all(8.42183007e-12f);
  }
  constexpr float factors[] = {1.08969509e-8f, 1.10970541e-5f, 8.52188654e-3f, 4.36327982f, LARGEST_POWER};
#pragma GCC unroll 5
  for (int j = 0; j < 5; ++j)
#pragma GCC unroll 8
    for (int i = 0; i < N; ++i) p[i] = multiply_add(p[i], r[i], all(factors[j]));
  // n is added to the exponent: n >= -12, and p is about 1117
  for (int i = 0; i < N; ++i) t[i] = (as_float(as_int(p[i]) + power[i]) + MAGIC) - MAGIC;
}

// erf(x) within 5e-7, as x * P(t) / Q(t), t = x^2 up to 16.4: there the quotient is above 1, and so the result is exactly 1 or -1
// from there on. P and Q, of degree 5, are a minimax fit of the relative error up to x = 3.92 (1.9e-8 before rounding) by Lawson's
// weights; tests/serving/kernels checks it.
QX_INLINE F32 error_function(F32 x) {
  const F32 t = at_most(x * x, all(16.4f));
  F32 p = all(2.05007473e-06f);
  p = multiply_add(p, t, all(0.000284883514f));
  p = multiply_add(p, t, all(0.00376566569f));
  p = multiply_add(p, t, all(0.0527488776f));
  p = multiply_add(p, t, all(0.190407634f));
  p = multiply_add(p, t, all(1.12837911f));
  F32 q = all(3.80916281e-05f);
  q = multiply_add(q, t, all(0.00116254669f));
  q = multiply_add(q, t, all(0.0149693163f));
  q = multiply_add(q, t, all(0.114109598f));
  q = multiply_add(q, t, all(0.502077103f));
  q = multiply_add(q, t, all(1.0f));
  return at_least(at_most(x * p / q, all(1.0f)), all(-1.0f));
}

// y = Y / 256 with Y = round(h (1 + erf(h / (128 sqrt 2)))), h = round(128 x). Every step but erf is one float32 operation; for every
// whole h the number that is rounded to Y is away from a tie by more than 6 times what the error of erf moves it, so Y is exact.
QX_INLINE F32 gelu_of(F32 x) {
  const F32 h = rounded(x * GELU_STEPS_IN);
  return rounded(h * (error_function(h * 5.52427173e-3f) + 1.0f)) * (1.0f / GELU_STEPS_OUT);
}
