// exp and erf, within stated errors. To be included after simd_*.inl.

// exp(x) for x <= 0 (0 below -87), within 2 ulp: 2**n * p(r), r = x - n ln 2, |r| <= ln 2 / 2.
// p is the Taylor polynomial of degree 7: its remainder is below 2**-31 there.
QX_INLINE F32 exponential(F32 x) {
  const F32 low = all(-87.0f);
  const I32 vanishes = x < low;
  x = at_least(x, low);
  const F32 n = nearest(x * 1.44269504f);
  const F32 r = multiply_add(n, all(2.12194440e-4f), x - n * 0.693359375f);
  F32 p = all(1.98412698e-4f);
  p = multiply_add(p, r, all(1.38888889e-3f));
  p = multiply_add(p, r, all(8.33333333e-3f));
  p = multiply_add(p, r, all(4.16666667e-2f));
  p = multiply_add(p, r, all(1.66666667e-1f));
  p = multiply_add(p, r, all(0.5f));
  p = multiply_add(p, r, all(1.0f));
  p = multiply_add(p, r, all(1.0f));
  const F32 power = as_float((to_int(n) + 127) << 23);
  return vanishes ? F32{} : p * power;
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
