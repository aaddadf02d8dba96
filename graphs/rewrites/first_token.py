"""Compute only the first token where only the first token is read.

    before   logits = head(Gather(encoder(x), 0, axis=1)), the last layer computed for every token
    after    the Gather stands in front of the last layer's row-by-row part, whose tensors are [B, 1, K]

Shapes   Gather of index 0 along axis 1 of [B, S, K].
When     operators treat each token alone and nothing else reads their outputs: LayerNorm, GELU, the two
         feed-forward products, the attention's output projection, their quantisations. Attention stays.
Parity   equal bits: these operators give a row the same numbers whatever the other rows are.
Why      a classifier reads one token; three quarters of the last layer were computed for the others.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from qexport.graphs.operators import DOMAIN
from qexport.graphs.rewrites.initializers import constant, initializer

__all__ = ["apply"]

_TWO_ROWS = {"AddLayerNormQuantizePerToken", "AddLayerNormQuantizeLinear"}
_ONE_ROW = {"LayerNorm", "Gelu", "GeluQuantizePerToken", "GeluQuantizeLinear", "QuantizePerToken"}
_ELEMENTWISE = {"Add", "Sub", "Mul", "Div", "Erf", "Tanh", "Relu", "Sigmoid", "Clip", "QuantizeLinear"}


def _constant_of_channels(value: ir.Value | None) -> bool:
    """Whether an operand is the same for every token: a constant that is a scalar or a vector of channels."""
    array = constant(value)
    return value is None or (array is not None and (array.ndim <= 1 or array.size == 1))


def _rows_of_product(scale: ir.Value | None) -> list[int] | None:
    """Whether the scale of a product's activation holds tokens too, by what made it."""
    if _constant_of_channels(scale):
        return [0]
    node = scale.producer() if scale is not None else None
    kind = node.op_type if node is not None and node.domain == DOMAIN else ""
    return [0, 1] if kind.endswith("QuantizePerToken") else [0] if kind == "QuantizePerTensor" else None


def _row_inputs(node: ir.Node) -> list[int] | None:
    """Which inputs hold tokens, if every token of the outputs depends on the same token of those alone."""
    inputs = node.inputs
    if node.domain == DOMAIN:
        if node.op_type in _ONE_ROW:
            return [0]
        if node.op_type in _TWO_ROWS:
            return [0, 1]
        if node.op_type.endswith("MatMul"):
            return _rows_of_product(inputs[1])
        return None
    if node.op_type == "LayerNormalization":
        return [0] if node.attributes.get_int("axis", -1) in (-1, 2) else None
    if node.op_type == "MatMul":
        weight = constant(inputs[1])
        return [0] if weight is not None and weight.ndim == 2 else None
    if node.op_type == "QuantizeLinear":
        scale = constant(inputs[1])
        return [0] if scale is not None and scale.size == 1 else None
    if node.op_type in _ELEMENTWISE:
        return [index for index, value in enumerate(inputs) if not _constant_of_channels(value)]
    return None


def _tokens(value: ir.Value | None) -> Any:
    """The size of axis 1 of a value [B, S, K]; None where that is not known."""
    if value is None:
        return None
    if value.shape is not None:
        return value.shape[1] if len(value.shape) == 3 else None
    node = value.producer()  # a rewritten GELU has no shapes inside
    if node is None or node.op_type not in _ELEMENTWISE:
        return None
    return next((size for size in map(_tokens, node.inputs) if size is not None), None)


def _fits(node: ir.Node, rows: list[int]) -> bool:
    """Whether the inputs with tokens have as many as the output: a sum might stretch one of them."""
    return len(rows) == 1 or node.domain == DOMAIN or all(_tokens(node.inputs[i]) is not None for i in rows)


def _region(gather: ir.Node) -> dict[ir.Node, list[int]]:
    """The nodes to move the Gather over, each with its inputs that hold tokens."""
    region: dict[ir.Node, list[int]] = {}
    open_values = [gather.inputs[0]]
    while open_values:
        value = open_values.pop()
        node = value.producer() if value is not None else None
        if node is None or node in region:
            continue
        rows = _row_inputs(node)
        readers = {use.node for output in node.outputs for use in output.uses()}
        if not rows or not _fits(node, rows):
            continue
        if any(output.is_graph_output() for output in node.outputs):
            continue
        if any(reader is not gather and reader not in region for reader in readers):
            continue  # looked at again from its other reader, when that has joined
        region[node] = rows
        open_values += [node.inputs[index] for index in rows]
    return region


def _first_row(shape: ir.Shape | None) -> ir.Shape | None:
    return None if shape is None or len(shape) != 3 else ir.Shape([shape[0], 1, shape[2]])


def apply(model: ir.Model) -> int:
    """Move every such Gather, in place; returns how many nodes now see one token."""
    graph, count = model.graph, 0
    for gather in list(graph):
        index = constant(gather.inputs[1]) if gather.op_type == "Gather" and gather.domain == "" else None
        if index is None or index.shape != () or int(index) != 0 or gather.attributes.get_int("axis", 0) != 1:
            continue
        if _tokens(gather.inputs[0]) in (None, 1):
            continue  # no tokens, or moved before
        region = _region(gather)
        if not any(node.op_type.endswith("MatMul") for node in region):
            continue
        taken: dict[ir.Value, ir.Value] = {}
        for node in [node for node in graph if node in region]:
            for position in region[node]:
                value = node.inputs[position]
                assert value is not None
                if value.producer() in region:
                    continue
                if value not in taken:
                    first = initializer(graph, "first_token", np.array([0], np.int64))
                    row = ir.node("Gather", [value, first], attributes={"axis": 1})
                    row.outputs[0].shape, row.outputs[0].type = _first_row(value.shape), value.type
                    graph.insert_before(node, row)
                    taken[value] = row.outputs[0]
                node.replace_input_with(position, taken[value])
            for output in node.outputs:
                output.shape = _first_row(output.shape)
        count += len(region)
    return count
