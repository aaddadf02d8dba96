// The slots of ONNX Runtime's C API that the library uses, and nothing else of it.
//
// OrtApi is a table of function pointers that only grows at its end, so a slot keeps its number for ever. The
// numbers were read from the header of API version 29; every slot below exists from version 17 on.

#pragma once

#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32) && !defined(_WIN64)
#error "32-bit Windows has another calling convention; it was never tried"
#endif

struct OrtStatus;
struct OrtValue;
struct OrtAllocator;
struct OrtKernelInfo;
struct OrtKernelContext;
struct OrtSessionOptions;
struct OrtCustomOpDomain;
struct OrtTensorTypeAndShapeInfo;
struct OrtShapeInferContext;

// A pointer to the first slot.
typedef void* const* OrtApi;

struct OrtApiBase {
  OrtApi (*GetApi)(uint32_t version);  // null where the runtime is older than `version`
  const char* (*GetVersionString)();
};

enum OrtElementType { ORT_ANY = 0, ORT_FLOAT = 1, ORT_UINT8 = 2, ORT_INT64 = 7, ORT_BOOL = 9 };

enum OrtErrorCode { ORT_FAIL = 1, ORT_INVALID_ARGUMENT = 2 };

struct OrtCustomOp {
  uint32_t version;
  void* (*CreateKernel)(const OrtCustomOp*, OrtApi, const OrtKernelInfo*);
  const char* (*GetName)(const OrtCustomOp*);
  const char* (*GetExecutionProviderType)(const OrtCustomOp*);
  int (*GetInputType)(const OrtCustomOp*, size_t);
  size_t (*GetInputTypeCount)(const OrtCustomOp*);
  int (*GetOutputType)(const OrtCustomOp*, size_t);
  size_t (*GetOutputTypeCount)(const OrtCustomOp*);
  void (*KernelCompute)(void*, OrtKernelContext*);
  void (*KernelDestroy)(void*);
  int (*GetInputCharacteristic)(const OrtCustomOp*, size_t);
  int (*GetOutputCharacteristic)(const OrtCustomOp*, size_t);
  int (*GetInputMemoryType)(const OrtCustomOp*, size_t);
  int (*GetVariadicInputMinArity)(const OrtCustomOp*);
  int (*GetVariadicInputHomogeneity)(const OrtCustomOp*);
  int (*GetVariadicOutputMinArity)(const OrtCustomOp*);
  int (*GetVariadicOutputHomogeneity)(const OrtCustomOp*);
  OrtStatus* (*CreateKernelV2)(const OrtCustomOp*, OrtApi, const OrtKernelInfo*, void**);
  OrtStatus* (*KernelComputeV2)(void*, OrtKernelContext*);
  OrtStatus* (*InferOutputShapeFn)(const OrtCustomOp*, OrtShapeInferContext*);
  int (*GetStartVersion)(const OrtCustomOp*);
  int (*GetEndVersion)(const OrtCustomOp*);
  size_t (*GetMayInplace)(int**, int**);
  void (*ReleaseMayInplace)(int*, int*);
  size_t (*GetAliasMap)(int**, int**);
  void (*ReleaseAliasMap)(int*, int*);
};
static_assert(sizeof(OrtCustomOp) == 26 * sizeof(void*), "26 fields, 64-bit pointers");

namespace qexport {

constexpr uint32_t ORT_API_VERSION = 17;

// Each call is named as in ONNX Runtime and takes the same arguments.
struct Ort {
  OrtApi table = nullptr;

  template <int SLOT, class... Args>
  OrtStatus* call(Args... args) const {
    return reinterpret_cast<OrtStatus* (*)(Args...)>(table[SLOT])(args...);
  }

  OrtStatus* CreateStatus(OrtErrorCode code, const char* text) const {
    return call<0, int, const char*>(code, text);
  }
  OrtStatus* CreateCustomOpDomain(const char* domain, OrtCustomOpDomain** out) const {
    return call<26>(domain, out);
  }
  OrtStatus* CustomOpDomain_Add(OrtCustomOpDomain* domain, const OrtCustomOp* op) const {
    return call<27>(domain, op);
  }
  OrtStatus* AddCustomOpDomain(OrtSessionOptions* options, OrtCustomOpDomain* domain) const {
    return call<28>(options, domain);
  }
  OrtStatus* GetTensorMutableData(OrtValue* value, void** out) const { return call<51>(value, out); }
  OrtStatus* GetTensorElementType(const OrtTensorTypeAndShapeInfo* info, int* out) const {
    return call<60>(info, out);
  }
  OrtStatus* GetDimensionsCount(const OrtTensorTypeAndShapeInfo* info, size_t* out) const {
    return call<61>(info, out);
  }
  OrtStatus* GetDimensions(const OrtTensorTypeAndShapeInfo* info, int64_t* dims, size_t count) const {
    return call<62>(info, dims, count);
  }
  OrtStatus* GetTensorTypeAndShape(const OrtValue* value, OrtTensorTypeAndShapeInfo** out) const {
    return call<65>(value, out);
  }
  OrtStatus* AllocatorAlloc(OrtAllocator* allocator, size_t bytes, void** out) const {
    return call<75>(allocator, bytes, out);
  }
  OrtStatus* AllocatorFree(OrtAllocator* allocator, void* memory) const { return call<76>(allocator, memory); }
  OrtStatus* GetAllocatorWithDefaultOptions(OrtAllocator** out) const { return call<78>(out); }
  OrtStatus* KernelInfoGetAttribute_float(const OrtKernelInfo* info, const char* name, float* out) const {
    return call<85>(info, name, out);
  }
  OrtStatus* KernelInfoGetAttribute_int64(const OrtKernelInfo* info, const char* name, int64_t* out) const {
    return call<86>(info, name, out);
  }
  OrtStatus* KernelContext_GetInputCount(const OrtKernelContext* context, size_t* out) const {
    return call<88>(context, out);
  }
  OrtStatus* KernelContext_GetInput(const OrtKernelContext* context, size_t index, const OrtValue** out) const {
    return call<90>(context, index, out);
  }
  OrtStatus* KernelContext_GetOutput(
      OrtKernelContext* context, size_t index, const int64_t* dims, size_t count, OrtValue** out) const {
    return call<91>(context, index, dims, count, out);
  }
  void ReleaseStatus(OrtStatus* status) const {
    reinterpret_cast<void (*)(OrtStatus*)>(table[93])(status);
  }
  void ReleaseTensorTypeAndShapeInfo(OrtTensorTypeAndShapeInfo* info) const {
    reinterpret_cast<void (*)(OrtTensorTypeAndShapeInfo*)>(table[99])(info);
  }
  OrtStatus* KernelInfoGetConstantInput_tensor(
      const OrtKernelInfo* info, size_t index, int* is_constant, const OrtValue** out) const {
    return call<249>(info, index, is_constant, out);
  }
  OrtStatus* KernelContext_ParallelFor(
      const OrtKernelContext* context, void (*task)(void*, size_t), size_t total, size_t batches, void* user) const {
    return call<274>(context, task, total, batches, user);
  }
};

}  // namespace qexport
