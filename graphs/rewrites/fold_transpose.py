"""Fold the transpose of a weight into the stored weight, under the weight's own name.

    before   Transpose(w), w an initializer
    after    Identity(w'), stored transposed; named as w when nothing else reads w

Parity   equal bits.
Why      torch stores a linear layer's weight [N, K], MatMul reads [K, N]; generic constant folding would lose
         the name, which tools show and the inventory classifies by.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from onnxscript.rewriter import MatchResult, RewriteRule, RewriteRuleSet

from qexport.graphs.rewrites.initializers import constant, initializer

__all__ = ["rules"]


def _before(op: Any, w: Any) -> Any:
    return op.Transpose(w, _allow_other_attributes=True, _outputs=["y"])


def _applies(context: Any, y: ir.Value, w: ir.Value, **_: Any) -> MatchResult:
    result = MatchResult()
    if not w.is_initializer() or w.is_graph_input() or constant(w) is None:
        return result.fail("only a stored weight can be transposed in advance", w)
    if y.is_graph_output():
        return result.fail("the result is an output of the graph", y)
    return result


def _after(op: Any, y: ir.Value, w: ir.Value, **_: Any) -> ir.Value:
    node = y.producer()
    array = constant(w)
    assert node is not None and isinstance(node.graph, ir.Graph) and array is not None and w.name
    graph, perm = node.graph, node.attributes.get_ints("perm", list(range(array.ndim))[::-1])
    name = w.name
    if len(w.uses()) == 1:
        graph.initializers.pop(name)
        w.name = f"{name}.untransposed"
    else:
        name = f"{name}.{'_'.join(map(str, perm))}"
    # an Identity, since the rewriter gives a value that replaces another one that one's name
    stored: ir.Value = op.Identity(initializer(graph, name, np.transpose(array, perm)))
    return stored


rules = RewriteRuleSet([RewriteRule(_before, _after, _applies, name="fold-transpose")])
"""The rule."""
