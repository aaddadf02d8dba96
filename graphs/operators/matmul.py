"""`TernaryMatMul` and its siblings: an integer matrix product with a packed low-bit weight.

    acc[..., n] = sum_k (A[..., k] - a_zero_point) * W[n, k]                     int32, exact
    Y[..., n] = (float(acc[..., n]) * b_scale[n]) * a_scale + bias[n]            float32, each step rounded

On x86 without VNNI a product of uint8 by int8 adds two products in 16 bits and saturates unless |W| <= 64, so
weights of 8 bits go in as uint8 with zero point 128, and all narrower ones as int8.

One scale is multiplied in after the other, not their product: ONNX Runtime fuses a product by
a_scale * b_scale to one MatMulIntegerToFloat node, which rounds in another order than was written. The bias
is added as the subtraction of -bias, which is the same number: that node would multiply the bias by a_scale
too when there is a scale for each token (versions 1.16 to 1.32), and no fusion looks for a subtraction.
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

__all__ = ["MATMULS", "matmul_name"]

INPUTS = ("A", "a_scale", "a_zero_point", "B", "b_scale", "bias")


def matmul_name(bits: int) -> str:
    """Operator type for weights of `bits` bits: BinaryMatMul, TernaryMatMul, Int3MatMul ... Int8MatMul."""
    return {1: "Binary", 2: "Ternary"}.get(bits, f"Int{bits}") + "MatMul"


def _build(body: Body, bits: int) -> None:
    if bits == 8:
        weight = body.node("Transpose", "B", perm=[1, 0])
        zero = body.constant(128, np.uint8)
        acc = body.node("MatMulInteger", "A", weight, "a_zero_point", zero)
    else:
        weight = body.node("Transpose", decode(body, "B", bits, np.int8), perm=[1, 0])
        acc = body.node("MatMulInteger", "A", weight, "a_zero_point")
    by_row = body.node("Mul", body.node("Cast", acc, to=onnx.TensorProto.FLOAT), "b_scale")
    product = body.node("Mul", by_row, "a_scale")
    body.node("Sub", product, body.node("Neg", "bias"), output="Y")


def _reference(
    a: npt.NDArray[np.uint8],
    a_scale: npt.NDArray[np.float32],
    a_zero_point: npt.NDArray[np.uint8],
    b: npt.NDArray[np.uint8],
    b_scale: npt.NDArray[np.float32],
    bias: npt.NDArray[np.float32],
    *,
    bits: int,
    K: int,
) -> tuple[npt.NDArray[Any], ...]:
    acc = integer_product(a.astype(np.int32) - np.int32(a_zero_point), unpack(b, K, bits).T)
    return (acc.astype(np.float32) * b_scale * a_scale + bias,)


def integer_product(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> npt.NDArray[np.int32]:
    """Exact int32 product of whole numbers [..., M, K] x [..., K, N]; float64 holds every sum below 2**53."""
    exact = np.matmul(a.astype(np.float64), b.astype(np.float64))
    return np.asarray(exact, np.int32)


def _operator(bits: int) -> Operator:
    name = matmul_name(bits)
    doc = (
        "Y = (A - a_zero_point) W^T * b_scale * a_scale + bias with A uint8 [..., K], a_scale float32 "
        f"scalar or [..., 1], a_zero_point uint8 scalar, B the {bits}-bit weight W [N, K] packed to uint8 "
        "rows, b_scale float32 [N] or [1], bias float32 [N]; the product is accumulated in int32."
    )
    return Operator(
        name, INPUTS, ("Y",), ("K",), partial(_build, bits=bits), partial(_reference, bits=bits), doc
    )


MATMULS = {matmul_name(bits): _operator(bits) for bits in range(1, 9)}
"""BinaryMatMul, TernaryMatMul, Int3MatMul ... Int8MatMul."""
