"""What the tensors of an ONNX graph are there for: told by the nodes that read them, then by their names."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import onnx
from onnx import numpy_helper

from qexport.graphs.operators.body import DOMAIN
from qexport.graphs.packing import packed_width, planes

__all__ = ["Scope", "all_nodes", "kind_of", "operator_name", "packed_codes", "storage_name", "subgraphs"]

WEIGHT_INPUTS = {
    "MatMul": (0, 1),
    "FusedMatMul": (0, 1),
    "Gemm": (0, 1),
    "MatMulInteger": (0, 1),
    "MatMulIntegerToFloat": (0, 1),
    "DynamicQuantizeMatMul": (1,),
    "QLinearMatMul": (0, 3),
    "MatMulNBits": (1,),
    "Attention": (1,),
    "QAttention": (1,),
    "Conv": (1,),
}
"""Inputs that hold a weight matrix when they are constant."""

BIAS_INPUTS = {
    "Gemm": (2,),
    "Conv": (2,),
    "Attention": (2,),
    "QAttention": (2,),
    "MatMulIntegerToFloat": (6,),
    "DynamicQuantizeMatMul": (4,),
    "Gelu": (1,),
    "FastGelu": (1,),
    "BiasGelu": (1,),
}

SCALE_INPUTS = {
    "QuantizeLinear": (1, 2),
    "DequantizeLinear": (1, 2),
    "MatMulInteger": (2, 3),
    "MatMulIntegerToFloat": (2, 3, 4, 5),
    "DynamicQuantizeMatMul": (2, 3),
    "QLinearMatMul": (1, 2, 4, 5, 6, 7),
    "MatMulNBits": (2, 3),
    "QAttention": (3, 4, 6, 7),
}

NORMS = {"LayerNormalization", "SkipLayerNormalization", "SimplifiedLayerNormalization", "RMSNormalization"}

THROUGH = {"Transpose", "Cast", "Reshape", "Identity", "Squeeze", "Unsqueeze", "Neg", "DequantizeLinear"}
"""Operators whose first input is looked for at their consumers."""


def operator_name(node: onnx.NodeProto) -> str:
    return node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}::{node.op_type}"


def subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def all_nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """The nodes, and those of their subgraphs."""
    for node in nodes:
        yield node
        for graph in subgraphs(node):
            yield from all_nodes(graph.node)


class Scope:
    """Who reads which value in a graph, its subgraphs included, or in a function body."""

    def __init__(
        self, nodes: Iterable[onnx.NodeProto], initializers: Iterable[onnx.TensorProto] = ()
    ) -> None:
        self.stored = {tensor.name: tensor for tensor in initializers}
        self.uses: dict[str, list[tuple[onnx.NodeProto, int]]] = {}
        self.makers: dict[str, onnx.NodeProto] = {}
        for node in all_nodes(nodes):
            for index, name in enumerate(node.input):
                self.uses.setdefault(name, []).append((node, index))
            for name in node.output:
                self.makers[name] = node

    def roles(self, name: str, rank: int, depth: int = 4) -> set[str]:
        """What the consumers take the value `name` for."""
        found: set[str] = set()
        for node, index in self.uses.get(name, []):
            role = "LayerNorm" if rank == 1 and self._normalises(node) else _role(node, index, rank)
            if role == "through" and depth:
                for output in node.output:
                    found |= self.roles(output, rank, depth - 1)
            elif role not in ("", "through"):
                found.add(role)
        return found

    def _normalises(self, node: onnx.NodeProto, depth: int = 2) -> bool:
        """Whether this is a Mul by gamma or the Sub of -beta in the inlined body of a LayerNorm."""
        if node.op_type == "Sub":
            return any(self._divides_by_deviation(self.makers.get(name)) for name in node.input)
        if node.op_type != "Mul" or not depth:
            return False
        readers = [reader for name in node.output for reader, _ in self.uses.get(name, [])]
        return any(self._divides_by_deviation(x) or self._normalises(x, depth - 1) for x in readers)

    def _divides_by_deviation(self, node: onnx.NodeProto | None) -> bool:
        """Whether this is the Mul by k / (k * k + w)."""
        if node is None or node.op_type != "Mul":
            return False
        made = [self.makers[name] for name in node.input if name in self.makers]
        return any(x.op_type == "Div" and self._is_root(x.input[0]) for x in made)

    def _is_root(self, name: str) -> bool:
        """Whether the value is a square root that is rounded to a whole number."""
        node = self.makers.get(name)
        if node is None or node.op_type != "Round" or node.input[0] not in self.makers:
            return False
        return self.makers[node.input[0]].op_type == "Sqrt"

    def only_use(self, name: str, op_type: str, index: int) -> onnx.NodeProto | None:
        """The node of type `op_type` that reads `name` as its input `index`, if only it needs the values."""
        uses = [use for use in self.uses.get(name, []) if use[0].op_type != "Shape"]
        if len(uses) == 1 and uses[0][0].op_type == op_type and uses[0][1] == index:
            return uses[0][0]
        return None

    def whole_number(self, name: str) -> int | None:
        """The value of a constant whole number, through Reshape."""
        node = self.makers.get(name)
        if node is None:
            return _single_number(self.stored.get(name))
        if node.op_type == "Reshape":
            return self.whole_number(node.input[0])
        for attribute in node.attribute if node.op_type == "Constant" else ():
            if attribute.name == "value_int":
                return int(attribute.i)
            if attribute.name == "value":
                return _single_number(attribute.t)
        return None


def _single_number(tensor: onnx.TensorProto | None) -> int | None:
    """The value of an int64 tensor of one element that is stored in the file."""
    if tensor is None or tensor.data_type != onnx.TensorProto.INT64:
        return None
    if tensor.data_location == onnx.TensorProto.EXTERNAL or any(size != 1 for size in tensor.dims):
        return None
    return int(numpy_helper.to_array(tensor).item())


def _role(node: onnx.NodeProto, index: int, rank: int) -> str:
    """What input `index` of `node` is: a kind of row, "through", or "" for nothing known."""
    op_type = node.op_type
    if node.domain == DOMAIN:
        if op_type.endswith("MatMul"):
            return {3: "weights", 5: "bias"}.get(index, "scales")
        if op_type.endswith("Gather"):
            return {1: "embedding", 2: "scales"}.get(index, "")
        if op_type.startswith("AddLayerNorm") and index in (2, 3):
            return "LayerNorm"
        if op_type == "LayerNorm":
            return "LayerNorm" if index else ""
        return "scales" if index >= 4 or (op_type == "GeluQuantizeLinear" and index == 1) else ""
    if op_type in NORMS and index >= 1:
        return "LayerNorm"
    for role, inputs in (("weights", WEIGHT_INPUTS), ("bias", BIAS_INPUTS), ("scales", SCALE_INPUTS)):
        if index in inputs.get(op_type, ()):
            return role
    if op_type in ("Gather", "GatherBlockQuantized") and index == 0:
        return "embedding"
    if op_type == "GatherBlockQuantized" and index >= 2:
        return "scales"
    if op_type in ("Add", "Sub") and rank == 1:
        return "bias"
    if op_type == "Mul" and rank <= 1:
        return "scales"
    return "through" if op_type in THROUGH and index == 0 else ""


def packed_codes(tensor: onnx.TensorProto, name: str, scope: Scope) -> tuple[int, int] | None:
    """(bits, codes in a row) of a packed matrix: an input of our operators, or of their inlined bodies."""
    if tensor.data_type != onnx.TensorProto.UINT8 or len(tensor.dims) != 2:
        return None
    for node, index in scope.uses.get(name, []):
        if node.domain == DOMAIN and index == (1 if node.op_type.endswith("Gather") else 3):
            k = next((attribute.i for attribute in node.attribute if attribute.name == "K"), None)
            bits = {"Binary": 1, "Ternary": 2}.get(node.op_type.removesuffix("MatMul").removesuffix("Gather"))
            if bits is None and node.op_type[:3] == "Int" and node.op_type[3:4].isdigit():
                bits = int(node.op_type[3])
            if bits is not None and k is not None:
                return bits, k
    return _inlined_codes(tensor, name, scope)


def _inlined_codes(tensor: onnx.TensorProto, name: str, scope: Scope) -> tuple[int, int] | None:
    """(bits, codes in a row) of a matrix that the nodes of an inlined body decode by table."""
    gather = scope.only_use(name, "Gather", 0)
    rows = gather.output[0] if gather is not None else name
    runs = [rows]
    uses = scope.uses.get(rows, [])
    if uses and all(node.op_type == "Slice" and index == 0 for node, index in uses):
        runs = [node.output[0] for node, _ in uses]
    found = {_decoded_length(run, scope) for run in runs}
    k = found.pop() if len(found) == 1 else None
    if k is None:
        return None
    for bits in range(1, 8):
        if len(planes(bits)) == len(runs) and tensor.dims[1] == packed_width(k, bits):
            return bits, k
    return None


def _decoded_length(run: str, scope: Scope) -> int | None:
    """The length that the codes of one plane are cut to: Cast, Gather, Reshape, Slice."""
    cast = scope.only_use(run, "Cast", 0)
    look_up = cast and scope.only_use(cast.output[0], "Gather", 1)
    flat = look_up and scope.only_use(look_up.output[0], "Reshape", 0)
    cut = flat and scope.only_use(flat.output[0], "Slice", 0)
    return scope.whole_number(cut.input[2]) if cut and len(cut.input) > 2 else None


def storage_name(bits: int) -> str:
    if bits == 1:
        return "binary, 8 a byte"
    if bits == 2:
        return "ternary, 5 trits a byte"
    if bits == 8:
        return "int8, zero point 128"
    sizes = "+".join(str(8 // digits) for _, digits, _ in planes(bits))
    return f"{bits} bits, " + (f"planes of {sizes}" if "+" in sizes else f"{8 // bits} a byte")


def kind_of(tensor: onnx.TensorProto, name: str, scope: Scope, where: str) -> str:
    """The row that a tensor belongs in: by what reads it, then by its name."""
    low = name.lower()
    roles = scope.roles(name, len(tensor.dims))
    if "LayerNorm" in roles or any(
        part in low for part in ("layernorm", "layer_norm", "norm.weight", "norm.bias")
    ):
        return "LayerNorm"
    if where.startswith("function"):
        return "lookup table" if "embedding" in roles else "other"
    if tensor.data_type == onnx.TensorProto.INT64:  # shapes, axes, positions
        return "other"
    if "embedding" in roles and len(tensor.dims) >= 2:
        if tuple(tensor.dims) in _TABLES:
            return "lookup table"
        for part in ("position", "token_type", "word"):
            if part in low:
                return f"{part.replace('_', ' ')} embedding"
        return "word embedding" if tensor.dims[0] >= 1000 else "embedding"
    if "weights" in roles and len(tensor.dims) >= 2:
        return _weights(low)
    if "scales" in roles:
        return "scales"
    if "bias" in roles or low.endswith("bias"):
        return "bias"
    if packed_codes(tensor, name, scope):
        return "word embedding" if tensor.dims[0] >= 10_000 else _weights(low)
    return "other"


def _weights(low: str) -> str:
    """The part of the model that a matrix of this name belongs to."""
    if "pooler" in low:
        return "pooler weights"
    head = any(part in low for part in ("classifier", "lm_head", "qa_outputs"))
    return "classifier weights" if head else "encoder weights"


_TABLES = {(243, 5), (256, 8), (256, 4), (256, 2)}
"""Shapes of the tables that packed bytes are decoded with."""
