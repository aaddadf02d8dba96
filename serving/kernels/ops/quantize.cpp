// QuantizePerToken(x) -> (q, scale)               one scale for each row of x [..., K], attribute clip
// QuantizePerTensor(x) -> (q, scale)              one scale, attribute clip
// Gelu(x) -> y                                    round(h (1 + erf(h / (128 sqrt 2)))) / 256, h = round(128 x)
// GeluQuantizePerToken(x) -> (q, scale)           codes of the same, attribute clip
// GeluQuantizeLinear(x, scale) -> q               the same with a given scale
// LayerNorm(x, gamma, beta) -> y                  attribute epsilon
// AddLayerNormQuantizePerToken(x, residual, gamma, beta) -> (y, q, scale)    attributes epsilon, clip
// AddLayerNormQuantizeLinear(x, residual, gamma, beta, scale) -> (y, q)      attribute epsilon
//
// The arithmetic of gelu and LayerNorm is that of isa/math.inl and isa/rows.inl. q uint8 with zero point 128. All outputs equal those
// of the function body for finite x. Where a value that is quantised is NaN, it gets code 128 (zero) and does not count for the scale;
// an infinite one makes the scale infinite and all codes of its row 128.

#include "ops.h"

namespace qexport {

void prepare_quantize(Kernel& kernel, const OrtKernelInfo* info) {
  read_attribute(kernel, info, "clip", &kernel.clip, "attribute clip is missing, or no float");
}

void prepare_norm(Kernel& kernel, const OrtKernelInfo* info) {
  if (!read_attribute(kernel, info, "epsilon", &kernel.epsilon, "attribute epsilon is missing, or no float")) return;
  if (kernel.op->variant == PER_TOKEN) prepare_quantize(kernel, info);
}

static int64_t width_of(const Tensor& x) { return x.last(); }

// Output `index` of the shape of x, and where scales are dynamic the next one, [..., 1].
static OrtStatus* code_outputs(const Kernel& kernel, OrtKernelContext* context, const Tensor& x, size_t index, Rows& call) {
  void* codes = nullptr;
  QX_TRY(output(context, index, x.dims, x.rank, &codes));
  call.codes = static_cast<uint8_t*>(codes);
  if (kernel.op->variant != PER_TOKEN) return nullptr;
  int64_t dims[MAX_RANK];
  for (int i = 0; i < x.rank; ++i) dims[i] = x.dims[i];
  dims[x.rank - 1] = 1;
  void* scale = nullptr;
  QX_TRY(output(context, index + 1, dims, x.rank, &scale));
  call.scale = static_cast<float*>(scale);
  int64_t rows = 1;
  for (int i = 0; i < x.rank; ++i) rows *= dims[i];
  if (call.width == 0)  // no row has a value
    for (int64_t row = 0; row < rows; ++row) call.scale[row] = dynamic_scale(0, 0);
  return nullptr;
}

static OrtStatus* fixed_scale(OrtKernelContext* context, const Kernel& kernel, size_t index, Rows& call) {
  Tensor scale;
  QX_TRY(input(context, *kernel.op, index, scale));
  if (scale.count != 1) return fail("scale must be a scalar, got ", scale.count, " values");
  call.fixed_scale = scale.floats()[0];
  return nullptr;
}

static Rows rows_of(const Kernel& kernel, const Tensor& x) {
  Rows call = {};
  call.x = x.floats();
  call.width = width_of(x);
  call.rows = call.width ? x.count / call.width : 0;
  call.clip = kernel.clip;
  call.epsilon = kernel.epsilon;
  return call;
}

OrtStatus* compute_quantize(const Kernel& kernel, OrtKernelContext* context) {
  Tensor x;
  QX_TRY(input(context, *kernel.op, 0, x));
  Rows call = rows_of(kernel, x);
  if (kernel.op->variant == PER_TOKEN && x.rank == 0) return fail("x must have at least one dimension");
  QX_TRY(code_outputs(kernel, context, x, 0, call));
  if (kernel.op->variant == PER_TENSOR) {
    void* scale = nullptr;
    QX_TRY(output(context, 1, nullptr, 0, &scale));
    call.fixed_scale = dynamic_scale(kernel.isa->largest(call.x, x.count), kernel.clip);
    *static_cast<float*>(scale) = call.fixed_scale;
  }
  if (call.rows == 0) return nullptr;
  kernel.isa->quantize(call, threads_of(context));
  return nullptr;
}

OrtStatus* compute_gelu_quantize(const Kernel& kernel, OrtKernelContext* context) {
  Tensor x;
  QX_TRY(input(context, *kernel.op, 0, x));
  if (x.rank == 0) return fail("x must have at least one dimension");
  Rows call = rows_of(kernel, x);
  if (kernel.op->variant == STATIC) QX_TRY(fixed_scale(context, kernel, 1, call));
  QX_TRY(code_outputs(kernel, context, x, 0, call));
  if (call.rows == 0) return nullptr;
  if (call.width > LONGEST_ROW) {
    call.y = static_cast<float*>(take_memory(static_cast<size_t>(x.count) * sizeof(float)));
    if (call.y == nullptr) return fail("no memory left for the result of GELU");
  }
  kernel.isa->gelu_quantize(call, threads_of(context));
  if (call.y) give_memory(call.y);
  return nullptr;
}

OrtStatus* compute_gelu(const Kernel& kernel, OrtKernelContext* context) {
  Tensor x;
  QX_TRY(input(context, *kernel.op, 0, x));
  Rows call = rows_of(kernel, x);
  void* y = nullptr;
  QX_TRY(output(context, 0, x.dims, x.rank, &y));
  call.y = static_cast<float*>(y);
  if (call.rows > 0) kernel.isa->gelu_quantize(call, threads_of(context));
  return nullptr;
}

static OrtStatus* norm_weights(OrtKernelContext* context, const Kernel& kernel, size_t index, Rows& call) {
  Tensor gamma, beta;
  QX_TRY(input(context, *kernel.op, index, gamma));
  QX_TRY(input(context, *kernel.op, index + 1, beta));
  if (gamma.count != call.width || beta.count != call.width)
    return fail("gamma and beta must have one value for each channel, got ", gamma.count, "");
  call.gamma = gamma.floats();
  call.beta = beta.floats();
  return nullptr;
}

OrtStatus* compute_norm(const Kernel& kernel, OrtKernelContext* context) {
  Tensor x;
  QX_TRY(input(context, *kernel.op, 0, x));
  if (x.rank == 0) return fail("x must have at least one dimension");
  Rows call = rows_of(kernel, x);
  QX_TRY(norm_weights(context, kernel, 1, call));
  void* y = nullptr;
  QX_TRY(output(context, 0, x.dims, x.rank, &y));
  call.y = static_cast<float*>(y);
  if (call.rows > 0) kernel.isa->add_norm_quantize(call, threads_of(context));
  return nullptr;
}

OrtStatus* compute_add_norm_quantize(const Kernel& kernel, OrtKernelContext* context) {
  Tensor x, residual;
  QX_TRY(input(context, *kernel.op, 0, x));
  QX_TRY(input(context, *kernel.op, 1, residual));
  if (x.rank == 0) return fail("x must have at least one dimension");
  Rows call = rows_of(kernel, x);
  QX_TRY(norm_weights(context, kernel, 2, call));
  // The residual has the shape of x but for leading dimensions of 1, so row r of x takes its row r modulo their number.
  int64_t same = 1;
  int leading = x.rank - residual.rank;
  if (leading < 0 || residual.rank == 0) return fail("residual has more dimensions than x");
  int i = residual.rank - 1;
  for (; i >= 0 && residual.dims[i] == x.dims[i + leading]; --i) same *= residual.dims[i];
  for (; i >= 0 && residual.dims[i] == 1; --i) {}
  if (i >= 0 || residual.last() != call.width) return fail("residual must have the shape of x, or 1 in its first dimensions");
  call.residual = residual.floats();
  call.residual_rows = call.width ? same / call.width : 0;
  if (kernel.op->variant == STATIC) QX_TRY(fixed_scale(context, kernel, 4, call));
  void* y = nullptr;
  QX_TRY(output(context, 0, x.dims, x.rank, &y));
  call.y = static_cast<float*>(y);
  QX_TRY(code_outputs(kernel, context, x, 1, call));
  if (call.rows == 0) return nullptr;
  kernel.isa->add_norm_quantize(call, threads_of(context));
  return nullptr;
}

}  // namespace qexport
