"""Fuse GELU with the quantisation that follows it.

    before   y = Mul(Mul(x, Add(Erf(Div(x, sqrt 2)), 1)), 0.5)
             q, scale = ai.qexport.QuantizePerToken(y), or q = QuantizeLinear(Clip(y, -l, l), scale, 128)
    after    q, scale = ai.qexport.GeluQuantizePerToken(x), or q = ai.qexport.GeluQuantizeLinear(x, scale)

When     nothing else reads y, and the limit l of a static quantisation is 127 * scale.
Parity   equal bits on a runtime that inlines the operator: its body is what was matched.
Why      y is four times as wide as the other activations; a kernel need not write and read it as float32.
"""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
from onnxscript.rewriter import MatchResult, RewriteRule, RewriteRuleSet

from qexport.graphs.operators import DOMAIN
from qexport.graphs.operators.fused import ROOT_OF_TWO
from qexport.graphs.rewrites.activation import is_symmetric, static_quantizer
from qexport.graphs.rewrites.initializers import constant

__all__ = ["rules"]


def _gelu(op: Any, x: Any, root: Any, one: Any, half: Any) -> Any:
    return op.Mul(op.Mul(x, op.Add(op.Erf(op.Div(x, root)), one)), half)


def _before_per_token(op: Any, x: Any, root: Any, one: Any, half: Any) -> Any:
    return op.QuantizePerToken(
        _gelu(op, x, root, one, half), _domain=DOMAIN, _allow_other_attributes=True, _outputs=["q", "scale"]
    )


def _before_static(
    op: Any, x: Any, root: Any, one: Any, half: Any, low: Any, high: Any, scale: Any, zero: Any
) -> Any:
    return static_quantizer(op, _gelu(op, x, root, one, half), low, high, scale, zero)


def _applies(context: Any, root: ir.Value, one: ir.Value, half: ir.Value, **_: Any) -> MatchResult:
    result = MatchResult()
    for value, expected in ((root, ROOT_OF_TWO), (one, 1.0), (half, 0.5)):
        array = constant(value)
        if array is None or array.size != 1 or array.item() != expected:
            return result.fail(f"this constant of GELU must be {expected:.9g}", value)
    return result


def _applies_static(context: Any, **values: Any) -> MatchResult:
    result = _applies(context, **values)
    return is_symmetric(result, **values) if result else result


def _after_per_token(op: Any, x: ir.Value, q: ir.Value, **_: Any) -> Any:
    node = q.producer()
    assert node is not None
    clip = node.attributes.get_float("clip")
    return op.GeluQuantizePerToken(x, clip=clip, _domain=DOMAIN, _version=1, _outputs=2)


def _after_static(op: Any, x: ir.Value, scale: ir.Value, **_: Any) -> Any:
    return op.GeluQuantizeLinear(x, scale, _domain=DOMAIN, _version=1)


rules = RewriteRuleSet(
    [
        RewriteRule(_before_per_token, _after_per_token, _applies, name="fuse-gelu"),
        RewriteRule(_before_static, _after_static, _applies_static, name="fuse-gelu-static"),
    ]
)
"""The rule, for scales found at run time and for stored ones."""
