"""What an ONNX file is made of, to the byte: tensors by kind and storage, graph structure, metadata.

Works on any ONNX file, also one that was not made by this package, and needs no torch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper
from rich.markup import escape
from rich.table import Table

from qexport.errors import UnsupportedModelError
from qexport.graphs.tensor_roles import (
    Scope,
    all_nodes,
    kind_of,
    operator_name,
    packed_codes,
    storage_name,
    subgraphs,
)

__all__ = ["Inventory", "InventoryRow", "TensorRow", "inspect_file"]

STRUCTURE = "graph structure"


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
        UnsupportedModelError: no such file, not ONNX, cut short, or external data is missing.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "model.onnx"
    model = read_model(path)
    scope = Scope(model.graph.node, model.graph.initializer)
    tensors = list(_graph_tensors(model.graph, scope, path))
    for function in model.functions:
        scope = Scope(function.node)
        for node in all_nodes(function.node):
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
        operators=dict(sorted(Counter(operator_name(node) for node in all_nodes(model.graph.node)).items())),
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
    except Exception as error:  # DecodeError, of the protobuf implementation at hand
        raise UnsupportedModelError(
            f"{path} is not a complete ONNX file ({len(data):,} bytes): cut short or of another format; "
            "copy or export it again"
        ) from error
    if not model.ir_version or not model.opset_import or not model.HasField("graph"):
        raise UnsupportedModelError(
            f"{path} is not an ONNX model ({len(data):,} bytes, no IR version, opset or graph in it); "
            "pass the .onnx file of an export"
        )
    return model


def _graph_tensors(graph: onnx.GraphProto, scope: Scope, path: Path) -> Iterator[tuple[TensorRow, bool]]:
    """Tensors of a graph and its subgraphs, each with whether its data is in another file."""
    for tensor in graph.initializer:
        yield _tensor_row(tensor, tensor.name, scope, path, "graph")
    for sparse in graph.sparse_initializer:
        yield _tensor_row(sparse.values, sparse.values.name, scope, path, "graph")
        yield _tensor_row(sparse.indices, sparse.values.name, scope, path, "graph")
    for node in graph.node:
        yield from _node_tensors(node, scope, path, "graph")
        for inner in subgraphs(node):
            yield from _graph_tensors(inner, scope, path)


def _node_tensors(
    node: onnx.NodeProto, scope: Scope, path: Path, where: str
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
    tensor: onnx.TensorProto, name: str, scope: Scope, path: Path, where: str
) -> tuple[TensorRow, bool]:
    shape = tuple(tensor.dims)
    elements = int(np.prod(shape, dtype=np.int64))
    outside = tensor.data_location == onnx.TensorProto.EXTERNAL
    if outside:
        n_bytes, where = _external(tensor, name, elements, path)
    else:
        n_bytes = _stored_bytes(tensor)
    packed = packed_codes(tensor, name, scope)
    storage = onnx.TensorProto.DataType.Name(tensor.data_type).lower()
    if storage == "float":
        storage = "float32"
    if packed:
        bits, k = packed
        storage, elements = storage_name(bits), shape[0] * k
    kind = kind_of(tensor, name, scope, where)
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
            f"tensor '{name}' of {path} needs {offset + length:,} bytes of the file {location}, which "
            f"{found}; copy the external data beside the model"
        )
    return length, location


_ORDER = (
    "encoder weights",
    "pooler weights",
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
