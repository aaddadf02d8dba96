"""Constants that rewrite rules read and make: weights by name, each name once in a graph."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

__all__ = ["constant", "floats", "initializer", "target_shape"]


def constant(value: ir.Value | None) -> npt.NDArray[Any] | None:
    """The array behind an initializer or a folded value, or None when it is computed at run time."""
    if value is None or value.const_value is None:
        return None
    return np.asarray(value.const_value.numpy())


def floats(value: ir.Value | None, shapes: tuple[tuple[int, ...], ...]) -> npt.NDArray[np.float32] | None:
    """`constant` when it is float32 of one of `shapes` and finite, else None."""
    array = constant(value)
    if (
        array is None
        or array.dtype != np.float32
        or array.shape not in shapes
        or not np.isfinite(array).all()
    ):
        return None
    return array


def initializer(graph: ir.Graph, name: str, array: npt.NDArray[Any]) -> ir.Value:
    """The initializer `name` of `graph`, made from `array` unless it is there already.

    A module that runs twice (shared layers) asks twice for the same name and gets the same tensor.
    """
    if name in graph.initializers:
        return graph.initializers[name]
    tensor = ir.tensor(np.array(array, order="C"), name=name)
    value = ir.Value(
        name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor
    )
    graph.register_initializer(value)
    return value


def target_shape(graph: ir.Graph, sizes: list[int]) -> ir.Value:
    """The int64 constant `sizes`, what a Reshape takes: 0 copies an axis, -1 is what is left."""
    name = "shape_" + "_".join(str(size).replace("-", "m") for size in sizes)
    return initializer(graph, name, np.array(sizes, np.int64))
