// Reading inputs, writing outputs, errors and memory: the plumbing of every operator.

#include "op.h"

namespace qexport {

Ort ort;

OrtStatus* fail(const char* what) { return ort.CreateStatus(ORT_INVALID_ARGUMENT, what); }

OrtStatus* fail(const char* what, int64_t got, const char* then) {
  char text[320];
  size_t length = 0;
  auto put = [&](const char* piece) {
    while (*piece && length + 1 < sizeof text) text[length++] = *piece++;
  };
  put(what);
  char digits[24];
  int count = 0;
  uint64_t rest = got < 0 ? 0 - static_cast<uint64_t>(got) : static_cast<uint64_t>(got);
  do digits[count++] = static_cast<char>('0' + rest % 10);
  while (rest /= 10);
  if (got < 0) put("-");
  while (count > 0 && length + 1 < sizeof text) text[length++] = digits[--count];
  put(then);
  text[length] = 0;
  return ort.CreateStatus(ORT_INVALID_ARGUMENT, text);
}

OrtStatus* read_value(const OrtValue* value, Tensor& tensor) {
  OrtTensorTypeAndShapeInfo* info = nullptr;
  QX_TRY(ort.GetTensorTypeAndShape(value, &info));
  size_t rank = 0;
  OrtStatus* status = ort.GetTensorElementType(info, &tensor.type);
  if (!status) status = ort.GetDimensionsCount(info, &rank);
  if (!status && rank <= MAX_RANK) status = ort.GetDimensions(info, tensor.dims, rank);
  ort.ReleaseTensorTypeAndShapeInfo(info);
  if (status) return status;
  if (rank > MAX_RANK) return fail("a tensor has ", static_cast<int64_t>(rank), " dimensions; at most 8 are supported");
  tensor.rank = static_cast<int>(rank);
  tensor.count = 1;
  for (int i = 0; i < tensor.rank; ++i) {
    if (tensor.dims[i] < 0 || tensor.dims[i] > MAX_DIM) return fail("a dimension is ", tensor.dims[i], "");
    if (tensor.dims[i] && tensor.count > (int64_t(1) << 40) / tensor.dims[i]) return fail("a tensor is too large");
    tensor.count *= tensor.dims[i];
  }
  void* data = nullptr;
  QX_TRY(ort.GetTensorMutableData(const_cast<OrtValue*>(value), &data));
  tensor.data = data;
  return nullptr;
}

static bool held(Kernel& kernel, OrtStatus* status, const char* problem) {
  if (!status) return true;
  ort.ReleaseStatus(status);
  kernel.broken = problem;
  return false;
}

bool read_attribute(Kernel& kernel, const OrtKernelInfo* info, const char* name, int64_t* value, const char* problem) {
  return held(kernel, ort.KernelInfoGetAttribute_int64(info, name, value), problem);
}
bool read_attribute(Kernel& kernel, const OrtKernelInfo* info, const char* name, float* value, const char* problem) {
  return held(kernel, ort.KernelInfoGetAttribute_float(info, name, value), problem);
}

bool read_constant(Kernel& kernel, const OrtKernelInfo* info, size_t index, const char* problem, Tensor& tensor) {
  int constant = 0;
  const OrtValue* value = nullptr;
  if (!held(kernel, ort.KernelInfoGetConstantInput_tensor(info, index, &constant, &value), problem)) return false;
  if (!constant || value == nullptr) {
    kernel.broken = problem;
    return false;
  }
  return held(kernel, read_value(value, tensor), "a constant tensor has more than 8 dimensions, or is too large");
}

OrtStatus* input(OrtKernelContext* context, const Op& op, size_t index, Tensor& tensor) {
  const OrtValue* value = nullptr;
  QX_TRY(ort.KernelContext_GetInput(context, index, &value));
  if (value == nullptr) return fail("input ", static_cast<int64_t>(index), " is absent; all inputs are required");
  QX_TRY(read_value(value, tensor));
  if (tensor.type != op.input_types[index])
    return fail("input ", static_cast<int64_t>(index), " has the wrong element type");
  return nullptr;
}

OrtStatus* output(OrtKernelContext* context, size_t index, const int64_t* dims, int rank, void** data) {
  OrtValue* value = nullptr;
  QX_TRY(ort.KernelContext_GetOutput(context, index, dims, static_cast<size_t>(rank), &value));
  if (value == nullptr) return fail("output ", static_cast<int64_t>(index), " is absent; all outputs are required");
  return ort.GetTensorMutableData(value, data);
}

void* take_memory(size_t bytes) {
  OrtAllocator* allocator = nullptr;
  void* memory = nullptr;
  OrtStatus* status = ort.GetAllocatorWithDefaultOptions(&allocator);
  if (!status) status = ort.AllocatorAlloc(allocator, bytes, &memory);
  if (!status) return memory;
  ort.ReleaseStatus(status);
  return nullptr;
}

void give_memory(void* memory) {
  OrtAllocator* allocator = nullptr;
  OrtStatus* status = ort.GetAllocatorWithDefaultOptions(&allocator);
  if (!status) status = ort.AllocatorFree(allocator, memory);
  if (status) ort.ReleaseStatus(status);
}

static void run_tasks(const void* context, void (*task)(void*, size_t), size_t total, void* user) {
  if (total == 1) return task(user, 0);
  if (total == 0) return;
  OrtStatus* status =
      ort.KernelContext_ParallelFor(static_cast<const OrtKernelContext*>(context), task, total, 0, user);
  if (!status) return;
  ort.ReleaseStatus(status);  // refused before anything ran
  for (size_t i = 0; i < total; ++i) task(user, i);
}

Threads threads_of(OrtKernelContext* context) { return {context, run_tasks}; }

Memory memory_of_call() {
  return {nullptr, [](const void*, size_t bytes) { return take_memory(bytes); },
          [](const void*, void* memory) { give_memory(memory); }};
}

}  // namespace qexport
