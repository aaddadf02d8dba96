"""Replace a computed target shape by a constant one that copies the leading axes.

    before   Reshape(x, Concat(Shape(u)[0:1], Shape(u)[1:2], tail)), x [batch, sequence, ...]
    after    Reshape(x, [0, 0, tail])

Parity   equal bits; 0 copies the axis of x, which is the same symbolic size.
Why      splitting and joining heads is then free of shape arithmetic, and shape inference sees the ranks.
"""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
from onnxscript.rewriter import MatchResult, RewriteRule, RewriteRuleSet

from qexport.graphs.rewrites.initializers import constant, target_shape

__all__ = ["rules"]


def _before(op: Any, x: Any, shape: Any) -> Any:
    return op.Reshape(x, shape, _allow_other_attributes=True, _outputs=["y"])


def _target(x: ir.Value, shape: ir.Value) -> list[int] | str:
    """The constant target, or why there is none."""
    concat = shape.producer()
    if concat is None or concat.op_type != "Concat":
        return "the target shape is not a Concat"
    if x.shape is None:
        return "the rank of x is not known"
    target: list[int] = []
    for axis, part in enumerate(concat.inputs):
        array = constant(part)
        if array is not None:
            sizes = [int(size) for size in array.reshape(-1)]
            if 0 in sizes:
                return "the target has an axis of size 0"
            target.extend(sizes)
            continue
        node = part.producer() if part is not None else None
        source = node.inputs[0] if node is not None and node.op_type == "Shape" else None
        if node is None or source is None or source.shape is None:
            return f"axis {axis} is not the size of another value"
        start = node.attributes.get_int("start", 0)
        if node.attributes.get_int("end", len(source.shape)) != start + 1 or len(target) != axis:
            return f"axis {axis} is not a single size"
        if axis >= len(x.shape) or x.shape[axis] != source.shape[start]:
            return f"axis {axis} of x is not known to have the same size"
        target.append(0)
    if 0 not in target:
        return "nothing is computed"
    return target


def _applies(context: Any, x: ir.Value, shape: ir.Value, y: ir.Value, **_: Any) -> MatchResult:
    result, target = MatchResult(), _target(x, shape)
    return result.fail(target, shape) if isinstance(target, str) else result


def _after(op: Any, x: ir.Value, shape: ir.Value, y: ir.Value, **_: Any) -> ir.Value:
    node, target = y.producer(), _target(x, shape)
    assert node is not None and isinstance(node.graph, ir.Graph) and not isinstance(target, str)
    reshaped: ir.Value = op.Reshape(x, target_shape(node.graph, target))
    return reshaped


rules = RewriteRuleSet([RewriteRule(_before, _after, _applies, name="simplify-reshape")])
"""The rule."""
