// The checks that every packed tensor of a file goes through before a byte of it is used.

#include "ops.h"

namespace qexport {

bool read_width(Kernel& kernel, const OrtKernelInfo* info) {
  if (!read_attribute(kernel, info, "K", &kernel.k, "attribute K is missing, or no integer")) return false;
  if (kernel.k >= 1 && kernel.k <= MAX_K) return true;
  kernel.broken = "attribute K must be from 1 to 65536";
  return false;
}

const char* packed_problem(const Tensor& packed, int bits, int64_t k) {
  if (packed.type != ORT_UINT8) return "a packed weight must be uint8";
  if (packed.rank != 2) return "a packed weight must have two dimensions";
  if (packed.dims[0] < 1) return "a packed weight must have at least one row";
  if (packed.dims[1] != packed_width(k, bits)) return "the rows of a packed weight do not have the length that K asks for";
  const uint8_t* bytes = packed.bytes();
  if (bits == 2) {
    for (int64_t i = 0; i < packed.count; ++i)
      if (bytes[i] > 242) return "a byte of a ternary weight is above 242; the file is damaged";
  }
  if (bits == 8) {
    for (int64_t i = 0; i < packed.count; ++i)
      if (bytes[i] == 0) return "a byte of an 8-bit weight is 0, a code outside -127..127; the file is damaged";
  }
  return nullptr;
}

}  // namespace qexport
