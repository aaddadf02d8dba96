// qexport-runner: opens libonnxruntime, runs batches from standard input, writes outputs and timings to standard output.
//
//   qexport-runner --runtime libonnxruntime.so --model model.onnx [--kernels libqexport_kernels.so] [--isa NAME]
//                  [--threads N] [--optimize 0|1] [--input FILE] [--output FILE] [--mark]
//
// The format of both streams is in docs/targets-devices.md. It needs nothing of the C library but its start and
// dlopen: what it asks of the system are system calls, so one source serves glibc, musl and Android.

#include "../kernels/ort_abi.h"
#include "start.h"
#include "system.h"

struct OrtEnv;
struct OrtSession;
struct OrtMemoryInfo;
struct OrtTypeInfo;

namespace qexport {
namespace {

constexpr uint32_t MAGIC[2] = {0x52545851, 1};  // "QXTR", version 1
constexpr size_t MAX_TENSORS = 64, MAX_NAME = 256, MAX_RANK = 8, MAX_BYTES = size_t(1) << 31;
constexpr size_t MAX_RUNS = 1 << 20;
constexpr long MARK = 0x51455850;  // a system call that no kernel has: counting emulators look for it

Ort ort;

struct Tensor {
  char name[MAX_NAME];
  uint32_t type;
  uint32_t rank;
  int64_t dims[MAX_RANK];
  size_t bytes;
  Buffer data;
};

struct Options {
  const char *runtime = nullptr, *model = nullptr, *kernels = nullptr, *isa = nullptr, *input = nullptr, *output = nullptr;
  long threads = 1;
  bool optimize = true, mark = false;
};

struct Names {
  char* of[MAX_TENSORS];
  size_t count = 0;
};

struct Program {
  Options options;
  Input in;
  Output out;
  OrtSession* session = nullptr;
  OrtMemoryInfo* memory = nullptr;
  Names inputs, outputs;
  const char* (*runtime_version)() = nullptr;
  const char *kernels_version = nullptr, *isa = nullptr;
  double load_ms = 0;
  Tensor tensors[MAX_TENSORS];
  Buffer times;
};
Program program;

size_t element_bytes(uint32_t type) {
  switch (type) {
    case 2: case 3: case 9: return 1;                // uint8, int8, bool
    case 4: case 5: case 10: case 16: return 2;      // uint16, int16, float16, bfloat16
    case 1: case 6: case 12: return 4;               // float, int32, uint32
    case 7: case 11: case 13: return 8;              // int64, double, uint64
    default: return 0;
  }
}

// What a call of ONNX Runtime complained about ends the program.
template <class... Parts>
void check(OrtStatus* status, int code, Parts... what) {
  if (status == nullptr) return;
  auto message = reinterpret_cast<const char* (*)(const OrtStatus*)>(ort.table[2]);
  fail(code, what..., " (", message(status), ")");
}

bool flag(const char* word, const char* value) {
  const long found = number(value);
  if (found != 0 && found != 1) fail(USAGE, word, " takes 0 or 1, got ", value);
  return found == 1;
}

void parse(int count, char** words, Options& options) {
  for (int i = 1; i < count; ++i) {
    const char* word = words[i];
    if (same(word, "--version")) {
      write_text(1, "qexport-runner " QEXPORT_VERSION "\n");
      leave(0);
    }
    if (same(word, "--mark")) {
      options.mark = true;
      continue;
    }
    if (i + 1 == count) fail(USAGE, word, " needs a value");
    const char* value = words[++i];
    if (same(word, "--runtime")) options.runtime = value;
    else if (same(word, "--model")) options.model = value;
    else if (same(word, "--kernels")) options.kernels = value;
    else if (same(word, "--isa")) options.isa = value;
    else if (same(word, "--input")) options.input = value;
    else if (same(word, "--output")) options.output = value;
    else if (same(word, "--threads")) options.threads = number(value);
    else if (same(word, "--optimize")) options.optimize = flag(word, value);
    else fail(USAGE, "unknown option ", word);
  }
  if (options.runtime == nullptr || options.model == nullptr) fail(USAGE, "--runtime and --model must be given");
  if (options.threads < 1) fail(USAGE, "--threads must be at least 1");
}

// Opens a shared library, and says in one sentence why it cannot be opened.
void* open_library(const char* path, int missing, int refused) {
  unsigned char header[20];
  const long file = open_file(path, false);
  if (file < 0) fail(missing, "cannot open ", path, ": there is no such file, or it may not be read");
  const long n = read_some(file, header, sizeof header);
  close_file(file);
  if (n < static_cast<long>(sizeof header) || header[0] != 0x7f || header[1] != 'E' || header[2] != 'L' || header[3] != 'F')
    fail(refused, path, " is no shared library of Linux or Android");
  const int machine = header[18] | header[19] << 8;
  if (machine != OWN_MACHINE)
    fail(WRONG_ARCHITECTURE, path, " is for ", machine_name(machine), ", this machine is ", machine_name(OWN_MACHINE));
  void* library = dlopen(path, RTLD_NOW_LOCAL);
  if (library == nullptr) fail(refused, "cannot load ", path, " (", dlerror(), ")");
  return library;
}

template <class Function>
Function symbol(void* library, const char* name) {
  return reinterpret_cast<Function>(dlsym(library, name));
}

void register_kernels(const Options& options, OrtSessionOptions* session_options, const OrtApiBase* base) {
  void* library = open_library(options.kernels, NO_KERNELS, NO_KERNELS);
  auto version = symbol<const char* (*)()>(library, "qexport_kernels_version");
  auto set_isa = symbol<int (*)(const char*)>(library, "qexport_set_isa");
  auto isa = symbol<const char* (*)()>(library, "qexport_isa");
  auto register_ops = symbol<OrtStatus* (*)(OrtSessionOptions*, const OrtApiBase*)>(library, "RegisterCustomOps");
  if (!version || !set_isa || !isa || !register_ops) fail(NO_KERNELS, options.kernels, " is no kernel library of qexport");
  if (options.isa) {
    const int problem = set_isa(options.isa);
    if (problem == 1) fail(USAGE, "there is no instruction set ", options.isa);
    if (problem) fail(NO_ISA, "this processor lacks the instruction set ", options.isa);
  }
  check(register_ops(session_options, base), NO_KERNELS, "ONNX Runtime refuses the kernel library");
  program.kernels_version = version();
  program.isa = isa();
}

void read_names(Names& names, int count_slot, bool inputs) {
  auto count = reinterpret_cast<OrtStatus* (*)(const OrtSession*, size_t*)>(ort.table[count_slot]);
  check(count(program.session, &names.count), BAD_MODEL, "the model has no inputs or outputs");
  if (names.count > MAX_TENSORS) fail(BAD_MODEL, "the model has more than 64 inputs or outputs");
  OrtAllocator* allocator = nullptr;
  check(ort.GetAllocatorWithDefaultOptions(&allocator), RUN_FAILED, "no allocator");
  for (size_t i = 0; i < names.count; ++i) {
    OrtStatus* status = inputs ? ort.call<36>(program.session, i, allocator, &names.of[i])
                               : ort.call<37>(program.session, i, allocator, &names.of[i]);
    check(status, BAD_MODEL, "an input or output of the model has no name");
  }
}

void open_session(const Options& options) {
  void* library = open_library(options.runtime, NO_RUNTIME, NO_RUNTIME);
  auto get_base = symbol<const OrtApiBase* (*)()>(library, "OrtGetApiBase");
  if (get_base == nullptr) fail(NO_RUNTIME, options.runtime, " is no ONNX Runtime: it lacks OrtGetApiBase");
  const OrtApiBase* base = get_base();
  program.runtime_version = base->GetVersionString;
  ort.table = base->GetApi(ORT_API_VERSION);
  if (ort.table == nullptr)
    fail(OLD_RUNTIME, "ONNX Runtime ", base->GetVersionString(), " is too old, 1.17 is the oldest that runs the model");
  OrtEnv* env = nullptr;
  check(ort.call<3>(4, static_cast<const char*>("qexport"), &env), RUN_FAILED, "ONNX Runtime does not start");
  check(ort.call<6>(env), RUN_FAILED, "ONNX Runtime does not turn its telemetry off");
  OrtSessionOptions* settings = nullptr;
  check(ort.call<10>(&settings), RUN_FAILED, "no session options");
  check(ort.call<22>(settings, 4), RUN_FAILED, "no log level");
  check(ort.call<23>(settings, options.optimize ? 99 : 0), RUN_FAILED, "no optimisation level");
  check(ort.call<24>(settings, static_cast<int>(options.threads)), RUN_FAILED, "no threads");
  check(ort.call<25>(settings, 1), RUN_FAILED, "no threads");
  check(
      ort.call<130>(settings, static_cast<const char*>("session.force_spinning_stop"), static_cast<const char*>("1")),
      RUN_FAILED, "no session setting");
  if (options.kernels) register_kernels(options, settings, base);
  const long file = open_file(options.model, false);
  if (file < 0) fail(BAD_MODEL, "cannot open ", options.model, ": there is no such file, or it may not be read");
  close_file(file);
  const double begin = milliseconds();
  check(ort.call<7>(env, options.model, settings, &program.session), BAD_MODEL, options.model, " cannot be loaded");
  program.load_ms = milliseconds() - begin;
  check(ort.call<69>(0, 0, &program.memory), RUN_FAILED, "no memory");
  read_names(program.inputs, 30, true);
  read_names(program.outputs, 31, false);
}

// A tensor of the output record.
void write_tensor(const char* name, uint32_t type, const int64_t* dims, uint32_t rank, const void* data, size_t bytes) {
  Output& out = program.out;
  const uint32_t length = static_cast<uint32_t>(text_length(name));
  out.put(&length, 4);
  out.put(name, length);
  out.put(&type, 4);
  out.put(&rank, 4);
  out.put(dims, 8 * rank);
  out.put(data, bytes);
}

void put_names(Text& text, const Names& names) {
  text.add("[");
  for (size_t i = 0; i < names.count; ++i) text.add(i ? ", " : "").quoted(names.of[i]);
  text.add("]");
}

// One record that holds the facts, a JSON object in UTF-8.
void write_facts() {
  static Text text;
  text.clear();
  text.add("{\"runner\": ").quoted(QEXPORT_VERSION);
  text.add(", \"onnxruntime\": ").quoted(program.runtime_version());
  text.add(", \"architecture\": ").quoted(machine_name(OWN_MACHINE));
  if (program.isa) text.add(", \"kernels\": ").quoted(program.kernels_version).add(", \"isa\": ").quoted(program.isa);
  text.add(", \"threads\": ").integer(program.options.threads);
  text.add(", \"load_ms\": ").decimal(program.load_ms);
  text.add(", \"inputs\": ");
  put_names(text, program.inputs);
  text.add(", \"outputs\": ");
  put_names(text, program.outputs);
  add_machine(text);
  text.add("}");
  const uint32_t count = 1;
  const int64_t size = static_cast<int64_t>(text.size());
  program.out.put(&count, 4);
  write_tensor(":facts", 2, &size, 1, text.data(), text.size());
  program.out.flush();
}

uint32_t read_number() {
  uint32_t value;
  if (!program.in.take(&value, 4)) fail(BAD_INPUT, "the input ends in the middle");
  return value;
}

// Reads the tensors of the next record; 0 at the end of the stream.
size_t read_record() {
  const uint32_t count = read_number();
  if (count > MAX_TENSORS) fail(BAD_INPUT, "the input is no tensor stream: a record of too many tensors");
  for (size_t i = 0; i < count; ++i) {
    Tensor& tensor = program.tensors[i];
    const uint32_t length = read_number();
    if (length == 0 || length >= MAX_NAME) fail(BAD_INPUT, "the input is no tensor stream: a name is too long");
    if (!program.in.take(tensor.name, length)) fail(BAD_INPUT, "the input ends in the middle");
    tensor.name[length] = 0;
    tensor.type = read_number();
    tensor.rank = read_number();
    const size_t size = element_bytes(tensor.type);
    if (size == 0 || tensor.rank > MAX_RANK) fail(BAD_INPUT, "the input has an unknown type or too many dimensions");
    if (!program.in.take(tensor.dims, 8 * tensor.rank)) fail(BAD_INPUT, "the input ends in the middle");
    tensor.bytes = size;
    for (uint32_t axis = 0; axis < tensor.rank; ++axis) {
      const int64_t dim = tensor.dims[axis];
      if (dim < 0 || (dim > 0 && tensor.bytes > MAX_BYTES / static_cast<size_t>(dim))) fail(BAD_INPUT, "a tensor of the input is too large");
      tensor.bytes *= static_cast<size_t>(dim);
    }
    tensor.data.need(tensor.bytes);
    if (!program.in.take(tensor.data.memory, tensor.bytes)) fail(BAD_INPUT, "the input ends in the middle");
  }
  return count;
}

long setting(size_t count, const char* name, long otherwise) {
  for (size_t i = 0; i < count; ++i)
    if (same(program.tensors[i].name, name) && program.tensors[i].type == ORT_INT64 && program.tensors[i].bytes == 8)
      return *reinterpret_cast<const int64_t*>(program.tensors[i].data.memory);
  return otherwise;
}

void write_output(const char* name, OrtValue* value) {
  OrtTensorTypeAndShapeInfo* info = nullptr;
  int type = 0;
  size_t rank = 0;
  int64_t dims[MAX_RANK];
  check(ort.GetTensorTypeAndShape(value, &info), RUN_FAILED, "an output of the model is no tensor");
  check(ort.GetTensorElementType(info, &type), RUN_FAILED, "an output has no type");
  check(ort.GetDimensionsCount(info, &rank), RUN_FAILED, "an output has no shape");
  if (rank > MAX_RANK) fail(RUN_FAILED, "the output ", name, " has more than 8 dimensions");
  check(ort.GetDimensions(info, dims, rank), RUN_FAILED, "an output has no shape");
  ort.ReleaseTensorTypeAndShapeInfo(info);
  size_t bytes = element_bytes(static_cast<uint32_t>(type));
  if (bytes == 0) fail(RUN_FAILED, "the output ", name, " is of a type that the stream cannot hold");
  for (size_t axis = 0; axis < rank; ++axis) bytes *= static_cast<size_t>(dims[axis]);
  void* data = nullptr;
  check(ort.GetTensorMutableData(value, &data), RUN_FAILED, "an output has no data");
  write_tensor(name, static_cast<uint32_t>(type), dims, static_cast<uint32_t>(rank), data, bytes);
}

void run(size_t count) {
  const long repeats = setting(count, ":repeats", 1), warmup = setting(count, ":warmup", 0);
  if (repeats < 1 || warmup < 0 || repeats + warmup > static_cast<long>(MAX_RUNS)) fail(BAD_INPUT, ":repeats or :warmup is out of range");
  OrtValue *values[MAX_TENSORS] = {}, *results[MAX_TENSORS] = {};
  for (size_t i = 0; i < program.inputs.count; ++i) {
    const char* name = program.inputs.of[i];
    for (size_t j = 0; j < count && values[i] == nullptr; ++j) {
      Tensor& tensor = program.tensors[j];
      if (!same(tensor.name, name)) continue;
      check(
          ort.call<49>(program.memory, static_cast<void*>(tensor.data.memory), tensor.bytes, tensor.dims,
                       static_cast<size_t>(tensor.rank), static_cast<int>(tensor.type), &values[i]),
          BAD_INPUT, "an input tensor is refused");
    }
    if (values[i] == nullptr) fail(BAD_INPUT, "the input record lacks the tensor ", name);
  }
  program.times.need(8 * static_cast<size_t>(repeats));
  double* times = reinterpret_cast<double*>(program.times.memory);
  auto release = reinterpret_cast<void (*)(OrtValue*)>(ort.table[96]);
  for (long turn = -warmup; turn < repeats; ++turn) {
    for (OrtValue*& result : results) {
      if (result) release(result);
      result = nullptr;
    }
    if (program.options.mark) system_call(MARK, 0, 0, 0, 0);
    const double begin = milliseconds();
    OrtStatus* status = ort.call<9>(
        program.session, static_cast<const void*>(nullptr), static_cast<char* const*>(program.inputs.of),
        static_cast<OrtValue* const*>(values), program.inputs.count, static_cast<char* const*>(program.outputs.of),
        program.outputs.count, static_cast<OrtValue**>(results));
    const double end = milliseconds();
    if (program.options.mark) system_call(MARK, 1, 0, 0, 0);
    check(status, RUN_FAILED, "ONNX Runtime cannot run the batch");
    if (turn >= 0) times[turn] = end - begin;
  }
  const uint32_t n = static_cast<uint32_t>(program.outputs.count) + 1;
  program.out.put(&n, 4);
  for (size_t i = 0; i < program.outputs.count; ++i) {
    write_output(program.outputs.of[i], results[i]);
    release(results[i]);
  }
  const int64_t runs = repeats;
  write_tensor(":ms", 11, &runs, 1, times, 8 * static_cast<size_t>(repeats));
  program.out.flush();
  for (size_t i = 0; i < program.inputs.count; ++i) release(values[i]);
}

}  // namespace

int run_all(int count, char** words) {
  Options& options = program.options;
  ignore_broken_pipes();
  parse(count, words, options);
  if (options.input && (program.in.file = open_file(options.input, false)) < 0) fail(BAD_INPUT, "cannot open ", options.input);
  if (options.output && (program.out.file = open_file(options.output, true)) < 0) fail(USAGE, "cannot write ", options.output);
  open_session(options);
  program.out.put(MAGIC, sizeof MAGIC);
  write_facts();
  uint32_t magic[2];
  if (!program.in.take(magic, sizeof magic) || magic[0] != MAGIC[0] || magic[1] != MAGIC[1])
    fail(BAD_INPUT, "the input is no tensor stream of version 1");
  while (size_t tensors = read_record()) run(tensors);
  write_facts();
  const uint32_t end = 0;
  program.out.put(&end, 4);
  program.out.flush();
  return 0;
}

}  // namespace qexport
