"""What an ONNX file is made of, to the byte: tensors by kind and storage, graph structure, functions, metadata.

Works on any ONNX file, also one that was not made by this package, and needs no torch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import helper
from rich.markup import escape
from rich.table import Table

from qexport.errors import UnsupportedModelError
from qexport.graphs.operators.body import DOMAIN
from qexport.graphs.packing import planes

__all__ = ["Inventory", "InventoryRow", "TensorRow", "inspect_file"]

STRUCTURE = "graph structure"

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


@dataclass(frozen=True, slots=True)
class TensorRow:
    """One stored tensor."""

    name: str
    kind: str
    storage: str
    shape: tuple[int, ...]
    """As stored; a packed matrix has its packed shape."""
    elements: int
    """Codes of a packed tensor, numbers of a plain one."""
    n_bytes: int
    where: str
    """"graph", "function NAME" or the file name of external data."""


@dataclass(frozen=True, slots=True)
class InventoryRow:
    """All tensors of one kind in one storage; the row "graph structure" is everything that is no tensor."""

    kind: str
    storage: str
    tensors: int
    elements: int
    n_bytes: int
    bits_per_element: float
    """8 * n_bytes / elements; 0 for the graph structure."""
    share: float
    """Part of the total bytes, 0..1."""


@dataclass(frozen=True, slots=True)
class Inventory:
    """The make-up of one ONNX file; the bytes of `rows` add up to `total_bytes`."""

    path: Path
    file_bytes: int
    external_bytes: int
    """Tensor data in other files that this file refers to."""
    producer: str
    opset: int
    """Version of ai.onnx that the graph imports; 0 if it imports none."""
    opsets: dict[str, int]
    ir_version: int
    rows: list[InventoryRow]
    functions: list[str]
    """Model-local functions as "domain::name"."""
    operators: dict[str, int]
    """Number of nodes by operator, as "name" or "domain::name", subgraphs included, function bodies not."""
    metadata: dict[str, str]
    tensors: list[TensorRow] = field(repr=False)

    @property
    def total_bytes(self) -> int:
        """Bytes of the file and of the external data."""
        return self.file_bytes + self.external_bytes

    def to_json(self, *, tensors: bool = False) -> dict[str, Any]:
        """The inventory as JSON values.

        Args:
            tensors: list every tensor too.
        """
        result = asdict(self) | {"path": str(self.path), "total_bytes": self.total_bytes}
        if not tensors:
            del result["tensors"]
        return result

    def table(self) -> Table:
        """The rows as a table for the terminal."""
        title = (
            f"{self.path.name}: {format_bytes(self.total_bytes)}, opset {self.opset}, IR {self.ir_version}"
        )
        table = Table(title=escape(title), title_justify="left")
        table.add_column("kind")
        table.add_column("storage")
        for name in ("tensors", "elements", "bytes", "bits each", "share"):
            table.add_column(name, justify="right")
        for row in self.rows:
            table.add_row(
                row.kind,
                row.storage,
                f"{row.tensors:,}" if row.tensors else "",
                f"{row.elements:,}" if row.elements else "",
                f"{row.n_bytes:,}",
                f"{row.bits_per_element:.2f}" if row.elements else "",
                f"{row.share:.1%}",
            )
        elements = sum(row.elements for row in self.rows)
        table.add_section()
        table.add_row(
            "total",
            "",
            f"{len(self.tensors):,}",
            f"{elements:,}",
            f"{self.total_bytes:,}",
            f"{8 * self.total_bytes / elements:.2f}" if elements else "",
            "",
        )
        return table

    def tensor_table(self) -> Table:
        """One line for each tensor, largest first."""
        table = Table(title="tensors", title_justify="left")
        for name in ("name", "kind", "storage", "shape", "where"):
            table.add_column(name)
        table.add_column("bytes", justify="right")
        for row in sorted(self.tensors, key=lambda row: (-row.n_bytes, row.name)):
            shape = "x".join(map(str, row.shape)) or "scalar"
            table.add_row(
                escape(row.name), row.kind, row.storage, shape, escape(row.where), f"{row.n_bytes:,}"
            )
        return table


def format_bytes(count: int) -> str:
    """Bytes in MiB, or in KiB below one MiB."""
    return f"{count / 2**20:.2f} MiB" if count >= 2**20 else f"{count / 2**10:.1f} KiB"


def inspect_file(path: Path) -> Inventory:
    """Take an ONNX file apart.

    Args:
        path: the file, or a folder with a model.onnx in it.
    Raises:
        UnsupportedModelError: no such file, not ONNX, cut short, or its external data is missing or cut short.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "model.onnx"
    model = read_model(path)
    scopes = [(model.graph.name or "graph", "graph", _Scope(model.graph.node))]
    tensors = list(_graph_tensors(model.graph, scopes[0][2], path))
    for function in model.functions:
        scope = _Scope(function.node)
        for node in _all_nodes(function.node):
            tensors += _node_tensors(node, scope, path, f"function {function.name}")
    external = sum(tensor.n_bytes for tensor, outside in tensors if outside)
    listed = [tensor for tensor, _ in tensors]
    size = path.stat().st_size
    opsets = {entry.domain or "ai.onnx": entry.version for entry in model.opset_import}
    producer = " ".join(part for part in (model.producer_name, model.producer_version) if part)
    return Inventory(
        path=path,
        file_bytes=size,
        external_bytes=external,
        producer=producer,
        opset=opsets.get("ai.onnx", 0),
        opsets=opsets,
        ir_version=model.ir_version,
        rows=_rows(listed, size + external),
        functions=[f"{function.domain}::{function.name}" for function in model.functions],
        operators=dict(
            sorted(Counter(_operator_name(node) for node in _all_nodes(model.graph.node)).items())
        ),
        metadata={entry.key: entry.value for entry in model.metadata_props},
        tensors=listed,
    )


def read_model(path: Path) -> onnx.ModelProto:
    """Parse an ONNX file and leave its external data where it is.

    Raises:
        UnsupportedModelError: see `inspect_file`.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UnsupportedModelError(
            f"cannot read {path}: {error.strerror}; pass an ONNX file, or a folder with a model.onnx"
        ) from error
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError as error:
        raise UnsupportedModelError(
            f"{path} is not a complete ONNX file ({len(data):,} bytes): it is cut short or of another format; "
            "copy or export it again"
        ) from error
    if not model.ir_version or not model.opset_import or not model.HasField("graph"):
        raise UnsupportedModelError(
            f"{path} is not an ONNX model ({len(data):,} bytes, no IR version, opset or graph in it); "
            "pass the .onnx file of an export"
        )
    return model


def _operator_name(node: onnx.NodeProto) -> str:
    return node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}::{node.op_type}"


def _subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def _all_nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """The nodes, and those of their subgraphs."""
    for node in nodes:
        yield node
        for graph in _subgraphs(node):
            yield from _all_nodes(graph.node)


class _Scope:
    """Who reads which value in a graph, its subgraphs included, or in a function body."""

    def __init__(self, nodes: Iterable[onnx.NodeProto]) -> None:
        self.uses: dict[str, list[tuple[onnx.NodeProto, int]]] = {}
        self.makers: dict[str, onnx.NodeProto] = {}
        for node in _all_nodes(nodes):
            for index, name in enumerate(node.input):
                self.uses.setdefault(name, []).append((node, index))
            for name in node.output:
                self.makers[name] = node

    def roles(self, name: str, rank: int, depth: int = 4) -> set[str]:
        """What the consumers take the value `name` for."""
        found: set[str] = set()
        for node, index in self.uses.get(name, []):
            role = _role(node, index, rank)
            if role == "through" and depth:
                for output in node.output:
                    found |= self.roles(output, rank, depth - 1)
            elif role not in ("", "through"):
                found.add(role)
        return found

    def only_use(self, name: str, op_type: str, index: int) -> onnx.NodeProto | None:
        """The node of type `op_type` that reads `name` as its input `index`, if it is the only reader."""
        uses = self.uses.get(name, [])
        if len(uses) == 1 and uses[0][0].op_type == op_type and uses[0][1] == index:
            return uses[0][0]
        return None

    def whole_number(self, name: str) -> int | None:
        """The value of a constant whole number, through Reshape."""
        node = self.makers.get(name)
        if node is None:
            return None
        if node.op_type == "Reshape":
            return self.whole_number(node.input[0])
        for attribute in node.attribute:
            if node.op_type == "Constant" and attribute.name == "value_int":
                return attribute.i
        return None


def _role(node: onnx.NodeProto, index: int, rank: int) -> str:
    """What input `index` of `node` is: a kind of row, "through", or "" for nothing known."""
    op_type = node.op_type
    if node.domain == DOMAIN:
        if op_type.endswith("MatMul"):
            return {3: "weights", 5: "bias"}.get(index, "scales")
        if op_type.endswith("Gather"):
            return {1: "embedding", 2: "scales"}.get(index, "")
        return "scales" if index >= 4 else ""
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


def _graph_tensors(graph: onnx.GraphProto, scope: _Scope, path: Path) -> Iterator[tuple[TensorRow, bool]]:
    """Tensors of a graph and its subgraphs, each with whether its data is in another file."""
    for tensor in graph.initializer:
        yield _tensor_row(tensor, tensor.name, scope, path, "graph")
    for sparse in graph.sparse_initializer:
        yield _tensor_row(sparse.values, sparse.values.name, scope, path, "graph")
        yield _tensor_row(sparse.indices, sparse.values.name, scope, path, "graph")
    for node in graph.node:
        yield from _node_tensors(node, scope, path, "graph")
        for inner in _subgraphs(node):
            yield from _graph_tensors(inner, scope, path)


def _node_tensors(
    node: onnx.NodeProto, scope: _Scope, path: Path, where: str
) -> Iterator[tuple[TensorRow, bool]]:
    """Tensors in the attributes of a node."""
    name = node.output[0] if node.output else node.name
    for attribute in node.attribute:
        for tensor in [*([attribute.t] if attribute.HasField("t") else []), *attribute.tensors]:
            yield _tensor_row(tensor, name, scope, path, where)
        if attribute.HasField("sparse_tensor"):
            yield _tensor_row(attribute.sparse_tensor.values, name, scope, path, where)
            yield _tensor_row(attribute.sparse_tensor.indices, name, scope, path, where)


def _tensor_row(
    tensor: onnx.TensorProto, name: str, scope: _Scope, path: Path, where: str
) -> tuple[TensorRow, bool]:
    shape = tuple(tensor.dims)
    elements = int(np.prod(shape, dtype=np.int64))
    outside = tensor.data_location == onnx.TensorProto.EXTERNAL
    if outside:
        n_bytes, where = _external(tensor, name, elements, path)
    else:
        n_bytes = _stored_bytes(tensor)
    packed = _packed(tensor, name, scope)
    storage = onnx.TensorProto.DataType.Name(tensor.data_type).lower()
    if storage == "float":
        storage = "float32"
    if packed:
        bits, k = packed
        storage, elements = _storage_name(bits), shape[0] * k
    kind = _kind(tensor, name, scope, where)
    return TensorRow(name, kind, storage, shape, elements, n_bytes, where), outside


def _stored_bytes(tensor: onnx.TensorProto) -> int:
    """Bytes of the data of a tensor in the protobuf."""
    if tensor.HasField("raw_data"):
        return len(tensor.raw_data)
    total = 0
    for name in ("float_data", "int32_data", "int64_data", "double_data", "uint64_data", "string_data"):
        values = getattr(tensor, name)
        if values:
            total += onnx.TensorProto(**{name: values}).ByteSize()
    return total


def _external(tensor: onnx.TensorProto, name: str, elements: int, path: Path) -> tuple[int, str]:
    """Bytes and file name of a tensor's external data, after a look that they are there."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    folder = path.parent.resolve()
    target = (folder / location).resolve()
    if not location or not target.is_relative_to(folder):
        raise UnsupportedModelError(
            f"tensor '{name}' of {path} must keep its data in a file beside the model, got '{location}'; "
            "save the model again with its external data in the same folder"
        )
    try:
        offset = int(entries.get("offset", 0))
        width = helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
        length = int(entries["length"]) if "length" in entries else elements * width
    except (KeyError, ValueError) as error:
        raise UnsupportedModelError(
            f"tensor '{name}' of {path} has a broken reference to external data; export the model again"
        ) from error
    size = target.stat().st_size if target.is_file() else -1
    if size < offset + length:
        found = "is not there" if size < 0 else f"has {size:,} bytes"
        raise UnsupportedModelError(
            f"tensor '{name}' of {path} needs {offset + length:,} bytes of the file {location}, which {found}; "
            "copy the external data beside the model"
        )
    return length, location


def _packed(tensor: onnx.TensorProto, name: str, scope: _Scope) -> tuple[int, int] | None:
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
    rows = name
    gather = scope.only_use(name, "Gather", 0)
    if gather is not None:
        rows = gather.output[0]
    cast = scope.only_use(rows, "Cast", 0)
    look_up = cast and scope.only_use(cast.output[0], "Gather", 1)
    flat = look_up and scope.only_use(look_up.output[0], "Reshape", 0)
    cut = flat and scope.only_use(flat.output[0], "Slice", 0)
    k = scope.whole_number(cut.input[2]) if cut and len(cut.input) > 2 else None
    if k is None:
        return None
    for bits in (1, 2, 4):
        if tensor.dims[1] == sum(-(-k // digits) for _, digits, _ in planes(bits)):
            return bits, k
    return None


def _storage_name(bits: int) -> str:
    if bits == 1:
        return "binary, 8 a byte"
    if bits == 2:
        return "ternary, 5 trits a byte"
    if bits == 8:
        return "int8, zero point 128"
    sizes = "+".join(str(8 // digits) for _, digits, _ in planes(bits))
    return f"{bits} bits, " + (f"planes of {sizes}" if "+" in sizes else f"{8 // bits} a byte")


def _kind(tensor: onnx.TensorProto, name: str, scope: _Scope, where: str) -> str:
    """The row that a tensor belongs in: by what reads it, then by its name."""
    low = name.lower()
    roles = scope.roles(name, len(tensor.dims))
    if "LayerNorm" in roles or any(
        part in low for part in ("layernorm", "layer_norm", "norm.weight", "norm.bias")
    ):
        return "LayerNorm"
    if where.startswith("function"):
        return "lookup table" if "embedding" in roles else "other"
    if "embedding" in roles and tensor.data_type == onnx.TensorProto.INT64:
        return "other"
    if "embedding" in roles and len(tensor.dims) >= 2:
        if tuple(tensor.dims) in _TABLES:
            return "lookup table"
        for part in ("position", "token_type", "word"):
            if part in low:
                return f"{part.replace('_', ' ')} embedding"
        return "word embedding" if tensor.dims[0] >= 1000 else "embedding"
    if "weights" in roles and len(tensor.dims) >= 2:
        head = any(part in low for part in ("classifier", "pooler", "lm_head", "qa_outputs"))
        return "classifier weights" if head else "encoder weights"
    if "scales" in roles:
        return "scales"
    if "bias" in roles or low.endswith("bias"):
        return "bias"
    if _packed(tensor, name, scope):
        return "word embedding" if tensor.dims[0] >= 10_000 else "encoder weights"
    return "other"


_TABLES = {(243, 5), (256, 8), (256, 4), (256, 2)}
"""Shapes of the tables that packed bytes are decoded with."""

_ORDER = (
    "encoder weights",
    "classifier weights",
    "word embedding",
    "position embedding",
    "token type embedding",
    "embedding",
    "bias",
    "LayerNorm",
    "scales",
    "lookup table",
    "other",
)


def _rows(tensors: list[TensorRow], total: int) -> list[InventoryRow]:
    groups: dict[tuple[str, str], list[TensorRow]] = {}
    for tensor in tensors:
        groups.setdefault((tensor.kind, tensor.storage), []).append(tensor)
    rows = []
    for kind, storage in sorted(groups, key=lambda key: (_ORDER.index(key[0]), key[1])):
        members = groups[kind, storage]
        n_bytes = sum(member.n_bytes for member in members)
        elements = sum(member.elements for member in members)
        bits = 8 * n_bytes / elements if elements else 0.0
        rows.append(
            InventoryRow(
                kind, storage, len(members), elements, n_bytes, bits, n_bytes / total if total else 0.0
            )
        )
    rest = total - sum(row.n_bytes for row in rows)
    rows.append(InventoryRow(STRUCTURE, "protobuf", 0, 0, rest, 0.0, rest / total if total else 0.0))
    return rows
