// {Binary, Ternary, Int3 .. Int8}Gather(indices, table, scale) -> Y, attribute K: rows of an embedding table that stays packed.
//
// indices int64 [...], table uint8 [V, packed_width(K)], scale float32 [V], [1] or scalar; Y float32 [..., K] = codes * scale.
// A negative index counts from the end, as in ONNX's Gather.

#include "ops.h"

namespace qexport {

void prepare_gather(Kernel& kernel, const OrtKernelInfo* info) {
  Tensor packed;
  if (!read_width(kernel, info)) return;
  if (!read_constant(kernel, info, 1, "input table, the packed embedding, must be a constant of the model", packed)) return;
  kernel.broken = packed_problem(packed, kernel.op->variant, kernel.k);
}

OrtStatus* compute_gather(const Kernel& kernel, OrtKernelContext* context) {
  Tensor indices, table, scale;
  QX_TRY(input(context, *kernel.op, 0, indices));
  QX_TRY(input(context, *kernel.op, 1, table));
  QX_TRY(input(context, *kernel.op, 2, scale));
  const int64_t rows = table.dims[0];
  if (scale.rank > 1 || (scale.count != 1 && scale.count != rows))
    return fail("scale must have one value, or one for each row of the table, got ", scale.count, " values");
  if (indices.rank == MAX_RANK) return fail("indices may have at most 7 dimensions");
  const int64_t* index = static_cast<const int64_t*>(indices.data);
  for (int64_t i = 0; i < indices.count; ++i)
    if (index[i] < -rows || index[i] >= rows)
      return fail("index ", index[i], " is outside the table; check that the token ids fit the model's vocabulary");

  int64_t dims[MAX_RANK];
  for (int i = 0; i < indices.rank; ++i) dims[i] = indices.dims[i];
  dims[indices.rank] = kernel.k;
  void* y = nullptr;
  QX_TRY(output(context, 0, dims, indices.rank + 1, &y));
  for (int64_t i = 0; i < indices.count; ++i)
    gather(
        table.bytes(), scale.floats(), scale.count != 1, kernel.op->variant, kernel.k,
        index[i] < 0 ? index[i] + rows : index[i], static_cast<float*>(y) + i * kernel.k);
  return nullptr;
}

}  // namespace qexport
