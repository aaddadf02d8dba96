// exp and erf, within stated errors. To be included after simd_*.inl.

// x[i] = exp(x[i]) for x <= 0 (0 below -87), within 2 ulp: 2**n * p(r), r = x - n ln 2, |r| <= ln 2 / 2.
// p is the Taylor polynomial of degree 7: its remainder is below 2**-31 there.
// Each step is taken for all N before the next: a result waits for a chain of 60 cycles, and a processor looks a few of them ahead.
template <int N>
QX_INLINE void exponential(F32 (&x)[N]) {
  F32 r[N], p[N];
  I32 power[N], vanishes[N];
  for (int i = 0; i < N; ++i) {
    vanishes[i] = x[i] < -87.0f;
    x[i] = at_least(x[i], all(-87.0f));
    const F32 shifted = x[i] * 1.44269504f + MAGIC;
    const F32 n = shifted - MAGIC;
    power[i] = as_int(shifted) << 23;
    r[i] = multiply_add(n, all(2.12194440e-4f), multiply_add(n, all(-0.693359375f), x[i]));  // the inner product is exact
    p[i] = all(1.98412698e-4f);
  }
  constexpr float factors[] = {1.38888889e-3f, 8.33333333e-3f, 4.16666667e-2f, 1.66666667e-1f, 0.5f, 1.0f, 1.0f};
#pragma GCC unroll 7
  for (int j = 0; j < 7; ++j)
#pragma GCC unroll 8
    for (int i = 0; i < N; ++i) p[i] = multiply_add(p[i], r[i], all(factors[j]));
  // n is added to the exponent: no power of x >= -87 is subnormal
  for (int i = 0; i < N; ++i) x[i] = vanishes[i] ? F32{} : as_float(as_int(p[i]) + power[i]);
}

// erf(x) within 5e-7, as x * P(x^2) / Q(x^2) for |x| <= 3.92, where 1 - erf is 3e-8. P and Q, of degree 5, are a
// minimax fit of the relative error (1.9e-8 before rounding) by Lawson's weights; tests/serving/kernels checks it.
QX_INLINE F32 error_function(F32 x) {
  x = at_least(at_most(x, all(3.92f)), all(-3.92f));
  const F32 t = x * x;
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
