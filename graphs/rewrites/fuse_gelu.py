"""Fuse GELU with the quantisation that follows it.

    before   y = qexport.Gelu(x)
             q, scale = ai.qexport.QuantizePerToken(y), or q = QuantizeLinear(Clip(y, -l, l), scale, 128)
    after    q, scale = ai.qexport.GeluQuantizePerToken(x), or q = ai.qexport.GeluQuantizeLinear(x, scale)

When     nothing else reads y, and the limit l of a static quantisation is 127 * scale; lower_exact.py
         takes the others.
Parity   equal bits: the two operators' bodies one after the other.
Why      y is four times as wide as the other activations; a kernel need not write and read it as float32.
"""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
from onnxscript.rewriter import MatchResult, RewriteRule, RewriteRuleSet

from qexport.graphs.operators import DOMAIN, VERSION
from qexport.graphs.rewrites import EXPORT_DOMAIN
from qexport.graphs.rewrites.activation import is_symmetric, static_quantizer

__all__ = ["rules"]


def _gelu(op: Any, x: Any) -> Any:
    return op.Gelu(x, _domain=EXPORT_DOMAIN)


def _before_per_token(op: Any, x: Any) -> Any:
    return op.QuantizePerToken(
        _gelu(op, x), _domain=DOMAIN, _allow_other_attributes=True, _outputs=["q", "scale"]
    )


def _before_static(op: Any, x: Any, low: Any, high: Any, scale: Any, zero: Any) -> Any:
    return static_quantizer(op, _gelu(op, x), low, high, scale, zero)


def _applies_static(context: Any, **values: Any) -> MatchResult:
    return is_symmetric(MatchResult(), **values)


def _after_per_token(op: Any, x: ir.Value, q: ir.Value, **_: Any) -> Any:
    node = q.producer()
    assert node is not None
    clip = node.attributes.get_float("clip")
    return op.GeluQuantizePerToken(x, clip=clip, _domain=DOMAIN, _version=VERSION, _outputs=2)


def _after_static(op: Any, x: ir.Value, scale: ir.Value, **_: Any) -> Any:
    return op.GeluQuantizeLinear(x, scale, _domain=DOMAIN, _version=VERSION)


rules = RewriteRuleSet(
    [
        RewriteRule(_before_per_token, _after_per_token, name="fuse-gelu"),
        RewriteRule(_before_static, _after_static, _applies_static, name="fuse-gelu-static"),
    ]
)
"""The rule, for scales found at run time and for stored ones."""
