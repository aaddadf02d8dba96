// QuantizedAttention[PerTensor|Static|StaticBounded][QK](q, k, v, mask[, q_scale, k_scale, p_scale, v_scale]) -> Y
//
// q, k, v float32 [B, S, num_heads * D], mask bool [B, 1, 1, S] (true keeps a token), Y float32 [B, S, num_heads * D]; attributes
// num_heads, scaling and, where scales are dynamic, clip; where codes are bounded, top (of q, k, v) and p_top. The arithmetic is that of isa/attention.inl.

#include "ops.h"

namespace qexport {

void prepare_attention(Kernel& kernel, const OrtKernelInfo* info) {
  if (!read_attribute(kernel, info, "num_heads", &kernel.num_heads, "attribute num_heads is missing, or no integer")) return;
  if (!read_attribute(kernel, info, "scaling", &kernel.scaling, "attribute scaling is missing, or no float")) return;
  if (kernel.num_heads < 1 || kernel.num_heads > 65536) kernel.broken = "attribute num_heads must be from 1 to 65536";
  if (kernel.op->variant & BOUNDED) {
    if (!read_attribute(kernel, info, "top", &kernel.top, "attribute top is missing, or no integer")) return;
    if (!read_attribute(kernel, info, "p_top", &kernel.p_top, "attribute p_top is missing, or no integer")) return;
    if (kernel.top < 1 || kernel.top > 127 || kernel.p_top < 1 || kernel.p_top > 127)
      kernel.broken = "attributes top and p_top must be from 1 to 127";
  }
  if ((kernel.op->variant & 3) == STATIC) return;
  read_attribute(kernel, info, "clip", &kernel.clip, "attribute clip is missing, or no float");
}

OrtStatus* compute_attention(const Kernel& kernel, OrtKernelContext* context) {
  Tensor q, k, v, mask;
  QX_TRY(input(context, *kernel.op, 0, q));
  QX_TRY(input(context, *kernel.op, 1, k));
  QX_TRY(input(context, *kernel.op, 2, v));
  QX_TRY(input(context, *kernel.op, 3, mask));
  if (q.rank != 3) return fail("q must be [batch, tokens, channels], got ", q.rank, " dimensions");
  const Tensor* const others[] = {&k, &v};
  for (const Tensor* other : others)
    for (int i = 0; i < 3; ++i)
      if (other->rank != 3 || other->dims[i] != q.dims[i]) return fail("q, k and v must have the same shape");
  if (q.dims[2] % kernel.num_heads) return fail("num_heads does not divide the channels, ", q.dims[2], "");
  if (mask.count != q.dims[0] * q.dims[1] || mask.last() != q.dims[1])
    return fail("mask must have one value for each token, got ", mask.count, " values");

  Attention call = {};
  call.q = q.floats();
  call.k = k.floats();
  call.v = v.floats();
  call.mask = mask.bytes();
  call.batch = q.dims[0];
  call.tokens = q.dims[1];
  call.heads = kernel.num_heads;
  call.width = q.dims[2] / kernel.num_heads;
  call.scaling = kernel.scaling;
  call.clip = kernel.clip;
  call.scales = static_cast<AttentionScales>(kernel.op->variant & 3);
  call.quantize_pv = !(kernel.op->variant & FLOAT_PV);
  call.top = static_cast<float>(kernel.top);
  call.p_top = static_cast<float>(kernel.p_top);
  if (call.scales == STATIC) {
    float* const scales[] = {&call.q_scale, &call.k_scale, &call.p_scale, &call.v_scale};
    for (int i = 0; i < (call.quantize_pv ? 4 : 2); ++i) {
      Tensor scale;
      QX_TRY(input(context, *kernel.op, static_cast<size_t>(4 + i), scale));
      if (scale.count != 1) return fail("scales must be scalars, got ", scale.count, " values");
      *scales[i] = scale.floats()[0];
    }
  }
  void* y = nullptr;
  QX_TRY(output(context, 0, q.dims, 3, &y));
  call.y = static_cast<float*>(y);
  if (q.count == 0) return nullptr;
  int failed = 0;
  call.failed = &failed;
  call.memory = memory_of_call();
  if (call.scales == PER_TENSOR) {
    call.largest_p = static_cast<float*>(take_memory(static_cast<size_t>(call.batch * call.heads) * sizeof(float)));
    if (call.largest_p == nullptr) return fail("no memory left for attention");
  }
  kernel.isa->attention(call, threads_of(context));
  if (call.largest_p) give_memory(call.largest_p);
  return failed ? fail("no memory left for attention") : nullptr;
}

}  // namespace qexport
