"""GELU, and addition with LayerNorm, each with the quantisation that follows: one pass over the activation.

    GeluQuantize*           y = x * (1 + erf(x / sqrt 2)) * 0.5
    AddLayerNormQuantize*   z = x + residual;  y = (z - mean z) / sqrt(var z + epsilon) * gamma + beta

    ...PerToken             (q, scale) = QuantizePerToken(y)
    ...Linear               q = clip(round_half_even(y / scale), -127, 127) + 128, scale an input

The mean and the variance are over the last axis. Factors of GELU stand in the order that ONNX Runtime fuses,
see graphs/rewrites/reorder_gelu.py. erf, and the order of the sums in LayerNorm, differ between runtimes in
the last bits, so a value that lies between two codes may take either.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from qexport.graphs.operators.body import Body, Operator
from qexport.graphs.operators.quantize import (
    ZERO_POINT,
    codes_of_scalar,
    codes_per_token,
    dynamic_scale,
    symmetric_codes,
)

__all__ = ["FUSED", "ROOT_OF_TWO"]

ROOT_OF_TWO = np.float32(np.sqrt(2))
"""What GELU divides by."""

Floats = npt.NDArray[np.float32]


def _gelu(body: Body) -> str:
    scaled = body.node("Div", "x", body.constant(ROOT_OF_TWO, np.float32))
    shifted = body.node("Add", body.node("Erf", scaled), body.constant(1, np.float32))
    return body.node("Mul", body.node("Mul", "x", shifted), body.constant(0.5, np.float32))


def _add_layer_norm(body: Body) -> str:
    total = body.node("Add", "x", "residual")
    y = body.node("LayerNormalization", total, "gamma", "beta", output="y", axis=-1)
    body.forward_number("epsilon")
    return y


def _quantize_per_token(body: Body, y: str) -> None:
    codes, scale = codes_per_token(body, y)
    body.node("Identity", codes, output="q")
    body.node("Unsqueeze", scale, body.constant([-1], np.int64), output="scale")


def _quantize_linear(body: Body, y: str) -> None:
    body.node("Identity", codes_of_scalar(body, y, "scale"), output="q")


def _build_gelu_per_token(body: Body) -> None:
    _quantize_per_token(body, _gelu(body))


def _build_gelu_linear(body: Body) -> None:
    _quantize_linear(body, _gelu(body))


def _build_layer_norm_per_token(body: Body) -> None:
    _quantize_per_token(body, _add_layer_norm(body))


def _build_layer_norm_linear(body: Body) -> None:
    _quantize_linear(body, _add_layer_norm(body))


def gelu(x: Floats) -> Floats:
    """GELU in float32, with the erf of the C library."""
    scaled = x / ROOT_OF_TWO
    values = np.array([math.erf(value) for value in scaled.ravel().tolist()], np.float32)
    return np.asarray(x * (values.reshape(x.shape) + np.float32(1)) * np.float32(0.5))


def add_layer_norm(x: Floats, residual: Floats, gamma: Floats, beta: Floats, epsilon: float) -> Floats:
    """LayerNorm of x + residual over the last axis, each step in float32."""
    total = x + residual
    centred = total - total.mean(axis=-1, keepdims=True, dtype=np.float32)
    variance = np.square(centred).mean(axis=-1, keepdims=True, dtype=np.float32)
    return np.asarray(centred / np.sqrt(variance + np.float32(epsilon)) * gamma + beta)


def _per_token(y: Floats, clip: float) -> tuple[npt.NDArray[np.uint8], Floats]:
    scale = dynamic_scale(np.abs(y).max(axis=-1, keepdims=True), clip)
    return (symmetric_codes(y, scale) + ZERO_POINT).astype(np.uint8), scale


def _linear(y: Floats, scale: Floats) -> npt.NDArray[np.uint8]:
    return (symmetric_codes(y, scale) + ZERO_POINT).astype(np.uint8)


def _reference_gelu_per_token(x: Floats, *, clip: float) -> tuple[npt.NDArray[Any], ...]:
    return _per_token(gelu(x), clip)


def _reference_gelu_linear(x: Floats, scale: Floats) -> tuple[npt.NDArray[Any], ...]:
    return (_linear(gelu(x), scale),)


def _reference_layer_norm_per_token(
    x: Floats, residual: Floats, gamma: Floats, beta: Floats, *, epsilon: float, clip: float
) -> tuple[npt.NDArray[Any], ...]:
    y = add_layer_norm(x, residual, gamma, beta, epsilon)
    return (y, *_per_token(y, clip))


def _reference_layer_norm_linear(
    x: Floats, residual: Floats, gamma: Floats, beta: Floats, scale: Floats, *, epsilon: float
) -> tuple[npt.NDArray[Any], ...]:
    y = add_layer_norm(x, residual, gamma, beta, epsilon)
    return (y, _linear(y, scale))


_GELU = "y = 0.5 x (1 + erf(x / sqrt 2)), x float32 [..., K]"
_NORM = (
    "y = LayerNorm(x + residual) over the last axis with gamma and beta [K]; x float32 [..., K], residual of "
    "the same shape, or [1, S, K] for x [B, S, K]"
)
_PER_TOKEN = "q, scale = QuantizePerToken(y)"
_LINEAR = "q uint8 = clip(round_half_even(y / scale), -127, 127) + 128, scale float32 scalar"

FUSED = {
    operator.name: operator
    for operator in (
        Operator(
            "GeluQuantizePerToken",
            ("x",),
            ("q", "scale"),
            ("clip",),
            _build_gelu_per_token,
            _reference_gelu_per_token,
            f"{_GELU}; {_PER_TOKEN}.",
        ),
        Operator(
            "GeluQuantizeLinear",
            ("x", "scale"),
            ("q",),
            (),
            _build_gelu_linear,
            _reference_gelu_linear,
            f"{_GELU}; {_LINEAR}.",
        ),
        Operator(
            "AddLayerNormQuantizePerToken",
            ("x", "residual", "gamma", "beta"),
            ("y", "q", "scale"),
            ("epsilon", "clip"),
            _build_layer_norm_per_token,
            _reference_layer_norm_per_token,
            f"{_NORM}; {_PER_TOKEN}.",
        ),
        Operator(
            "AddLayerNormQuantizeLinear",
            ("x", "residual", "gamma", "beta", "scale"),
            ("y", "q"),
            ("epsilon",),
            _build_layer_norm_linear,
            _reference_layer_norm_linear,
            f"{_NORM}; {_LINEAR}.",
        ),
    )
}
"""GeluQuantizePerToken, GeluQuantizeLinear, AddLayerNormQuantizePerToken, AddLayerNormQuantizeLinear."""
