"""`TernaryGather` and its siblings: rows of an embedding table that stays packed in memory.

    Y[..., k] = float(code[indices[...], k]) * scale[indices[...]]              float32

Packed rows are gathered first and only they are decoded, so a runtime that folds constants cannot unpack
the table.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from qexport.graphs.operators.body import Body, Operator
from qexport.graphs.operators.decode import decode
from qexport.graphs.packing import unpack

__all__ = ["GATHERS", "gather_name"]


def gather_name(bits: int) -> str:
    """Operator type for tables of `bits` bits: BinaryGather, TernaryGather, Int3Gather ... Int8Gather."""
    return {1: "Binary", 2: "Ternary"}.get(bits, f"Int{bits}") + "Gather"


def _build(body: Body, bits: int) -> None:
    flat = body.node("Reshape", "indices", body.constant([-1], np.int64))
    rows = body.node("Gather", "table", flat, axis=0)
    if bits == 8:
        wide = body.node("Cast", rows, to=onnx.TensorProto.FLOAT)
        codes = body.node("Sub", wide, body.constant(128, np.float32))
    else:
        codes = decode(body, rows, bits, np.float32)
    first, second = body.constant([0], np.int64), body.constant([1], np.int64)
    vocabulary = body.node("Slice", body.node("Shape", "table"), first, second, first)
    scales = body.node("Gather", body.node("Expand", "scale", vocabulary), flat, axis=0)
    column = body.node("Reshape", scales, body.constant([-1, 1], np.int64))
    product = body.node("Mul", codes, column)
    shape = body.node("Concat", body.node("Shape", "indices"), body.integer("K"), axis=0)
    body.node("Reshape", product, shape, output="Y")


def _reference(
    indices: npt.NDArray[np.int64],
    table: npt.NDArray[np.uint8],
    scale: npt.NDArray[np.float32],
    *,
    bits: int,
    K: int,
) -> tuple[npt.NDArray[Any], ...]:
    rows = unpack(table[indices.reshape(-1)], K, bits).astype(np.float32)
    scales = np.broadcast_to(scale, (len(table),))[indices.reshape(-1)]
    return ((rows * scales[:, None]).reshape(*indices.shape, K),)


def _operator(bits: int) -> Operator:
    name = gather_name(bits)
    doc = (
        f"Y[..., :] = table[indices] * scale[indices] with indices int64 [...], table the {bits}-bit codes "
        "[V, K] packed to uint8 rows, scale float32 [V] or [1]; Y float32 [..., K]."
    )
    return Operator(
        name,
        ("indices", "table", "scale"),
        ("Y",),
        ("K",),
        partial(_build, bits=bits),
        partial(_reference, bits=bits),
        doc,
    )


GATHERS = {gather_name(bits): _operator(bits) for bits in range(1, 9)}
"""BinaryGather, TernaryGather, Int3Gather ... Int8Gather."""
