"""Write GELU in the order that ONNX Runtime recognises and replaces by one kernel.

    before   Mul(x, Mul(0.5, Add(Erf(Div(x, sqrt 2)), 1)))
    after    Mul(Mul(x, Add(Erf(Div(x, sqrt 2)), 1)), 0.5)

Parity   equal bits, since a product with 0.5 only changes the exponent (subnormal results aside).
Why      torch.onnx writes the first form; ONNX Runtime's fusion looks for the second (1.16 to 1.32).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from onnxscript.rewriter import MatchResult, RewriteRule, RewriteRuleSet

from qexport.graphs.rewrites.initializers import constant

__all__ = ["rules"]


def _before(op: Any, x: Any, root: Any, one: Any, half: Any) -> Any:
    return op.Mul(x, op.Mul(half, op.Add(op.Erf(op.Div(x, root)), one)))


def _applies(context: Any, root: ir.Value, one: ir.Value, half: ir.Value, **_: Any) -> MatchResult:
    result = MatchResult()
    for value, expected in ((root, np.sqrt(2)), (one, 1.0), (half, 0.5)):
        array = constant(value)
        if array is None or array.size != 1 or not np.isclose(float(array.reshape(())), expected, rtol=1e-6):
            return result.fail(f"this constant of GELU must be {expected:.6g}", value)
    return result


def _after(op: Any, x: ir.Value, root: ir.Value, one: ir.Value, half: ir.Value, **_: Any) -> ir.Value:
    reordered: ir.Value = op.Mul(op.Mul(x, op.Add(op.Erf(op.Div(x, root)), one)), half)
    return reordered


rules = RewriteRuleSet([RewriteRule(_before, _after, _applies, name="reorder-gelu")])
"""The rule."""
