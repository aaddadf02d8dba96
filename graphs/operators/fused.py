"""GELU and LayerNorm, alone and in one pass with the quantisation that follows.

    Gelu, GeluQuantize*     h = round_half_even(128 x)
                            y = round_half_even(h * (1 + erf(h / (128 sqrt 2)))) / 256
    AddLayerNormQuantize*   z = x + residual;  i = 1 / (max(max |z|, 1e-18) / 128);  n = z * i
    LayerNorm               the same with z = x
                            m = sum round_half_even(64 n) * (1 / K / 64)
                            v = sum round_half_even(n * n) * (1 / K) - m * m
                            w = 16 min(max(v + i * epsilon * i, 1 / 4), 16384)
                            k = round_half_even(sqrt(round_half_even(w)))
                            y = (n - m) * (8 gamma) * (k / (k * k + w)) + beta

    ...PerToken             (q, scale) = QuantizePerToken(y)
    ...Linear               q = clip(round_half_even(y / scale), -127, 127) + 128, scale an input

The largest magnitude and the sums are over the last axis, of K values. Each step is rounded to float32.
8 k / (k * k + w) is 1 / sqrt(w / 16) after a step of Newton's method from k / 4.

All engines agree on y: GELU takes and gives values of a grid on which no erf of float32 quality can round
to a neighbour, LayerNorm's sums are of whole numbers, which float32 adds up without rounding in any order,
and an approximate square root leads to the same k (qexport.formats).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from qexport.formats import (
    GELU_INPUT_STEPS,
    GELU_OUTPUT_STEPS,
    LARGEST_VARIANCE,
    NORM_MEAN_STEPS,
    NORM_RANGE,
    ROOT_STEPS,
    SMALLEST_MAGNITUDE,
    SMALLEST_VARIANCE,
)
from qexport.graphs.operators.body import Body, Operator
from qexport.graphs.operators.quantize import (
    ZERO_POINT,
    codes_of_scalar,
    codes_per_token,
    dynamic_scale,
    symmetric_codes,
)

__all__ = ["FUSED", "gelu", "layer_norm"]

ERF_FACTOR = np.float32(1 / (GELU_INPUT_STEPS * math.sqrt(2)))
"""From steps of GELU's input to the argument of erf."""

Floats = npt.NDArray[np.float32]


def _gelu(body: Body, output: str = "") -> str:
    # h * (1 + erf) is GELU in steps of the output, since these are twice as many as those of the input
    h = body.node("Round", body.node("Mul", "x", body.constant(GELU_INPUT_STEPS, np.float32)))
    erf = body.node("Erf", body.node("Mul", h, body.constant(ERF_FACTOR, np.float32)))
    steps = body.node("Mul", h, body.node("Add", erf, body.constant(1, np.float32)))
    step = body.constant(1 / GELU_OUTPUT_STEPS, np.float32)
    return body.node("Mul", body.node("Round", steps), step, output=output)


def _layer_norm(body: Body, x: str) -> str:
    def number(value: float) -> str:
        return body.constant(value, np.float32)

    def total(x: str) -> str:
        return body.node("ReduceSum", x, body.constant([-1], np.int64), keepdims=1)

    # Multiplied by 1 / K, not divided by K: OpenVINO would turn that into another product. Divided, not
    # Reciprocal: that is an approximation on Arm, and so is Sqrt on x86 before ONNX Runtime 1.24.
    one = number(1)
    share = body.node("Div", one, body.node("Cast", body.node("Size", "gamma"), to=onnx.TensorProto.FLOAT))
    largest = body.node("Max", body.largest_magnitude(x, [-1], keepdims=True), number(SMALLEST_MAGNITUDE))
    stretch = body.node("Div", one, body.node("Mul", largest, number(1 / NORM_RANGE)))
    n = body.node("Mul", x, stretch)
    steps = total(body.node("Round", body.node("Mul", n, number(NORM_MEAN_STEPS))))
    mean = body.node("Mul", steps, body.node("Mul", share, number(1 / NORM_MEAN_STEPS)))
    squares = body.node("Mul", total(body.node("Round", body.node("Mul", n, n))), share)
    variance = body.node("Sub", squares, body.node("Mul", mean, mean))
    # Subtracted negated, here and below: a sum of a product would be fused and rounded once.
    less = body.node("Mul", body.node("Mul", stretch, body.node("Neg", body.number("epsilon"))), stretch)
    bounds = number(SMALLEST_VARIANCE), number(LARGEST_VARIANCE)
    variance = body.node("Clip", body.node("Sub", variance, less), *bounds)
    wide = body.node("Mul", variance, number(ROOT_STEPS))
    root = body.node("Round", body.node("Sqrt", body.node("Round", wide)))
    factor = body.node("Div", root, body.node("Add", body.node("Mul", root, root), wide))
    weight = body.node("Mul", "gamma", number(8))
    scaled = body.node("Mul", body.node("Mul", body.node("Sub", n, mean), weight), factor)
    return body.node("Sub", scaled, body.node("Neg", "beta"), output="y")


def _add_layer_norm(body: Body) -> str:
    return _layer_norm(body, body.node("Add", "x", "residual"))


def _quantize_per_token(body: Body, y: str) -> None:
    codes, scale = codes_per_token(body, y)
    body.node("Identity", codes, output="q")
    body.node("Unsqueeze", scale, body.constant([-1], np.int64), output="scale")


def _quantize_linear(body: Body, y: str) -> None:
    body.node("Identity", codes_of_scalar(body, y, "scale"), output="q")


def _build_gelu(body: Body) -> None:
    _gelu(body, "y")


def _build_layer_norm(body: Body) -> None:
    _layer_norm(body, "x")


def _build_gelu_per_token(body: Body) -> None:
    _quantize_per_token(body, _gelu(body))


def _build_gelu_linear(body: Body) -> None:
    _quantize_linear(body, _gelu(body))


def _build_layer_norm_per_token(body: Body) -> None:
    _quantize_per_token(body, _add_layer_norm(body))


def _build_layer_norm_linear(body: Body) -> None:
    _quantize_linear(body, _add_layer_norm(body))


def gelu(x: Floats) -> Floats:
    """GELU from grid to grid, with the erf of the C library."""
    h = np.rint(x * np.float32(GELU_INPUT_STEPS))
    erf = np.array([math.erf(value) for value in (h * ERF_FACTOR).ravel().tolist()], np.float32)
    return np.asarray(np.rint(h * (erf.reshape(x.shape) + np.float32(1))) / np.float32(GELU_OUTPUT_STEPS))


def layer_norm(x: Floats, gamma: Floats, beta: Floats, epsilon: float) -> Floats:
    """LayerNorm over the last axis, its sums of whole numbers; each step in float32."""
    share = np.float32(1) / np.float32(x.shape[-1])
    largest = np.maximum(np.abs(x).max(axis=-1, keepdims=True), np.float32(SMALLEST_MAGNITUDE))
    stretch = np.float32(1) / (largest * np.float32(1 / NORM_RANGE))
    n = x * stretch

    def total(values: Floats) -> Floats:
        return np.asarray(np.rint(values).sum(axis=-1, keepdims=True, dtype=np.float32))

    mean = total(n * np.float32(NORM_MEAN_STEPS)) * (share * np.float32(1 / NORM_MEAN_STEPS))
    variance = total(n * n) * share - mean * mean + stretch * np.float32(epsilon) * stretch
    bounded = np.clip(variance, np.float32(SMALLEST_VARIANCE), np.float32(LARGEST_VARIANCE))
    wide = bounded * np.float32(ROOT_STEPS)
    root = np.rint(np.sqrt(np.rint(wide)))
    return np.asarray((n - mean) * (gamma * np.float32(8)) * (root / (root * root + wide)) + beta)


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
    y = layer_norm(x + residual, gamma, beta, epsilon)
    return (y, *_per_token(y, clip))


def _reference_layer_norm_linear(
    x: Floats, residual: Floats, gamma: Floats, beta: Floats, scale: Floats, *, epsilon: float
) -> tuple[npt.NDArray[Any], ...]:
    y = layer_norm(x + residual, gamma, beta, epsilon)
    return (y, _linear(y, scale))


def _reference_gelu(x: Floats) -> tuple[npt.NDArray[Any], ...]:
    return (gelu(x),)


def _reference_layer_norm(
    x: Floats, gamma: Floats, beta: Floats, *, epsilon: float
) -> tuple[npt.NDArray[Any], ...]:
    return (layer_norm(x, gamma, beta, epsilon),)


_GELU = "y = GELU(x) from multiples of 1/128 to multiples of 1/256, x float32 [..., K]"
_NORM = (
    "y = LayerNorm(x + residual) over the last axis with gamma and beta [K]; x float32 [..., K], residual of "
    "the same shape, or [1, S, K] for x [B, S, K]"
)
_PER_TOKEN = "q, scale = QuantizePerToken(y)"
_LINEAR = "q uint8 = clip(round_half_even(y / scale), -127, 127) + 128, scale float32 scalar"

FUSED = {
    operator.name: operator
    for operator in (
        Operator("Gelu", ("x",), ("y",), (), _build_gelu, _reference_gelu, f"{_GELU}."),
        Operator(
            "LayerNorm",
            ("x", "gamma", "beta"),
            ("y",),
            ("epsilon",),
            _build_layer_norm,
            _reference_layer_norm,
            "y = LayerNorm(x) over the last axis with gamma and beta [K]; x float32 [..., K].",
        ),
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
"""Gelu, GeluQuantizePerToken, GeluQuantizeLinear; LayerNorm, AddLayerNormQuantizePerToken, ...Linear."""
