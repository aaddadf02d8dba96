// The operators by the two functions that each consists of; ops/*.cpp define them, register.cpp lists them.

#pragma once

#include "op.h"

namespace qexport {

void prepare_matmul(Kernel& kernel, const OrtKernelInfo* info);
OrtStatus* compute_matmul(const Kernel& kernel, OrtKernelContext* context);
void prepare_gather(Kernel& kernel, const OrtKernelInfo* info);
OrtStatus* compute_gather(const Kernel& kernel, OrtKernelContext* context);
void prepare_quantize(Kernel& kernel, const OrtKernelInfo* info);
void prepare_norm(Kernel& kernel, const OrtKernelInfo* info);
OrtStatus* compute_quantize(const Kernel& kernel, OrtKernelContext* context);
OrtStatus* compute_gelu(const Kernel& kernel, OrtKernelContext* context);
OrtStatus* compute_gelu_quantize(const Kernel& kernel, OrtKernelContext* context);
OrtStatus* compute_norm(const Kernel& kernel, OrtKernelContext* context);
OrtStatus* compute_add_norm_quantize(const Kernel& kernel, OrtKernelContext* context);
void prepare_attention(Kernel& kernel, const OrtKernelInfo* info);
OrtStatus* compute_attention(const Kernel& kernel, OrtKernelContext* context);

// Attribute K; false where the kernel is broken for it.
bool read_width(Kernel& kernel, const OrtKernelInfo* info);

// What is wrong with a packed weight or table of `bits` and rows of k codes; null when it is sound.
const char* packed_problem(const Tensor& packed, int bits, int64_t k);

}  // namespace qexport
