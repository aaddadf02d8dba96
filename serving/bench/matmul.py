"""Models of one matrix product, to time the kernels alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from qexport.serving.bench.config import MatmulShape
from qexport.serving.bench.worker import TensorSpec

__all__ = ["FLOAT_BITS", "matmul_bytes", "matmul_feeds", "matmul_file"]

FLOAT_BITS = 32
"""In place of a number of bits: a float product."""


def matmul_file(folder: Path, shape: MatmulShape, bits: int, *, seed: int) -> Path:
    """Write a model of one product: our operator for `bits`, or a float MatMul with bias.

    Args:
        folder: where to.
        shape: of the product; the number of rows is left open.
        bits: of the weight: 1 to 8, or `FLOAT_BITS`.
        seed: of the weight.
    """
    import onnx

    path = folder / f"matmul-{shape}-{bits}.onnx"
    if not path.is_file():
        onnx.save(_float(shape, seed) if bits == FLOAT_BITS else _packed(shape, bits, seed), path)
    return path


def matmul_feeds(shape: MatmulShape, *, seed: int) -> dict[str, TensorSpec]:
    """Activations for either kind of model: codes 1 to 255 with a scale a token, and floats."""
    rows = [shape.m, shape.k]
    return {
        "A": TensorSpec(shape=rows, dtype="uint8", low=1, high=255, seed=seed),
        "a_scale": TensorSpec(shape=[shape.m, 1], dtype="float32", low=0.005, high=0.02, seed=seed),
        "x": TensorSpec(shape=rows, dtype="float32", low=-1, high=1, seed=seed),
    }


def matmul_bytes(shape: MatmulShape, bits: int) -> int:
    """Bytes of activations, weight as the file stores it, and float32 output."""
    from qexport.graphs.packing import packed_width

    if bits == FLOAT_BITS:
        return 4 * (shape.m * shape.k + shape.k * shape.n + shape.m * shape.n)
    return shape.m * shape.k + shape.n * packed_width(shape.k, bits) + 4 * shape.m * shape.n


def _packed(shape: MatmulShape, bits: int, seed: int) -> Any:
    from qexport.formats import max_code
    from qexport.graphs.operators import OPERATORS, ZERO_POINT, matmul_name
    from qexport.graphs.operators.single import operator_model
    from qexport.graphs.packing import pack

    rng = np.random.default_rng(seed)
    size = (shape.n, shape.k)
    codes = (
        rng.choice([-1, 1], size) if bits == 1 else rng.integers(-max_code(bits), max_code(bits) + 1, size)
    )
    inputs: dict[str, npt.NDArray[Any]] = {
        "A": np.full((1, shape.k), ZERO_POINT, np.uint8),
        "a_scale": np.full((1, 1), 0.01, np.float32),
        "a_zero_point": np.array(ZERO_POINT, np.uint8),
        "B": pack(codes.astype(np.int8), bits),
        "b_scale": rng.uniform(0.01, 0.02, shape.n).astype(np.float32),
        "bias": np.zeros(shape.n, np.float32),
    }
    stored = ("a_zero_point", "B", "b_scale", "bias")
    name = matmul_name(bits)
    values = [inputs[key] for key in OPERATORS[name].inputs]
    return operator_model(OPERATORS, name, values, {"K": shape.k}, constants=stored)


def _float(shape: MatmulShape, seed: int) -> Any:
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(seed)
    weight = rng.standard_normal((shape.k, shape.n), dtype=np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "weight"], ["product"]),
            helper.make_node("Add", ["product", "bias"], ["y"]),
        ],
        "matmul",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, shape.k])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, shape.n])],
        [
            numpy_helper.from_array(weight, "weight"),
            numpy_helper.from_array(np.zeros(shape.n, np.float32), "bias"),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
