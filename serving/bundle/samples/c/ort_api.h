/* The few functions of ONNX Runtime's C API that main.c calls, by their place in its table. The table is append-only, so
 * these places are the same in every ONNX Runtime from 1.17 on; with the official onnxruntime_c_api.h at hand, use that. */
#ifndef ORT_API_H
#define ORT_API_H

#include <stddef.h>
#include <stdint.h>

#ifdef _WIN32
typedef wchar_t ort_path;
#define ORT_CALL __stdcall
#else
typedef char ort_path;
#define ORT_CALL
#endif

typedef struct OrtStatus OrtStatus;
typedef struct OrtEnv OrtEnv;
typedef struct OrtSession OrtSession;
typedef struct OrtSessionOptions OrtSessionOptions;
typedef struct OrtMemoryInfo OrtMemoryInfo;
typedef struct OrtValue OrtValue;
typedef struct OrtTensorInfo OrtTensorInfo;

typedef struct {
  void* skipped_0[2];
  const char*(ORT_CALL* GetErrorMessage)(const OrtStatus*);                                                   /* 2 */
  OrtStatus*(ORT_CALL* CreateEnv)(int level, const char* name, OrtEnv** out);                                 /* 3 */
  void* skipped_4[3];
  OrtStatus*(ORT_CALL* CreateSession)(const OrtEnv*, const ort_path*, const OrtSessionOptions*, OrtSession**); /* 7 */
  void* skipped_8[1];
  OrtStatus*(ORT_CALL* Run)(OrtSession*, const void* options, const char* const* input_names, const OrtValue* const* inputs,
                            size_t n_inputs, const char* const* output_names, size_t n_outputs, OrtValue** outputs); /* 9 */
  OrtStatus*(ORT_CALL* CreateSessionOptions)(OrtSessionOptions** out);                                        /* 10 */
  void* skipped_11[13];
  OrtStatus*(ORT_CALL* SetIntraOpNumThreads)(OrtSessionOptions*, int threads);                                /* 24 */
  void* skipped_25[24];
  OrtStatus*(ORT_CALL* CreateTensorWithDataAsOrtValue)(const OrtMemoryInfo*, void* data, size_t bytes, const int64_t* shape,
                                                       size_t rank, int type, OrtValue** out);                /* 49 */
  void* skipped_50[1];
  OrtStatus*(ORT_CALL* GetTensorMutableData)(OrtValue*, void** out);                                          /* 51 */
  void* skipped_52[12];
  OrtStatus*(ORT_CALL* GetTensorShapeElementCount)(const OrtTensorInfo*, size_t* out);                        /* 64 */
  OrtStatus*(ORT_CALL* GetTensorTypeAndShape)(const OrtValue*, OrtTensorInfo** out);                          /* 65 */
  void* skipped_66[3];
  OrtStatus*(ORT_CALL* CreateCpuMemoryInfo)(int allocator, int memory, OrtMemoryInfo** out);                  /* 69 */
  void* skipped_70[22];
  void(ORT_CALL* ReleaseEnv)(OrtEnv*);                                                                        /* 92 */
  void(ORT_CALL* ReleaseStatus)(OrtStatus*);                                                                  /* 93 */
  void(ORT_CALL* ReleaseMemoryInfo)(OrtMemoryInfo*);                                                          /* 94 */
  void(ORT_CALL* ReleaseSession)(OrtSession*);                                                                /* 95 */
  void(ORT_CALL* ReleaseValue)(OrtValue*);                                                                    /* 96 */
  void* skipped_97[2];
  void(ORT_CALL* ReleaseTensorTypeAndShapeInfo)(OrtTensorInfo*);                                              /* 99 */
  void(ORT_CALL* ReleaseSessionOptions)(OrtSessionOptions*);                                                  /* 100 */
  void* skipped_101[127];
  OrtStatus*(ORT_CALL* RegisterCustomOpsLibrary_V2)(OrtSessionOptions*, const ort_path*);                     /* 228 */
} OrtApi;

typedef struct {
  const OrtApi*(ORT_CALL* GetApi)(uint32_t version);
  const char*(ORT_CALL* GetVersionString)(void);
} OrtApiBase;

enum { ORT_API_17 = 17, ORT_INT64 = 7, ORT_WARNING = 2, ORT_ARENA = 1, ORT_DEFAULT_MEMORY = 0 };

#endif
