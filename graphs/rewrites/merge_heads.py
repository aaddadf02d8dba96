"""Remove a split into heads that is joined again at once.

    before   y = Reshape(Transpose(Transpose(Reshape(x, [0, 0, H, D]), 0213), 0213), [0, 0, H * D])
    after    y = x

Shapes   x and y float32 [B, S, H * D].
Parity   equal bits: no element moves.
Why      an encoder splits the heads before attention and joins them after it, and lower_attention.py does the
         opposite beside it, since QuantizedAttention takes what a linear layer writes.
"""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
from onnxscript.rewriter import MatchResult, RewriteRule, RewriteRuleSet

from qexport.graphs.rewrites.initializers import constant

__all__ = ["rules"]

SWAP = [0, 2, 1, 3]


def _before(op: Any, x: Any, split: Any, join: Any) -> Any:
    heads = op.Reshape(x, split, _allow_other_attributes=True)
    again = op.Transpose(op.Transpose(heads, perm=SWAP), perm=SWAP)
    return op.Reshape(again, join, _allow_other_attributes=True)


def _applies(context: Any, x: ir.Value, split: ir.Value, join: ir.Value, **_: Any) -> MatchResult:
    result = MatchResult()
    width = x.shape[2] if x.shape is not None and len(x.shape) == 3 else None
    if not isinstance(width, int):
        return result.fail("x must be [B, S, K] with a known K", x)
    apart, together = (constant(value) for value in (split, join))
    if apart is None or apart.size != 4 or apart[:2].tolist() != [0, 0]:
        return result.fail("the split must be [0, 0, heads, width]", split)
    if together is None or together.tolist() not in ([0, 0, width], [0, 0, -1]):
        return result.fail(f"the join must be [0, 0, {width}]", join)
    return result


def _after(op: Any, x: ir.Value, **_: Any) -> ir.Value:
    # an Identity, since the rewriter gives a value that replaces another one that one's name
    kept: ir.Value = op.Identity(x)
    return kept


rules = RewriteRuleSet([RewriteRule(_before, _after, _applies, name="merge-heads")])
"""The rule."""
