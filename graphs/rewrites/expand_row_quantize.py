"""Write a quantisation with a computed scale for each row out in float operators, for --inline.

    before   QuantizeLinear(x, scale, ConstantOfShape(z), axis = 0)
    after    Cast(Clip(Add(Round(Div(x, Unsqueeze(scale, 1))), z), low, high))

Shapes   x float32 [T, C], scale float32 [T], z a uint8 or int8 number; low..high is the range of its type.
Parity   equal bits: the same division, rounding half to even, and saturation.
Why      OpenVINO 2026.4 turns this QuantizeLinear into a FakeQuantize that broadcasts scales along columns,
         and fails at run time. ONNX Runtime is faster with the first form, so files with functions keep it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from onnxscript.rewriter import MatchResult, RewriteRule, RewriteRuleSet

from qexport.graphs.rewrites.initializers import constant, initializer

__all__ = ["rules"]


def _before(op: Any, x: Any, scale: Any, like: Any, value: Any) -> Any:
    zero = op.ConstantOfShape(like, value=value, _outputs=["zero"])
    return op.QuantizeLinear(x, scale, zero, axis=0, _allow_other_attributes=True)


def _applies(context: Any, scale: ir.Value, value: ir.Attr, **_: Any) -> MatchResult:
    result = MatchResult()
    if constant(scale) is not None:
        return result.fail("a stored scale is understood by every engine", scale)
    if value.as_tensor().dtype not in (ir.DataType.UINT8, ir.DataType.INT8):
        return result.fail("the zero point must be uint8 or int8", scale)
    return result


def _after(op: Any, x: ir.Value, scale: ir.Value, zero: ir.Value, value: ir.Attr, **_: Any) -> ir.Value:
    node = zero.producer()
    assert node is not None
    graph, offset = node.graph, value.as_tensor().numpy().reshape(())
    assert isinstance(graph, ir.Graph)
    limits = np.iinfo(offset.dtype)

    def number(content: int) -> ir.Value:
        return initializer(graph, f"float_{content}", np.array(content, np.float32))

    column = op.Unsqueeze(scale, initializer(graph, "last_axis", np.array([1], np.int64)))
    codes = op.Add(op.Round(op.Div(x, column)), number(int(offset)))
    bounded = op.Clip(codes, number(limits.min), number(limits.max))
    expanded: ir.Value = op.Cast(bounded, to=int(value.as_tensor().dtype))
    return expanded


rules = RewriteRuleSet([RewriteRule(_before, _after, _applies, name="expand-row-quantize")])
"""The rule."""
