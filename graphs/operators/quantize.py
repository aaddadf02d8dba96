"""`QuantizePerToken` and `QuantizePerTensor`: symmetric 8-bit activations whose scale is found at run time.

    scale = max(min(max |x|, clip) / 127, SMALLEST_SCALE)         over the last axis, or over the whole tensor
    q = clip(round_half_even(x / scale), -127, 127) + 128         uint8, 1..255, zero point 128

That equals clipping x to [-clip, clip] first: a clipped value has code 127 or -127 either way.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from qexport.graphs.operators.body import Body, Operator

__all__ = ["QUANTIZERS", "SMALLEST_SCALE", "ZERO_POINT"]

SMALLEST_SCALE = np.float32(1.2e-32)
"""Scale of a tensor of zeros; x / SMALLEST_SCALE is finite for |x| below 4e6."""

ZERO_POINT = 128
"""Zero point of every uint8 activation."""


def scale_of(body: Body, largest: str, *, clip: bool) -> str:
    """max(min(largest, clip) / 127, SMALLEST_SCALE), of the shape of `largest`.

    Written as one Clip of largest / 127 between SMALLEST_SCALE and clip / 127: division keeps order, so the
    numbers are the same. The bound, infinite when the attribute is 0, is a constant.
    """
    return bounded_scale(body, body.node("Div", largest, body.constant(127, np.float32)), clip=clip)


def bounded_scale(body: Body, step: str, *, clip: bool) -> str:
    """`scale_of` where the largest magnitude / 127 is there already."""
    divisor, smallest = body.constant(127, np.float32), body.constant(SMALLEST_SCALE, np.float32)
    if not clip:
        return body.node("Max", step, smallest)
    bound = body.number("clip")
    on = body.node("Greater", bound, body.constant(0, np.float32))
    limit = body.node("Where", on, bound, body.constant(np.inf, np.float32))
    return body.node("Clip", step, smallest, body.node("Div", limit, divisor))


def codes_by_row(body: Body, x: str, scale: str, zero_point: int, dtype: npt.DTypeLike) -> str:
    """Codes of a matrix [T, C] with one scale a row (any shape of T elements), by QuantizeLinear."""
    scales = body.node("Reshape", scale, body.constant([-1], np.int64))
    zeros = body.node("ConstantOfShape", body.node("Shape", scales), value=one_value(zero_point, dtype))
    return body.node("QuantizeLinear", x, scales, zeros, axis=0)


def codes_per_token(body: Body, x: str) -> tuple[str, str]:
    """Codes uint8 of x [..., K] and their scale [...].

    The scale is kept without a last axis of length 1 for as long as it can be: ONNX Runtime takes such a
    tensor element by element when the other operand is a scalar, some thirty times slower.
    """
    scale = scale_of(body, body.largest_magnitude(x, [-1], keepdims=False), clip=True)
    codes = codes_by_row(body, body.node("Flatten", x, axis=-1), scale, ZERO_POINT, np.uint8)
    bounded = body.node("Clip", codes, body.constant(1, np.uint8))
    return body.node("Reshape", bounded, body.node("Shape", x)), scale


def codes_per_tensor(body: Body, x: str) -> tuple[str, str]:
    """Codes uint8 of x and their scalar scale."""
    scale = scale_of(body, body.largest_magnitude(x, None, keepdims=False), clip=True)
    return codes_of_scalar(body, x, scale), scale


def codes_of_scalar(body: Body, x: str, scale: str) -> str:
    """Codes uint8 1..255 of x with zero point 128 and a scalar scale."""
    codes = body.node("QuantizeLinear", x, scale, body.constant(ZERO_POINT, np.uint8))
    return body.node("Clip", codes, body.constant(1, np.uint8))


def one_value(value: int, dtype: npt.DTypeLike) -> onnx.TensorProto:
    """A tensor of shape [1]."""
    return numpy_helper.from_array(np.array([value], dtype))


def _build_per_token(body: Body) -> None:
    codes, scale = codes_per_token(body, "x")
    body.node("Identity", codes, output="q")
    body.node("Unsqueeze", scale, body.constant([-1], np.int64), output="scale")


def _build_per_tensor(body: Body) -> None:
    codes, scale = codes_per_tensor(body, "x")
    body.node("Identity", codes, output="q")
    body.node("Identity", scale, output="scale")


def dynamic_scale(largest: npt.NDArray[np.float32], clip: float) -> npt.NDArray[np.float32]:
    """The scale for a largest magnitude, float32 of any shape."""
    limit = np.float32(clip) if clip > 0 else np.float32(np.inf)
    return np.asarray(np.maximum(np.minimum(largest, limit) / np.float32(127), SMALLEST_SCALE))


def symmetric_codes(
    x: npt.NDArray[np.float32], scale: npt.NDArray[np.float32], top: int = 127
) -> npt.NDArray[np.int32]:
    """round_half_even(x / scale) bounded to -top..top."""
    return np.asarray(np.clip(np.rint(x / scale), -top, top), np.int32)


def _reference_per_token(x: npt.NDArray[np.float32], *, clip: float) -> tuple[npt.NDArray[Any], ...]:
    scale = dynamic_scale(np.abs(x).max(axis=-1, keepdims=True), clip)
    return (symmetric_codes(x, scale) + ZERO_POINT).astype(np.uint8), scale


def _reference_per_tensor(x: npt.NDArray[np.float32], *, clip: float) -> tuple[npt.NDArray[Any], ...]:
    scale = dynamic_scale(np.asarray(np.abs(x).max()), clip)
    return (symmetric_codes(x, scale) + ZERO_POINT).astype(np.uint8), scale


QUANTIZERS = {
    "QuantizePerToken": Operator(
        "QuantizePerToken",
        ("x",),
        ("q", "scale"),
        ("clip",),
        _build_per_token,
        _reference_per_token,
        "Symmetric 8-bit codes of x float32 [..., K] with one scale a token: q uint8 [..., K] with zero "
        "point 128, scale float32 [..., 1] = max(min(max |x|, clip) / 127, 1.2e-32); clip 0 means none.",
    ),
    "QuantizePerTensor": Operator(
        "QuantizePerTensor",
        ("x",),
        ("q", "scale"),
        ("clip",),
        _build_per_tensor,
        _reference_per_tensor,
        "Symmetric 8-bit codes of x float32 with one scale: q uint8, shape of x, with zero point 128, scale "
        "float32 scalar = max(min(max |x|, clip) / 127, 1.2e-32); clip 0 means none.",
    ),
}
"""QuantizePerToken and QuantizePerTensor."""
