"""Lower a quantised linear layer to an integer product with a packed weight.

    before   qexport.QuantLinear(x, codes, w_scale, bias[, a_scale])
    after    a, s = quantise x (see activation.py)
             ai.qexport.TernaryMatMul(a, s, z, pack(codes), w_scale, bias), or its sibling for the bits;
             z is 128, or the zero point of an asymmetric activation

Shapes   x float32 [..., K], codes int8 [N, K], w_scale float32 [N] or [1], bias float32 [N], a_scale scalar.
Parity   equal integers; float32 rounding as in the operator's contract, docs/operators.
Names    `<module>.weight`, `<module>.scale`, `<module>.bias`; the node has the module's path.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from onnxscript.rewriter import MatchResult, RewriteRule, RewriteRuleSet

from qexport.formats import ACTIVATION_MODES
from qexport.graphs.operators import DOMAIN, VERSION, matmul_name
from qexport.graphs.packing import BITS, pack
from qexport.graphs.rewrites import EXPORT_DOMAIN
from qexport.graphs.rewrites.activation import (
    quantize_activation,
    quantize_asymmetric,
    width_problem,
    zero_point,
)
from qexport.graphs.rewrites.initializers import constant, floats, initializer

__all__ = ["check_weight", "module_of", "rules"]


def module_of(value: ir.Value) -> tuple[ir.Node, str]:
    """The node that makes `value` and the path of the module behind it."""
    node = value.producer()
    assert node is not None
    return node, node.attributes.get_string("name", "")


def check_weight(
    result: MatchResult, codes: ir.Value, w_scale: ir.Value, bits: int, *, per_matrix: bool
) -> MatchResult:
    """Fail `result` unless the codes are an int8 matrix with one float32 scale a row, or one in all."""
    array = constant(codes)
    if array is None or array.dtype != np.int8 or array.ndim != 2:
        return result.fail("codes must be an int8 initializer [N, K]", codes)
    shapes: tuple[tuple[int, ...], ...] = ((array.shape[0],), (1,)) if per_matrix else ((array.shape[0],),)
    if floats(w_scale, shapes) is None:
        return result.fail(
            f"the weight scale must be a finite float32 initializer of shape {shapes}", w_scale
        )
    if bits not in BITS:
        return result.fail(f"weights must have 1 to 8 bits, got {bits}", codes)
    return result


def _dynamic(op: Any, x: Any, codes: Any, w_scale: Any, bias: Any) -> Any:
    return op.QuantLinear(
        x, codes, w_scale, bias, _domain=EXPORT_DOMAIN, _allow_other_attributes=True, _outputs=["y"]
    )


def _static(op: Any, x: Any, codes: Any, w_scale: Any, bias: Any, a_scale: Any) -> Any:
    return op.QuantLinear(
        x, codes, w_scale, bias, a_scale, _domain=EXPORT_DOMAIN, _allow_other_attributes=True, _outputs=["y"]
    )


def _applies(
    context: Any,
    y: ir.Value,
    codes: ir.Value,
    w_scale: ir.Value,
    bias: ir.Value,
    a_scale: ir.Value | None = None,
    **_: Any,
) -> MatchResult:
    result = MatchResult()
    node, _name = module_of(y)
    act = node.attributes.get_string("act", "")
    if act not in ACTIVATION_MODES:
        return result.fail(f"act must be one of {', '.join(ACTIVATION_MODES)}, got '{act}'", node)
    if problem := width_problem(act, node.attributes.get_int("a_bits", 8)):
        return result.fail(problem, node)
    if node.attributes.get_int("asymmetric", 0):
        if act == "dynamic-token":
            return result.fail("an asymmetric activation has one range for a tensor, not one a token", node)
        zero, bits = node.attributes.get_int("a_zero", 0), node.attributes.get_int("a_bits", 8)
        if not 0 <= zero < 1 << bits:
            return result.fail(f"the zero point must be in 0..{(1 << bits) - 1}, got {zero}", node)
    if (act == "static") != (a_scale is not None):
        return result.fail("a_scale must be given for static activations, and only for them", node)
    if a_scale is not None:
        stored = floats(a_scale, ((),))
        if stored is None or stored <= 0:
            return result.fail("a_scale must be a float32 scalar initializer greater than 0", a_scale)
    check_weight(result, codes, w_scale, node.attributes.get_int("w_bits", 0), per_matrix=True)
    array = constant(codes)
    if result and array is not None and floats(bias, ((array.shape[0],),)) is None:
        return result.fail("bias must be a finite float32 initializer [N]", bias)
    return result


def _after(
    op: Any,
    y: ir.Value,
    x: ir.Value,
    codes: ir.Value,
    w_scale: ir.Value,
    bias: ir.Value,
    a_scale: ir.Value | None = None,
    **_: Any,
) -> ir.Value:
    node, name = module_of(y)
    graph, bits = node.graph, node.attributes.get_int("w_bits")
    array = constant(codes)
    assert isinstance(graph, ir.Graph) and array is not None
    clip, a_bits = node.attributes.get_float("clip", 0.0), node.attributes.get_int("a_bits", 8)
    if node.attributes.get_int("asymmetric", 0):
        stored = node.attributes.get_int("a_zero", 0)
        a, scale, zero = quantize_asymmetric(op, graph, x, clip, a_scale, stored, f"{name}.a", bits=a_bits)
    else:
        act, zero = node.attributes.get_string("act"), zero_point(graph)
        a, scale = quantize_activation(op, graph, x, act, clip, a_scale, f"{name}.a", bits=a_bits)
    weight = initializer(graph, f"{name}.weight", pack(array, bits))
    lowered: ir.Value = op.op(
        matmul_name(bits),
        a,
        scale,
        zero,
        weight,
        w_scale,
        bias,
        _domain=DOMAIN,
        _version=VERSION,
        _name=name,
        K=array.shape[1],
    )
    return lowered


rules = RewriteRuleSet(
    [
        RewriteRule(_dynamic, _after, _applies, name="lower-linear"),
        RewriteRule(_static, _after, _applies, name="lower-linear-static"),
    ]
)
"""The rule, once for each number of inputs."""
