"""Lower a quantised embedding to a gather from a packed table.

    before   qexport.QuantEmbedding(ids, codes, scale)
    after    ai.qexport.TernaryGather(ids, pack(codes), scale)

Shapes   ids int64 [...], codes int8 [V, D], scale float32 [V]; result float32 [..., D].
Parity   equal bits: one product of a code and a scale.
"""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
from onnxscript.rewriter import MatchResult, RewriteRule, RewriteRuleSet

from qexport.graphs.operators import DOMAIN, VERSION, gather_name
from qexport.graphs.packing import pack
from qexport.graphs.rewrites import EXPORT_DOMAIN
from qexport.graphs.rewrites.initializers import constant, initializer
from qexport.graphs.rewrites.lower_linear import check_weight, module_of

__all__ = ["rules"]


def _before(op: Any, ids: Any, codes: Any, scale: Any) -> Any:
    return op.QuantEmbedding(
        ids, codes, scale, _domain=EXPORT_DOMAIN, _allow_other_attributes=True, _outputs=["y"]
    )


def _applies(context: Any, y: ir.Value, codes: ir.Value, scale: ir.Value, **_: Any) -> MatchResult:
    node, _name = module_of(y)
    return check_weight(MatchResult(), codes, scale, node.attributes.get_int("w_bits", 0), per_matrix=True)


def _after(op: Any, y: ir.Value, ids: ir.Value, codes: ir.Value, scale: ir.Value, **_: Any) -> ir.Value:
    node, name = module_of(y)
    graph, bits = node.graph, node.attributes.get_int("w_bits")
    array = constant(codes)
    assert isinstance(graph, ir.Graph) and array is not None
    table = initializer(graph, f"{name}.weight", pack(array, bits))
    lowered: ir.Value = op.op(
        gather_name(bits), ids, table, scale, _domain=DOMAIN, _version=VERSION, _name=name, K=array.shape[1]
    )
    return lowered


rules = RewriteRuleSet([RewriteRule(_before, _after, _applies, name="lower-embedding")])
"""The rule."""
