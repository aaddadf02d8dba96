// What every operator needs: a description for ONNX Runtime, its inputs checked, its outputs, an error with a reason.

#pragma once

#include "../core.h"
#include "../ort_abi.h"

namespace qexport {

extern Ort ort;  // set once, by RegisterCustomOps

constexpr int MAX_INPUTS = 9, MAX_RANK = 8;

struct Kernel;

// Added to the kind of scales in the variant of an attention.
constexpr int FLOAT_PV = 4;  // probabilities and values stay float
constexpr int BOUNDED = 8;   // codes below 8 bits

// The description of an operator. ONNX Runtime sees its base.
struct Op : OrtCustomOp {
  const char* name;
  int inputs;
  int input_types[MAX_INPUTS];
  int outputs;
  int output_types[3];
  int variant;  // bits of the weight, or the kind of scales
  void (*prepare)(Kernel&, const OrtKernelInfo*);  // null where nothing is to be prepared; a problem goes to Kernel::broken
  OrtStatus* (*compute)(const Kernel&, OrtKernelContext*);
};

// One node of one session. Everything is written before the first run and only read afterwards.
struct Kernel {
  const Op* op;
  const Isa* isa;
  OrtStatus* (*compute)(const Kernel&, OrtKernelContext*);
  int64_t k = 0, num_heads = 0, top = 127, p_top = 127;
  float clip = 0, scaling = 0, epsilon = 0;
  Weight weight;
  void* memory = nullptr;       // of the weight
  const char* broken = nullptr;  // why every run has to fail; the run's error names the node, one at creation would not
};

struct Tensor {
  const void* data = nullptr;
  int type = ORT_ANY;
  int64_t dims[MAX_RANK] = {};
  int rank = 0;
  int64_t count = 0;

  const float* floats() const { return static_cast<const float*>(data); }
  const uint8_t* bytes() const { return static_cast<const uint8_t*>(data); }
  int64_t last() const { return rank ? dims[rank - 1] : 1; }
};

#define QX_TRY(call)                          \
  do {                                        \
    if (OrtStatus* status_ = (call)) return status_; \
  } while (0)

// An error made of pieces of text and numbers; a null text ends it.
OrtStatus* fail(const char* what, int64_t got, const char* then);
OrtStatus* fail(const char* what);

// Attributes that a kernel cannot do without. Where one is missing or of another type the kernel is broken, and that is false.
bool read_attribute(Kernel& kernel, const OrtKernelInfo* info, const char* name, int64_t* value, const char* problem);
bool read_attribute(Kernel& kernel, const OrtKernelInfo* info, const char* name, float* value, const char* problem);

// Input `index` where it is a constant of the model, else the kernel is broken.
bool read_constant(Kernel& kernel, const OrtKernelInfo* info, size_t index, const char* problem, Tensor& tensor);

OrtStatus* read_value(const OrtValue* value, Tensor& tensor);
OrtStatus* input(OrtKernelContext* context, const Op& op, size_t index, Tensor& tensor);
OrtStatus* output(OrtKernelContext* context, size_t index, const int64_t* dims, int rank, void** data);

// Memory from ONNX Runtime's allocator; null when there is none left.
void* take_memory(size_t bytes);
void give_memory(void* memory);
Threads threads_of(OrtKernelContext* context);
Memory memory_of_call();

}  // namespace qexport
