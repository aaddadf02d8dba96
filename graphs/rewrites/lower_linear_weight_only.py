"""Lower a linear layer with a low-bit weight and a float activation: the file is small, the product is float.

    before   qexport.QuantLinear(x, codes, w_scale, bias), act = "none"
    after    Add(MatMul(x, Transpose(ai.qexport.TernaryGather(0..N-1, pack(codes), w_scale))), bias)

Shapes   x float32 [..., K], codes int8 [N, K], w_scale float32 [N] or [1], bias float32 [N].
Parity   the same real number; float32 rounding of a product of K terms.
Why      the gather of all rows has no run-time input, so a runtime that folds constants unpacks at load.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from onnxscript.rewriter import MatchResult, RewriteRule, RewriteRuleSet

from qexport.graphs.operators import DOMAIN, VERSION, gather_name
from qexport.graphs.packing import pack
from qexport.graphs.rewrites import EXPORT_DOMAIN
from qexport.graphs.rewrites.initializers import constant, floats, initializer
from qexport.graphs.rewrites.lower_linear import check_weight, module_of

__all__ = ["rules"]


def _before(op: Any, x: Any, codes: Any, w_scale: Any, bias: Any) -> Any:
    return op.QuantLinear(
        x, codes, w_scale, bias, _domain=EXPORT_DOMAIN, _allow_other_attributes=True, _outputs=["y"]
    )


def _applies(
    context: Any, y: ir.Value, codes: ir.Value, w_scale: ir.Value, bias: ir.Value, **_: Any
) -> MatchResult:
    result = MatchResult()
    node, _name = module_of(y)
    if node.attributes.get_string("act", "") != "none":
        return result.fail("act must be 'none'", node)
    check_weight(result, codes, w_scale, node.attributes.get_int("w_bits", 0), per_matrix=True)
    array = constant(codes)
    if result and array is not None and floats(bias, ((array.shape[0],),)) is None:
        return result.fail("bias must be a finite float32 initializer [N]", bias)
    return result


def _after(
    op: Any, y: ir.Value, x: ir.Value, codes: ir.Value, w_scale: ir.Value, bias: ir.Value, **_: Any
) -> ir.Value:
    node, name = module_of(y)
    graph, bits = node.graph, node.attributes.get_int("w_bits")
    array = constant(codes)
    assert isinstance(graph, ir.Graph) and array is not None
    n, k = array.shape
    first = initializer(graph, "zero", np.array(0, np.int64))
    step = initializer(graph, "one", np.array(1, np.int64))
    rows = op.Range(first, initializer(graph, f"rows_{n}", np.array(n, np.int64)), step)
    weight = op.op(
        gather_name(bits),
        rows,
        initializer(graph, f"{name}.weight", pack(array, bits)),
        w_scale,
        _domain=DOMAIN,
        _version=VERSION,
        _name=name,
        K=k,
    )
    lowered: ir.Value = op.Add(op.MatMul(x, op.Transpose(weight, perm=[1, 0])), bias)
    return lowered


rules = RewriteRuleSet([RewriteRule(_before, _after, _applies, name="lower-linear-weight-only")])
"""The rule."""
