"""Packed bytes to codes inside a graph, by table look-up.

Cast to int32, Gather in a table of digits, Reshape, Slice: every runtime has these, and a runtime that
folds constants does the work once, at load. The sum of several planes is taken in int32: older runtimes
have no int8 or uint8 addition.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx

from qexport.graphs.operators.body import Body
from qexport.graphs.packing import digit_table, offset, planes

__all__ = ["decode"]


def decode(body: Body, packed: str, bits: int, dtype: npt.DTypeLike) -> str:
    """Codes of the rows of `packed`.

    Args:
        body: where the nodes go; has the integer attribute K.
        packed: name of a uint8 value [T, packed_width(K, bits)].
        bits: storage format, 1 to 7.
        dtype: int8 or float32, the type of the result.
    Returns:
        name of a value [T, K].
    """
    cut = planes(bits)
    step = 2 if bits == 1 else 1
    k = body.integer("K")
    axis = body.constant([1], np.int64)
    single = len(cut) == 1
    total = ""
    start = body.constant([0], np.int64)
    for index, (base, digits, place) in enumerate(cut):
        part = packed
        if not single:
            wide = body.node("Add", k, body.constant([digits - 1], np.int64))
            run = body.node("Div", wide, body.constant([digits], np.int64))
            end = run if index == 0 else body.node("Add", start, run)
            part = body.node("Slice", packed, start, end, axis)
            start = end
        table = digit_table(base, digits) * (place * step)
        if index == 0:
            table = table - offset(bits)
        rows = body.node("Cast", part, to=onnx.TensorProto.INT32)
        found = body.node("Gather", body.constant(table, dtype if single else np.int32), rows, axis=0)
        flat = body.node("Reshape", found, body.constant([0, -1], np.int64))
        codes = body.node("Slice", flat, body.constant([0], np.int64), k, axis)
        total = body.node("Add", total, codes) if total else codes
    if single:
        return total
    kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    return body.node("Cast", total, to=kind)
