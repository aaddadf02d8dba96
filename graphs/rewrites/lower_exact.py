"""Lower GELU and LayerNorm that no fusion took to operators of their own.

    before   y = qexport.Gelu(x), or y = qexport.LayerNorm(x, gamma, beta)
    after    y = ai.qexport.Gelu(x), or y = ai.qexport.LayerNorm(x, gamma, beta)

When     after the fusions: the last LayerNorm of a model, and all of both where codes have fewer than 8 bits.
Parity   equal bits to qexport.training.exact: one float32 operation for each of its steps.
"""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
from onnxscript.rewriter import MatchResult, RewriteRule, RewriteRuleSet

from qexport.graphs.operators import DOMAIN, VERSION
from qexport.graphs.rewrites import EXPORT_DOMAIN
from qexport.graphs.rewrites.initializers import floats

__all__ = ["rules"]


def _before_gelu(op: Any, x: Any) -> Any:
    return op.Gelu(x, _domain=EXPORT_DOMAIN)


def _after_gelu(op: Any, x: ir.Value, **_: Any) -> Any:
    return op.Gelu(x, _domain=DOMAIN, _version=VERSION)


def _before_layer_norm(op: Any, x: Any, gamma: Any, beta: Any) -> Any:
    return op.LayerNorm(x, gamma, beta, _domain=EXPORT_DOMAIN, _allow_other_attributes=True, _outputs=["y"])


def _applies_layer_norm(context: Any, gamma: ir.Value, beta: ir.Value, **_: Any) -> MatchResult:
    result = MatchResult()
    for value in (gamma, beta):
        width = value.shape[0] if value.shape is not None and len(value.shape) == 1 else None
        if not isinstance(width, int) or floats(value, ((width,),)) is None:
            return result.fail("gamma and beta must be finite float32 initializers [K]", value)
    return result


def _after_layer_norm(op: Any, x: ir.Value, gamma: ir.Value, beta: ir.Value, y: ir.Value, **_: Any) -> Any:
    node = y.producer()
    assert node is not None
    epsilon = node.attributes.get_float("epsilon")
    return op.LayerNorm(x, gamma, beta, epsilon=epsilon, _domain=DOMAIN, _version=VERSION)


rules = RewriteRuleSet(
    [
        RewriteRule(_before_gelu, _after_gelu, name="lower-gelu"),
        RewriteRule(_before_layer_norm, _after_layer_norm, _applies_layer_norm, name="lower-layer-norm"),
    ]
)
"""The rules."""
