// RegisterCustomOps: hands every operator of the domain ai.qexport to ONNX Runtime.
//
// A file of qexport carries each operator as a function, too. ONNX Runtime prefers a registered operator of the same domain
// and name, so the same file is run by these kernels where the library is registered, and by the functions where it is not. A file
// of another version of the operator set is left to its functions: their arithmetic is not that of these kernels.

#include "ops/ops.h"

#if defined(_WIN32)
#define QEXPORT_API extern "C" __declspec(dllexport)
#else
#define QEXPORT_API extern "C" __attribute__((visibility("default")))
#endif

namespace qexport {
namespace {

constexpr int OPERATOR_SET = 2;  // VERSION of graphs/operators/body.py

OrtStatus* create(const OrtCustomOp* base, OrtApi, const OrtKernelInfo* info, void** out) {
  const Op* op = static_cast<const Op*>(base);
  Kernel* kernel = static_cast<Kernel*>(take_memory(sizeof(Kernel)));
  if (kernel == nullptr) return fail("no memory left for a kernel");
  *kernel = Kernel();
  kernel->op = op;
  kernel->isa = current_isa();
  kernel->compute = op->compute;
  if (op->prepare) op->prepare(*kernel, info);
  *out = kernel;
  return nullptr;
}

OrtStatus* compute(void* state, OrtKernelContext* context) {
  const Kernel& kernel = *static_cast<const Kernel*>(state);
  if (kernel.broken) return fail(kernel.broken);
  return kernel.compute(kernel, context);
}

void destroy(void* state) {
  Kernel* kernel = static_cast<Kernel*>(state);
  if (kernel->memory) give_memory(kernel->memory);
  give_memory(kernel);
}

constexpr Op make(
    const char* name, int variant, int inputs, const int (&input_types)[MAX_INPUTS], int outputs,
    const int (&output_types)[3], void (*prepare)(Kernel&, const OrtKernelInfo*),
    OrtStatus* (*run)(const Kernel&, OrtKernelContext*)) {
  Op op = {};
  op.version = ORT_API_VERSION;
  op.GetName = [](const OrtCustomOp* self) { return static_cast<const Op*>(self)->name; };
  op.GetExecutionProviderType = [](const OrtCustomOp*) -> const char* { return "CPUExecutionProvider"; };
  op.GetInputType = [](const OrtCustomOp* self, size_t i) { return static_cast<const Op*>(self)->input_types[i]; };
  op.GetInputTypeCount = [](const OrtCustomOp* self) {
    return static_cast<size_t>(static_cast<const Op*>(self)->inputs);
  };
  op.GetOutputType = [](const OrtCustomOp* self, size_t i) { return static_cast<const Op*>(self)->output_types[i]; };
  op.GetOutputTypeCount = [](const OrtCustomOp* self) {
    return static_cast<size_t>(static_cast<const Op*>(self)->outputs);
  };
  op.KernelDestroy = destroy;
  op.GetInputCharacteristic = [](const OrtCustomOp*, size_t) { return 0; };
  op.GetOutputCharacteristic = [](const OrtCustomOp*, size_t) { return 0; };
  op.GetInputMemoryType = [](const OrtCustomOp*, size_t) { return 0; };
  op.GetVariadicInputMinArity = [](const OrtCustomOp*) { return 0; };
  op.GetVariadicInputHomogeneity = [](const OrtCustomOp*) { return 0; };
  op.GetVariadicOutputMinArity = [](const OrtCustomOp*) { return 0; };
  op.GetVariadicOutputHomogeneity = [](const OrtCustomOp*) { return 0; };
  op.CreateKernelV2 = create;
  op.KernelComputeV2 = compute;
  op.GetStartVersion = [](const OrtCustomOp*) { return OPERATOR_SET; };
  op.GetEndVersion = [](const OrtCustomOp*) { return OPERATOR_SET; };
  op.name = name;
  op.variant = variant;
  op.inputs = inputs;
  for (int i = 0; i < inputs; ++i) op.input_types[i] = input_types[i];
  op.outputs = outputs;
  for (int i = 0; i < outputs; ++i) op.output_types[i] = output_types[i];
  op.prepare = prepare;
  op.compute = run;
  return op;
}

constexpr int F = ORT_FLOAT, U = ORT_UINT8, I = ORT_INT64, B = ORT_BOOL;

Op matmul_op(const char* name, int bits) {
  return make(name, bits, 6, {U, F, U, U, F, F}, 1, {F}, prepare_matmul, compute_matmul);
}
Op gather_op(const char* name, int bits) {
  return make(name, bits, 3, {I, U, F}, 1, {F}, prepare_gather, compute_gather);
}
Op attention_op(const char* name, int scales, bool quantize_pv, bool bounded = false) {
  const int inputs = scales != STATIC ? 4 : quantize_pv ? 8 : 6;
  return make(
      name, scales | (quantize_pv ? 0 : FLOAT_PV) | (bounded ? BOUNDED : 0), inputs, {F, F, F, B, F, F, F, F}, 1, {F}, prepare_attention,
      compute_attention);
}

// Filled by the first registration; constant from then on.
Op ops[32];
size_t op_count = 0;

void fill_ops() {
  const Op all[] = {
      matmul_op("BinaryMatMul", 1),
      matmul_op("TernaryMatMul", 2),
      matmul_op("Int3MatMul", 3),
      matmul_op("Int4MatMul", 4),
      matmul_op("Int5MatMul", 5),
      matmul_op("Int6MatMul", 6),
      matmul_op("Int7MatMul", 7),
      matmul_op("Int8MatMul", 8),
      gather_op("BinaryGather", 1),
      gather_op("TernaryGather", 2),
      gather_op("Int3Gather", 3),
      gather_op("Int4Gather", 4),
      gather_op("Int5Gather", 5),
      gather_op("Int6Gather", 6),
      gather_op("Int7Gather", 7),
      gather_op("Int8Gather", 8),
      make("QuantizePerToken", PER_TOKEN, 1, {F}, 2, {U, F}, prepare_quantize, compute_quantize),
      make("QuantizePerTensor", PER_TENSOR, 1, {F}, 2, {U, F}, prepare_quantize, compute_quantize),
      make("GeluQuantizePerToken", PER_TOKEN, 1, {F}, 2, {U, F}, prepare_quantize, compute_gelu_quantize),
      make("GeluQuantizeLinear", STATIC, 2, {F, F}, 1, {U}, nullptr, compute_gelu_quantize),
      make("AddLayerNormQuantizePerToken", PER_TOKEN, 4, {F, F, F, F}, 3, {F, U, F}, prepare_norm,
           compute_add_norm_quantize),
      make("AddLayerNormQuantizeLinear", STATIC, 5, {F, F, F, F, F}, 2, {F, U}, prepare_norm, compute_add_norm_quantize),
      make("Gelu", STATIC, 1, {F}, 1, {F}, nullptr, compute_gelu),
      make("LayerNorm", STATIC, 3, {F, F, F}, 1, {F}, prepare_norm, compute_norm),
      attention_op("QuantizedAttention", PER_TOKEN, true),
      attention_op("QuantizedAttentionQK", PER_TOKEN, false),
      attention_op("QuantizedAttentionPerTensor", PER_TENSOR, true),
      attention_op("QuantizedAttentionPerTensorQK", PER_TENSOR, false),
      attention_op("QuantizedAttentionStatic", STATIC, true),
      attention_op("QuantizedAttentionStaticQK", STATIC, false),
      attention_op("QuantizedAttentionStaticBounded", STATIC, true, true),
  };
  size_t count = 0;
  for (const Op& op : all) ops[count++] = op;
  op_count = count;
}

OrtCustomOpDomain* domain = nullptr;
int lock = 0;
bool isa_was_set = false;

OrtStatus* register_ops(OrtSessionOptions* options, const OrtApiBase* base) {
  OrtApi table = base->GetApi(ORT_API_VERSION);
  if (table == nullptr) {
    table = base->GetApi(1);
    if (table == nullptr) return nullptr;
    ort.table = table;
    return fail("qexport's kernels need ONNX Runtime 1.17 or newer; use the file without the library");
  }
  ort.table = table;
  if (!isa_was_set) {
    if (int problem = choose_isa(wanted_by_environment()))
      return fail(
          problem == 1 ? "QEXPORT_ISA names no instruction set; known: scalar, avx2, avx-vnni, avx512-vnni, amx, neon, "
                         "dotprod, i8mm"
                       : "QEXPORT_ISA names an instruction set that this processor lacks; unset it");
  }
  if (domain == nullptr) {
    fill_ops();
    OrtCustomOpDomain* made = nullptr;
    QX_TRY(ort.CreateCustomOpDomain("ai.qexport", &made));
    for (size_t i = 0; i < op_count; ++i) QX_TRY(ort.CustomOpDomain_Add(made, &ops[i]));
    domain = made;
  }
  return ort.AddCustomOpDomain(options, domain);
}

}  // namespace
}  // namespace qexport

// On arm64 compilers leave the exchange to a function of libgcc, unless told otherwise.
#if defined(__aarch64__)
#define QEXPORT_PLAIN_ATOMICS __attribute__((target("no-outline-atomics")))
#else
#define QEXPORT_PLAIN_ATOMICS
#endif

QEXPORT_API QEXPORT_PLAIN_ATOMICS OrtStatus* RegisterCustomOps(OrtSessionOptions* options, const OrtApiBase* base) {
  while (__atomic_exchange_n(&qexport::lock, 1, __ATOMIC_ACQUIRE)) {}
  OrtStatus* status = qexport::register_ops(options, base);
  __atomic_store_n(&qexport::lock, 0, __ATOMIC_RELEASE);
  return status;
}

QEXPORT_API const char* qexport_kernels_version(void) { return QEXPORT_VERSION; }

QEXPORT_API const char* qexport_supported_isas(void) { return qexport::supported_isas(); }

QEXPORT_API const char* qexport_isa(void) { return qexport::current_isa()->name; }

QEXPORT_API int qexport_set_isa(const char* name) {
  const int problem = qexport::choose_isa(name);
  if (problem == 0) qexport::isa_was_set = true;
  return problem;
}
