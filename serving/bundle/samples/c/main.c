/* Text in, label and probability out.
 *
 *     ./classify [--runtime FILE] [--kernels FILE|none] [--model FILE] [--threads N] TEXT [SECOND TEXT]
 *     ./classify --ids 101,2023,102
 *
 * It opens libonnxruntime at run time, registers the kernel library of this bundle, makes the token ids and runs the model. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model.h"
#include "ort_api.h"

#ifdef _WIN32
#include <windows.h>
#define RUNTIME "onnxruntime.dll"
#define KERNELS "lib/qexport_kernels.dll"
#elif defined(__APPLE__)
#include <dlfcn.h>
#define RUNTIME "libonnxruntime.dylib"
#define KERNELS "lib/libqexport_kernels.dylib"
#else
#include <dlfcn.h>
#define RUNTIME "libonnxruntime.so"
#define KERNELS "lib/libqexport_kernels.so"
#endif

static const OrtApi* ort;

static void stop(const char* what, const char* why) {
  fprintf(stderr, "classify: %s%s%s\n", what, why == NULL ? "" : ": ", why == NULL ? "" : why);
  exit(1);
}

static void check(OrtStatus* status, const char* what) {
  if (status != NULL) stop(what, ort->GetErrorMessage(status));
}

/* ---- what differs between systems ---- */

#ifdef _WIN32
static ort_path* path_of(const char* text) {
  int count = MultiByteToWideChar(CP_UTF8, 0, text, -1, NULL, 0);
  ort_path* path = malloc((size_t)count * sizeof *path);
  if (path == NULL) stop("no memory", NULL);
  MultiByteToWideChar(CP_UTF8, 0, text, -1, path, count);
  return path;
}

static const OrtApiBase* open_runtime(const char* path) {
  HMODULE library = LoadLibraryW(path_of(path));
  const OrtApiBase* (*base)(void);
  if (library == NULL) stop("cannot open ONNX Runtime, give its file with --runtime", path);
  base = (const OrtApiBase* (*)(void))(void*)GetProcAddress(library, "OrtGetApiBase");
  return base == NULL ? NULL : base();
}
#else
static const ort_path* path_of(const char* text) { return text; }

static const OrtApiBase* open_runtime(const char* path) {
  void* library = dlopen(path, RTLD_NOW);
  const OrtApiBase* (*base)(void);
  if (library == NULL) stop("cannot open ONNX Runtime, give its file with --runtime", dlerror());
  *(void**)&base = dlsym(library, "OrtGetApiBase");
  return base == NULL ? NULL : base();
}
#endif

static int exists(const char* path) {
  FILE* file = fopen(path, "rb");
  if (file != NULL) fclose(file);
  return file != NULL;
}

/* ---- token ids ---- */

static size_t ids_of(const char* text, const char* pair, int64_t* ids, int64_t* types) {
#ifdef HAS_TOKENIZER
  wordpiece* tokenizer = wordpiece_open(&settings, "model/vocab.txt", "model/unicode.txt");
  size_t count;
  if (tokenizer == NULL) stop("cannot read model/vocab.txt and model/unicode.txt; run in the bundle's folder", NULL);
  count = wordpiece_encode(tokenizer, text, pair, ids, types);
  wordpiece_close(tokenizer);
  return count;
#else
  (void)text, (void)pair, (void)ids, (void)types;
  stop("this model's tokenizer is not WordPiece; give token ids with --ids", NULL);
  return 0;
#endif
}

static size_t read_ids(const char* text, int64_t* ids, int64_t* types) {
  size_t count = 0;
  char* end;
  while (count < MAX_LENGTH) {
    ids[count] = strtoll(text, &end, 10);
    if (end == text) stop("--ids takes numbers with commas between them", text);
    types[count++] = 0;
    if (*end != ',') break;
    text = end + 1;
  }
  return count;
}

/* ---- the model ---- */

static OrtSession* open_session(OrtEnv* env, const char* kernels, const char* model, int threads) {
  OrtSessionOptions* options;
  OrtSession* session;
  check(ort->CreateSessionOptions(&options), "session options");
  check(ort->SetIntraOpNumThreads(options, threads), "threads");
  if (strcmp(kernels, "none") != 0) check(ort->RegisterCustomOpsLibrary_V2(options, path_of(kernels)), "kernel library");
  check(ort->CreateSession(env, path_of(model), options, &session), "model");
  ort->ReleaseSessionOptions(options);
  return session;
}

/* Logits of one row; as many as there are labels. */
static void run(OrtSession* session, int64_t* ids, int64_t* types, size_t count, float* logits) {
  static int64_t mask[MAX_LENGTH];
  static const char* const output_names[] = {"logits"};
  int64_t shape[2] = {1, (int64_t)count};
  OrtValue *values[8] = {NULL}, *output = NULL;
  OrtMemoryInfo* memory;
  OrtTensorInfo* info;
  float* data;
  size_t n = 0, found;
  for (size_t i = 0; i < count; i++) mask[i] = 1;
  check(ort->CreateCpuMemoryInfo(ORT_ARENA, ORT_DEFAULT_MEMORY, &memory), "memory");
  for (; inputs[n] != NULL; n++) {
    int64_t* row = strcmp(inputs[n], "input_ids") == 0 ? ids : strcmp(inputs[n], "attention_mask") == 0 ? mask : types;
    check(ort->CreateTensorWithDataAsOrtValue(memory, row, count * sizeof *row, shape, 2, ORT_INT64, &values[n]), inputs[n]);
  }
  check(ort->Run(session, NULL, inputs, (const OrtValue* const*)values, n, output_names, 1, &output), "run");
  check(ort->GetTensorTypeAndShape(output, &info), "logits");
  check(ort->GetTensorShapeElementCount(info, &found), "logits");
  ort->ReleaseTensorTypeAndShapeInfo(info);
  check(ort->GetTensorMutableData(output, (void**)&data), "logits");
  if (found != N_LABELS) stop("the model and model.h differ in the number of labels", NULL);
  memcpy(logits, data, sizeof(float) * N_LABELS);
  ort->ReleaseValue(output);
  while (n > 0) ort->ReleaseValue(values[--n]);
  ort->ReleaseMemoryInfo(memory);
}

static void print(const float* logits) {
  int best = 0;
  double sum = 0;
  if (IS_REGRESSION) {
    printf("score %.6f\n", logits[0]);
    return;
  }
  for (int i = 1; i < N_LABELS; i++) best = logits[i] > logits[best] ? i : best;
  for (int i = 0; i < N_LABELS; i++) sum += exp((double)logits[i] - logits[best]);
  printf("%s %.6f\n", labels[best], 1 / sum);
}

static int classify(int count, char** words) {
  static int64_t ids[MAX_LENGTH], types[MAX_LENGTH];
  const char *runtime = RUNTIME, *kernels = exists(KERNELS) ? KERNELS : "none", *model = "model/model.onnx";
  const char *text = NULL, *pair = NULL, *given = NULL;
  const OrtApiBase* base;
  float logits[N_LABELS];
  size_t length;
  int threads = 1;
  OrtEnv* env;
  OrtSession* session;
  for (int i = 1; i < count; i++) {
    const char* value = i + 1 < count ? words[i + 1] : NULL;
    if (strcmp(words[i], "--runtime") == 0 && value) runtime = value, i++;
    else if (strcmp(words[i], "--kernels") == 0 && value) kernels = value, i++;
    else if (strcmp(words[i], "--model") == 0 && value) model = value, i++;
    else if (strcmp(words[i], "--threads") == 0 && value) threads = atoi(value), i++;
    else if (strcmp(words[i], "--ids") == 0 && value) given = value, i++;
    else if (text == NULL) text = words[i];
    else if (pair == NULL) pair = words[i];
    else stop("more than two texts; put quotes around each", NULL);
  }
  if ((text == NULL) == (given == NULL)) stop("usage: classify [--runtime FILE] TEXT [SECOND TEXT], or --ids NUMBERS", NULL);
  length = given != NULL ? read_ids(given, ids, types) : ids_of(text, pair, ids, types);
  if (length == 0) stop("no memory", NULL);
  base = open_runtime(runtime);
  if (base == NULL) stop("this library is not ONNX Runtime", runtime);
  if ((ort = base->GetApi(ORT_API_17)) == NULL) stop("ONNX Runtime must be 1.17 or newer, this is", base->GetVersionString());
  check(ort->CreateEnv(ORT_WARNING, "classify", &env), "environment");
  session = open_session(env, kernels, model, threads);
  run(session, ids, types, length, logits);
  print(logits);
  ort->ReleaseSession(session);
  ort->ReleaseEnv(env);
  return 0;
}

#ifdef _WIN32
int wmain(int count, wchar_t** wide) { /* UTF-16 arguments to UTF-8 */
  char** words = calloc((size_t)count + 1, sizeof *words);
  for (int i = 0; words != NULL && i < count; i++) {
    int size = WideCharToMultiByte(CP_UTF8, 0, wide[i], -1, NULL, 0, NULL, NULL);
    if ((words[i] = malloc((size_t)size)) == NULL) stop("no memory", NULL);
    WideCharToMultiByte(CP_UTF8, 0, wide[i], -1, words[i], size, NULL, NULL);
  }
  SetConsoleOutputCP(CP_UTF8);
  return words == NULL ? 1 : classify(count, words);
}
#else
int main(int count, char** words) { return classify(count, words); }
#endif
