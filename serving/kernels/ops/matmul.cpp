// {Binary, Ternary, Int3 .. Int8}MatMul(A, a_scale, a_zero_point, B, b_scale, bias) -> Y, attribute K.
//
// A uint8 [..., K], a_scale float32 scalar, [1] or [..., 1], a_zero_point uint8 scalar, B uint8 [N, packed_width(K)] constant,
// b_scale float32 [N], [1] or scalar, bias float32 [N]; Y float32 [..., N]. The arithmetic is that of MatMul in core.h.
// Any value of a scale or of the bias is allowed; float32 arithmetic does with it what it does (0, infinite, NaN).

#include "ops.h"

namespace qexport {

void prepare_matmul(Kernel& kernel, const OrtKernelInfo* info) {
  const int bits = kernel.op->variant;
  Tensor packed;
  if (!read_width(kernel, info)) return;
  if (!read_constant(kernel, info, 3, "input B, the packed weight, must be a constant of the model", packed)) return;
  kernel.broken = packed_problem(packed, bits, kernel.k);
  if (kernel.broken) return;
  kernel.memory = take_memory(weight_bytes(bits, packed.dims[0], kernel.k));
  if (kernel.memory == nullptr) {
    kernel.broken = "no memory left for a packed weight";
    return;
  }
  repack(kernel.weight, bits, packed.dims[0], kernel.k, packed.bytes(), kernel.memory);
}

OrtStatus* compute_matmul(const Kernel& kernel, OrtKernelContext* context) {
  Tensor a, a_scale, zero_point, b_scale, bias;
  QX_TRY(input(context, *kernel.op, 0, a));
  QX_TRY(input(context, *kernel.op, 1, a_scale));
  QX_TRY(input(context, *kernel.op, 2, zero_point));
  QX_TRY(input(context, *kernel.op, 4, b_scale));
  QX_TRY(input(context, *kernel.op, 5, bias));
  const Weight& weight = kernel.weight;
  if (a.rank < 1 || a.last() != weight.k)
    return fail("the last dimension of A must be K, but it is ", a.rank ? a.last() : 0, "");
  const int64_t m = a.count / weight.k;
  if (a_scale.count != 1 && (a_scale.count != m || a_scale.last() != 1))
    return fail("a_scale must be a scalar or have one value for each token, got ", a_scale.count, " values");
  if (zero_point.count != 1) return fail("a_zero_point must be a scalar, got ", zero_point.count, " values");
  if (b_scale.rank > 1 || (b_scale.count != 1 && b_scale.count != weight.n))
    return fail("b_scale must have one value, or one for each row of B, got ", b_scale.count, " values");
  if (bias.rank != 1 || bias.count != weight.n)
    return fail("bias must have one value for each row of B, got ", bias.count, " values");

  int64_t dims[MAX_RANK];
  for (int i = 0; i < a.rank; ++i) dims[i] = a.dims[i];
  dims[a.rank - 1] = weight.n;
  void* y = nullptr;
  QX_TRY(output(context, 0, dims, a.rank, &y));
  if (m == 0) return nullptr;

  uint8_t* padded = nullptr;
  if (weight.padded_k != weight.k) {
    padded = static_cast<uint8_t*>(take_memory(static_cast<size_t>(m * weight.padded_k)));
    if (padded == nullptr) return fail("no memory left for a padded copy of A");
    const int bias_value = weight.bits == 8 ? kernel.isa->wide_bias : kernel.isa->narrow_bias;
    for (int64_t row = 0; row < m; ++row) {
      const uint8_t* from = a.bytes() + row * weight.k;
      uint8_t* to = padded + row * weight.padded_k;
      for (int64_t i = 0; i < weight.k; ++i) to[i] = from[i];
      for (int64_t i = weight.k; i < weight.padded_k; ++i) to[i] = static_cast<uint8_t>(bias_value);
    }
  }
  MatMul call;
  call.a = padded ? padded : a.bytes();
  call.m = m;
  call.lda = weight.padded_k;
  call.zero_point = zero_point.bytes()[0];
  call.a_scale = a_scale.floats();
  call.a_per_token = a_scale.count != 1;
  call.weight = &weight;
  call.w_scale = b_scale.floats();
  call.w_per_row = b_scale.count != 1;
  call.bias = bias.floats();
  call.y = static_cast<float*>(y);
  kernel.isa->matmul(call, threads_of(context));
  if (padded) give_memory(padded);
  return nullptr;
}

}  // namespace qexport
