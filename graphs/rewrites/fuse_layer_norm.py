"""Fuse an addition, LayerNorm and the quantisation that follows.

    before   y = qexport.LayerNorm(Add(x, residual), gamma, beta)
             q, scale = ai.qexport.QuantizePerToken(y), or q = QuantizeLinear(Clip(y, -l, l), scale, 128)
    after    y, q, scale = ai.qexport.AddLayerNormQuantizePerToken(x, residual, gamma, beta), or
             y, q = ai.qexport.AddLayerNormQuantizeLinear(x, residual, gamma, beta, scale)

Shapes   x float32 [B, S, K], residual the same or [1, S, K] (positions); gamma, beta [K]. The two terms of
         the sum are exchanged where that makes it so.
When     nothing else reads the sum, and the limit l of a static quantisation is 127 * scale. y stays for its
         other readers: the next residual. lower_exact.py takes the others.
Parity   equal bits: the three operators' bodies one after the other.
"""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
from onnxscript.rewriter import MatchResult, RewriteRule, RewriteRuleSet

from qexport.graphs.operators import DOMAIN, VERSION
from qexport.graphs.rewrites import EXPORT_DOMAIN
from qexport.graphs.rewrites.activation import is_symmetric, static_quantizer
from qexport.graphs.rewrites.initializers import floats

__all__ = ["rules"]


def _layer_norm(op: Any, a: Any, b: Any, gamma: Any, beta: Any) -> Any:
    return op.LayerNorm(
        op.Add(a, b), gamma, beta, _domain=EXPORT_DOMAIN, _allow_other_attributes=True, _outputs=["y"]
    )


def _before_per_token(op: Any, a: Any, b: Any, gamma: Any, beta: Any) -> Any:
    y = _layer_norm(op, a, b, gamma, beta)
    q, scale = op.QuantizePerToken(
        y, _domain=DOMAIN, _allow_other_attributes=True, _outputs=["q", "found_scale"]
    )
    return y, q, scale


def _before_static(
    op: Any, a: Any, b: Any, gamma: Any, beta: Any, low: Any, high: Any, scale: Any, zero: Any
) -> Any:
    y = _layer_norm(op, a, b, gamma, beta)
    return y, static_quantizer(op, y, low, high, scale, zero)


def _terms(a: ir.Value, b: ir.Value) -> tuple[ir.Value, ir.Value] | None:
    """The terms as (x, residual), or None when their shapes do not fit."""
    for x, residual in ((a, b), (b, a)):
        if x.shape is None or residual.shape is None or len(x.shape) != 3 or len(residual.shape) != 3:
            return None
        if residual.shape in (x.shape, ir.Shape([1, *x.shape[1:]])):
            return x, residual
    return None


def _applies(
    context: Any, a: ir.Value, b: ir.Value, gamma: ir.Value, beta: ir.Value, y: ir.Value, **_: Any
) -> MatchResult:
    result, node = MatchResult(), y.producer()
    assert node is not None
    terms = _terms(a, b)
    if terms is None:
        return result.fail("the terms must be [B, S, K], or one of them [1, S, K]", node)
    width = terms[0].shape[2] if terms[0].shape is not None else None
    if not isinstance(width, int):
        return result.fail("the width must be known", terms[0])
    for value in (gamma, beta):
        if floats(value, ((width,),)) is None:
            return result.fail(f"gamma and beta must be finite float32 initializers [{width}]", value)
    return result


def _applies_static(context: Any, **values: Any) -> MatchResult:
    result = _applies(context, **values)
    return is_symmetric(result, **values) if result else result


def _inputs(a: ir.Value, b: ir.Value, gamma: ir.Value, beta: ir.Value) -> tuple[ir.Value, ...]:
    terms = _terms(a, b)
    assert terms is not None
    return (*terms, gamma, beta)


def _epsilon(y: ir.Value) -> float:
    node = y.producer()
    assert node is not None
    return node.attributes.get_float("epsilon")


def _after_per_token(
    op: Any, a: ir.Value, b: ir.Value, gamma: ir.Value, beta: ir.Value, y: ir.Value, q: ir.Value, **_: Any
) -> Any:
    node = q.producer()
    assert node is not None
    return op.AddLayerNormQuantizePerToken(
        *_inputs(a, b, gamma, beta),
        epsilon=_epsilon(y),
        clip=node.attributes.get_float("clip"),
        _domain=DOMAIN,
        _version=VERSION,
        _outputs=3,
    )


def _after_static(
    op: Any,
    a: ir.Value,
    b: ir.Value,
    gamma: ir.Value,
    beta: ir.Value,
    y: ir.Value,
    scale: ir.Value,
    **_: Any,
) -> Any:
    return op.AddLayerNormQuantizeLinear(
        *_inputs(a, b, gamma, beta), scale, epsilon=_epsilon(y), _domain=DOMAIN, _version=VERSION, _outputs=2
    )


rules = RewriteRuleSet(
    [
        RewriteRule(_before_per_token, _after_per_token, _applies, name="fuse-layer-norm"),
        RewriteRule(_before_static, _after_static, _applies_static, name="fuse-layer-norm-static"),
    ]
)
"""The rule, for scales found at run time and for stored ones."""
