"""The exporter's graph passes in their order, and the final ONNX model with its operator definitions.

`lower` turns the graph that torch.onnx made into one of `ai.onnx` and `ai.qexport` operators and proves that
every quantised module got its operator; `finish` writes it as a ModelProto for a runtime. No torch in here.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
import onnx.inliner
import onnx_ir as ir
import onnx_ir.passes.common as common
from onnxscript import optimizer, rewriter
from onnxscript.rewriter import MatchingTracer, MatchStatus, RewriteRuleSet

from qexport.errors import UnsupportedModelError
from qexport.graphs.config import Target
from qexport.graphs.operators import DOMAIN, OPERATORS, VERSION
from qexport.graphs.operators.fused import FUSED
from qexport.graphs.operators.quantize import QUANTIZERS
from qexport.graphs.rewrites import (
    EXPORT_DOMAIN,
    expand_row_quantize,
    first_token,
    fold_transpose,
    fuse_gelu,
    fuse_layer_norm,
    lower_attention,
    lower_embedding,
    lower_exact,
    lower_linear,
    lower_linear_weight_only,
    merge_heads,
    reorder_gelu,
    simplify_reshape,
)

__all__ = [
    "LOWERINGS", "PASSES", "Pass", "PassReport", "finish", "inline_functions", "layer_norm_outputs", "lower",
    "run_passes",
]  # fmt: skip

logger = logging.getLogger(__name__)

_SMALL = 4096  # elements; constants up to here may share one initializer, the decoding tables among them
_PARAMETERS = (".weight", ".bias", ".scale")  # endings of the names of parameters of modules
_FOLD_LIMIT = 1024  # elements; larger constants are never computed in advance, so packed weights stay packed
_UNNAMED = frozenset({**QUANTIZERS, **FUSED})  # operators that stand for no quantised module
_LAYER_NORMS = {
    "LayerNormalization": 1,
    "LayerNorm": 1,
    "AddLayerNormQuantizePerToken": 2,
    "AddLayerNormQuantizeLinear": 2,
}
"""Operators whose first output is that of a LayerNorm, and which input its weight is."""
_ROUNDS = 4  # a pass that still changes something after so many rounds is broken


@dataclass(frozen=True, slots=True)
class Pass:
    """One step over the graph."""

    name: str
    """Verb and object."""
    apply: Callable[[ir.Model], int]
    """Changes the model in place; returns how often it matched."""


@dataclass(frozen=True, slots=True)
class PassReport:
    """What one pass did."""

    name: str
    """Name of the pass."""
    matches: int
    """How often it matched, over all rounds."""
    milliseconds: float
    """Wall-clock time."""


def run_passes(model: ir.Model, passes: Iterable[Pass]) -> list[PassReport]:
    """Run each pass until it changes nothing, in place, and log one line for each.

    Raises:
        UnsupportedModelError: a pass does not come to rest.
    """
    reports = []
    for step in passes:
        start, total = time.perf_counter(), 0
        for _ in range(_ROUNDS):
            matches = step.apply(model)
            total += matches
            if not matches:
                break
        else:
            raise UnsupportedModelError(
                f"graph pass {step.name} did not come to rest in {_ROUNDS} rounds; please report this model"
            )
        reports.append(PassReport(step.name, total, (time.perf_counter() - start) * 1000))
        logger.info("%s: %d matches, %.0f ms", step.name, total, reports[-1].milliseconds)
    return reports


def _rules(rules: RewriteRuleSet) -> Callable[[ir.Model], int]:
    def apply(model: ir.Model) -> int:
        count: int = rules.apply_to_model(model)
        return count

    return apply


def _ir_pass(*passes: ir.passes.PassBase) -> Callable[[ir.Model], int]:
    def apply(model: ir.Model) -> int:
        return sum([bool(step(model).modified) for step in passes])

    return apply


def _fold_constants(model: ir.Model) -> int:
    """Compute small constants in advance, then drop what they replaced."""
    before = len(model.graph)
    optimizer.fold_constants_ir(
        model, onnx_shape_inference=True, input_size_limit=_FOLD_LIMIT, output_size_limit=_FOLD_LIMIT
    )
    rewriter.rewrite(model)
    return int(len(model.graph) != before)


def _merge_constants(model: ir.Model) -> int:
    """One initializer for equal small constants; parameters of modules stay apart, their names are read."""
    graph, seen, count = model.graph, dict[tuple[str, tuple[int, ...], bytes], ir.Value](), 0
    for value in list(graph.initializers.values()):
        tensor = value.const_value
        if tensor is None or tensor.size > _SMALL or (value.name or "").endswith(_PARAMETERS):
            continue
        array = np.asarray(tensor.numpy())
        first = seen.setdefault((array.dtype.str, array.shape, array.tobytes()), value)
        if first is not value and not value.is_graph_output():
            ir.convenience.replace_all_uses_with([value], [first])
            graph.initializers.pop(str(value.name))
            count += 1
    return count


def _shorten_names(model: ir.Model) -> int:
    """Short names for values and nodes; inputs, outputs, parameters and `ai.qexport` nodes keep theirs."""
    graph = model.graph
    kept = {str(value.name) for value in (*graph.inputs, *graph.outputs)}
    constants = [v for v in graph.initializers.values() if not str(v.name).endswith(_PARAMETERS)]
    for letter in ("constant ", "c"):  # twice, since a short name may still be another one's
        for number, value in enumerate(constants):
            value.name = f"{letter}{number}"
    kept |= set(graph.initializers)
    count = 0
    for node in graph:
        for index, value in enumerate(node.outputs):
            if str(value.name) not in kept and value.name:
                letter = "ln" if node.op_type in _LAYER_NORMS and not index else "v"
                value.name = f"{letter}{count}"
                count += 1
        if node.domain != DOMAIN or node.op_type in _UNNAMED:
            node.name = ""
    return 0


LOWERINGS = (
    Pass("lower-linear", _rules(lower_linear.rules)),
    Pass("lower-linear-weight-only", _rules(lower_linear_weight_only.rules)),
    Pass("lower-embedding", _rules(lower_embedding.rules)),
    Pass("lower-attention", _rules(lower_attention.rules)),
)
"""The passes that turn the export IR into operators."""

PASSES = (
    Pass("fold-transpose", _rules(fold_transpose.rules)),
    Pass("drop-identities", _ir_pass(common.IdentityEliminationPass())),
    Pass("fold-constants", _fold_constants),
    *LOWERINGS,
    Pass("drop-identities", _ir_pass(common.IdentityEliminationPass())),
    Pass(
        "lift-constants",
        _ir_pass(common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)),
    ),
    Pass("merge-constants", _merge_constants),
    Pass("merge-nodes", _ir_pass(common.CommonSubexpressionEliminationPass())),
    Pass("simplify-reshape", _rules(simplify_reshape.rules)),
    Pass("merge-heads", _rules(merge_heads.rules)),
    Pass("drop-identities", _ir_pass(common.IdentityEliminationPass())),
    Pass("reorder-gelu", _rules(reorder_gelu.rules)),
    Pass("fuse-gelu", _rules(fuse_gelu.rules)),
    Pass("fuse-layer-norm", _rules(fuse_layer_norm.rules)),
    Pass("lower-exact", _rules(lower_exact.rules)),
    Pass("first-token", first_token.apply),
    Pass("drop-unused", _ir_pass(common.RemoveUnusedNodesPass(), common.RemoveUnusedOpsetsPass())),
    Pass("drop-metadata", _ir_pass(common.ClearMetadataAndDocStringPass())),
    Pass("shorten-names", _shorten_names),
)
"""Every pass, in order."""


def lower(model: ir.Model, expected: Mapping[str, str]) -> list[PassReport]:
    """Run all passes in place and account for every quantised module.

    Args:
        model: what torch.onnx made; nodes of domain `qexport` where quantised modules are.
        expected: path of each quantised module that ran -> operator type of its export IR node.
    Raises:
        UnsupportedModelError: a node was not lowered, with the reason its rule gave, or a module is missing.
    """
    reports = run_passes(model, PASSES)
    left = [node for node in model.graph if node.domain == EXPORT_DOMAIN]
    if left:
        name = left[0].attributes.get_string("name", left[0].name or "")
        raise UnsupportedModelError(
            f"{name}: no rewrite rule lowered this {left[0].op_type}: {_reason(model, left[0])}; "
            "the student cannot be exported as it is"
        )
    found = {node.name for node in model.graph if node.domain == DOMAIN}
    missing = sorted(set(expected) - found)
    if missing:
        raise UnsupportedModelError(
            f"{missing[0]}: this {expected[missing[0]]} is in the student but not in the graph "
            f"({len(missing)} of {len(expected)} modules missing); please report this model"
        )
    return reports


def _reason(model: ir.Model, node: ir.Node) -> str:
    """Why the rules for this kind of node did not match: the failure that a check reported."""
    weight_only = node.attributes.get_string("act", "") == "none"
    linear = lower_linear_weight_only if weight_only else lower_linear
    tables = (linear, lower_embedding, lower_attention, lower_exact)
    tracer = MatchingTracer()
    for table in tables:
        table.rules.apply_to_model(model, tracer=tracer)
    reasons = [
        entry.match_result.reason
        for entries in tracer.best_matches_map.values()
        for entry in entries
        if entry.root_node is node and entry.status is MatchStatus.CONDITION_FAILED
    ]
    return reasons[-1] if reasons else "the node has the wrong inputs"


def layer_norm_outputs(proto: onnx.ModelProto) -> list[dict[str, str]]:
    """For `verify --layers`: torch module path and ONNX value name of every LayerNorm, in graph order."""
    found = []
    for node in proto.graph.node:
        if node.op_type in _LAYER_NORMS:
            weight = node.input[_LAYER_NORMS[node.op_type]]
            if weight.endswith(".weight"):
                found.append({"module": weight.removesuffix(".weight"), "value": node.output[0]})
    return found


def finish(model: ir.Model, target: Target, metadata: Mapping[str, str], version: str) -> onnx.ModelProto:
    """The file's content: definitions of the operators that are used, versions, metadata; checked.

    Args:
        model: a lowered model.
        target: opset, IR version, and whether bodies are written in place.
        metadata: for `metadata_props`.
        version: qexport's version, the producer's.
    Raises:
        UnsupportedModelError: onnx.checker, with full shape inference, refuses the result.
    """
    proto = ir.serde.serialize_model(model)
    proto.ir_version = target.ir_version
    proto.producer_name, proto.producer_version = "qexport", version
    used = Counter(node.op_type for node in proto.graph.node if node.domain == DOMAIN)
    proto.functions.extend(_compact(OPERATORS[name].function(target.opset)) for name in sorted(used))
    del proto.opset_import[:]
    proto.opset_import.append(onnx.helper.make_opsetid("", target.opset))
    if used:
        proto.opset_import.append(onnx.helper.make_opsetid(DOMAIN, VERSION))
    _keep_few_shapes(proto.graph)
    if target.inline and used:
        proto = inline_functions(proto, other_engines=target.other_engines)
    onnx.helper.set_model_props(proto, dict(metadata))
    try:
        onnx.checker.check_model(proto, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        words = " ".join(str(error).split())[:300]
        raise UnsupportedModelError(
            f"the exported graph is not valid ONNX, please report this model: {words}"
        ) from error
    return proto


def _keep_few_shapes(graph: onnx.GraphProto) -> None:
    """Drop stored shapes, but for those that ONNX Runtime needs to fuse Add with LayerNorm."""
    wanted = {
        name
        for node in graph.node
        if node.op_type == "Range" or node.op_type.endswith(("MatMul", "Gather"))
        for name in node.output
    }
    kept = [value for value in graph.value_info if value.name in wanted]
    del graph.value_info[:]
    graph.value_info.extend(kept)


def _compact(function: onnx.FunctionProto) -> onnx.FunctionProto:
    """The function without names of nodes, which ONNX does not need."""
    for node in function.node:
        node.ClearField("name")
    return function


def inline_functions(proto: onnx.ModelProto, *, other_engines: bool = True) -> onnx.ModelProto:
    """Bodies in place of calls; tables and constants that the bodies share are stored once.

    Args:
        proto: a model with functions.
        other_engines: write operators out that engines other than ONNX Runtime lack.
    """
    expand = (Pass("expand-row-quantize", _rules(expand_row_quantize.rules)),) if other_engines else ()
    inlined = ir.serde.deserialize_model(onnx.inliner.inline_local_functions(proto))
    run_passes(
        inlined,
        (
            Pass("drop-identities", _ir_pass(common.IdentityEliminationPass())),
            *expand,
            Pass("lift-constants", _ir_pass(common.LiftConstantsToInitializersPass(True, 0))),
            Pass("merge-constants", _merge_constants),
            Pass("merge-nodes", _ir_pass(common.CommonSubexpressionEliminationPass())),
            Pass("drop-unused", _ir_pass(common.RemoveUnusedNodesPass(), common.RemoveUnusedOpsetsPass())),
            Pass("shorten-names", _shorten_names),
        ),
    )
    result = ir.serde.serialize_model(inlined)
    result.ir_version = proto.ir_version
    return result
