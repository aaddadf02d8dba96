"""`QuantizedAttention` and its variants: int8 QK^T, mask, softmax, int8 PV.

    scores = (float(sum qq * kq) * s_k^T) * (s_q * scaling) + (mask ? 0 : -10000)
    e = round_half_even(1117 exp(round_half_even(256 (scores - max scores)) / 256));  p = e / sum e
    q_p = round_half_even(p / s_p) in 0..127
    Y = float(sum q_p * v_q) * (s_p * s_v)

Each step is rounded to float32. e holds whole numbers, so its sum has no order, and no whole number of 256ths
has an exponential so close to a tie that another library's exp would round it to another e: every engine
gets the same bits (qexport.formats).

q, k, v and Y are float32 [B, S, H * D], the heads side by side as a linear layer writes them; the sums above
run inside one head. mask is bool [B, 1, 1, S], true for a token that is kept. A function body cannot look at
whether an input or an attribute is there, so each way of finding the scales has its own name:

| operator | scales |
| --- | --- |
| QuantizedAttention | q, k, p one a token; v one a sentence and head, over the kept tokens |
| QuantizedAttentionPerTensor | one a tensor, padding included |
| QuantizedAttentionStatic | inputs q_scale, k_scale, p_scale, v_scale, float32 scalars |
| QuantizedAttentionStaticBounded | the same; codes of q, k, v in -top..top, of p in 0..p_top |

The first three names with the suffix QK quantise q and k only; p and v stay floats there:

    Y = float32(sum e * v in float64) / sum e
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from qexport.formats import LARGEST_POWER, SCORE_STEPS
from qexport.graphs.operators.body import Body, Operator
from qexport.graphs.operators.matmul import integer_product
from qexport.graphs.operators.quantize import (
    ZERO_POINT,
    bounded_scale,
    codes_by_row,
    codes_of_scalar,
    codes_per_tensor,
    codes_per_token,
    dynamic_scale,
    scale_of,
    symmetric_codes,
)

__all__ = ["ATTENTIONS", "attention_name"]

MASKED = -10000.0
"""Added to the scores of tokens that the mask drops; exp of it is 0 in float32."""

ACTIVATIONS = {"dynamic-token": "", "dynamic-tensor": "PerTensor", "static": "Static"}


def attention_name(activation: str, *, quantize_pv: bool = True, bounded: bool = False) -> str:
    """Operator type for an activation mode of `qexport.formats.ACTIVATION_MODES`.

    Args:
        activation: how scales are found.
        quantize_pv: whether the probabilities and the values are quantised too.
        bounded: whether codes have fewer than 8 bits; static only, with quantize_pv.
    """
    return (
        f"QuantizedAttention{ACTIVATIONS[activation]}{'Bounded' if bounded else ''}"
        f"{'' if quantize_pv else 'QK'}"
    )


def _heads(body: Body) -> tuple[str, str, str]:
    """q, k, v as [B, H, S, D].

    Floats are transposed, not codes, though these have a quarter of the bytes: the scales would have to be
    transposed too, and ONNX Runtime moves such a Transpose behind their product, which is S times as large.
    """
    keep, rest = body.constant([0, 0], np.int64), body.constant([-1], np.int64)
    split = body.node("Concat", keep, body.integer("num_heads"), rest, axis=0)
    q, k, v = (body.node("Transpose", body.node("Reshape", x, split), perm=[0, 2, 1, 3]) for x in "qkv")
    return q, k, v


def _code(body: Body, attribute: str, dtype: npt.DTypeLike, *, sign: int = 1, offset: int = 0) -> str:
    """offset + sign * attribute as a scalar of an integer type."""
    code = body.node("Mul", body.integer(attribute), body.constant([sign], np.int64))
    shifted = body.node("Add", code, body.constant([offset], np.int64))
    cast = body.node("Cast", shifted, to=onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))
    return body.node("Squeeze", cast, body.constant([0], np.int64))


def _site(body: Body, x: str, activation: str, scale: str, bounded: bool) -> tuple[str, str]:
    """Codes uint8 [B, H, S, D] with zero point 128, and their scale [B, H, S] or scalar, of q or k."""
    if bounded:
        low, high = (_code(body, "top", np.uint8, sign=sign, offset=ZERO_POINT) for sign in (-1, 1))
        codes = body.node("QuantizeLinear", x, scale, body.constant(ZERO_POINT, np.uint8))
        return body.node("Clip", codes, low, high), scale
    if activation == "dynamic-token":
        return codes_per_token(body, x)
    if activation == "dynamic-tensor":
        return codes_per_tensor(body, x)
    return codes_of_scalar(body, x, scale), scale


def _values(body: Body, v: str, activation: str, bounded: bool) -> tuple[str, str]:
    """Codes int8 [B, H, S, D] and their scale, [B, H, 1] or scalar, of v."""
    if bounded:
        low, high = (_code(body, "top", np.int8, sign=sign) for sign in (-1, 1))
        codes = body.node("QuantizeLinear", v, "v_scale", body.constant(0, np.int8))
        return body.node("Clip", codes, low, high), "v_scale"
    lowest = body.constant(-127, np.int8)
    if activation == "dynamic-token":
        # divided before the largest is taken: OpenVINO would make one pass of both, and multiply by 1 / 127
        tokens = body.largest_magnitude(v, [-1], keepdims=False)
        steps = body.node("Div", tokens, body.constant(127, np.float32))
        kept = body.node("Squeeze", "mask", body.constant([1], np.int64))
        masked = body.node("Where", kept, steps, body.constant(0, np.float32))
        scale = bounded_scale(body, body.reduce("ReduceMax", masked, [-1], keepdims=False), clip=True)
        codes = codes_by_row(body, body.node("Flatten", v, axis=2), scale, 0, np.int8)
        column = body.node("Unsqueeze", scale, body.constant([-1], np.int64))
        return body.node("Reshape", body.node("Clip", codes, lowest), body.node("Shape", v)), column
    scale = "v_scale"
    if activation == "dynamic-tensor":
        scale = scale_of(body, body.largest_magnitude(v, None, keepdims=False), clip=True)
    codes = body.node("QuantizeLinear", v, scale, body.constant(0, np.int8))
    return body.node("Clip", codes, lowest), scale


def _probabilities(body: Body, p: str, total: str, activation: str, bounded: bool) -> tuple[str, str]:
    """Codes uint8 0..127 [B, H, S, S] with zero point 0, and their scale, [B, H, S] or scalar.

    A row's largest power is LARGEST_POWER, so that its largest probability needs no search.
    """
    most = body.constant(LARGEST_POWER, np.float32)
    if bounded:
        codes = body.node("QuantizeLinear", p, "p_scale", body.constant(0, np.uint8))
        return body.node("Clip", codes, body.constant(0, np.uint8), _code(body, "p_top", np.uint8)), "p_scale"
    if activation == "dynamic-token":
        rows = body.node("Squeeze", total, body.constant([-1], np.int64))
        scale = scale_of(body, body.node("Div", most, rows), clip=False)
        codes = codes_by_row(body, body.node("Flatten", p, axis=-1), scale, 0, np.uint8)
        return body.node("Reshape", codes, body.node("Shape", p)), scale
    if activation == "dynamic-tensor":
        smallest = body.reduce("ReduceMin", total, None, keepdims=False)
        scale = scale_of(body, body.node("Div", most, smallest), clip=False)
        return body.node("QuantizeLinear", p, scale, body.constant(0, np.uint8)), scale
    codes = body.node("QuantizeLinear", p, "p_scale", body.constant(0, np.uint8))
    return body.node("Clip", codes, body.constant(0, np.uint8), body.constant(127, np.uint8)), "p_scale"


def _powers(body: Body, steps: str) -> tuple[str, str]:
    """Whole exponentials float32 [B, H, S, S] of scores in steps of 1 / SCORE_STEPS, and their sum."""
    below = body.node("Sub", steps, body.reduce("ReduceMax", steps, [-1], keepdims=True))
    exponent = body.node("Mul", body.node("Round", below), body.constant(1 / SCORE_STEPS, np.float32))
    power = body.node("Mul", body.node("Exp", exponent), body.constant(LARGEST_POWER, np.float32))
    whole = body.node("Round", power)
    return whole, body.node("ReduceSum", whole, body.constant([-1], np.int64), keepdims=1)


def powers_of(scores: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Whole exponentials of scores rounded to steps, and their sum over the last axis, of length 1 there."""
    steps = np.rint((scores - scores.max(axis=-1, keepdims=True)) * np.float32(SCORE_STEPS))
    power = np.rint(np.exp(steps / np.float32(SCORE_STEPS)) * np.float32(LARGEST_POWER))
    return power, power.sum(axis=-1, keepdims=True, dtype=np.float32)


def softmax(scores: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Softmax over the last axis, from scores rounded to steps and with whole exponentials."""
    powers, total = powers_of(scores)
    return np.asarray(powers / total)


def _build(body: Body, activation: str, quantize_pv: bool, bounded: bool) -> None:
    per_token = activation == "dynamic-token"
    heads = _heads(body)
    q, q_scale = _site(body, heads[0], activation, "q_scale", bounded)
    k, k_scale = _site(body, heads[1], activation, "k_scale", bounded)
    last, second_last = body.constant([-1], np.int64), body.constant([-2], np.int64)
    zero, steps = body.constant(ZERO_POINT, np.uint8), body.constant(SCORE_STEPS, np.float32)
    acc = body.node("MatMulInteger", q, body.node("Transpose", k, perm=[0, 1, 3, 2]), zero, zero)
    # Scores are kept in steps of 1 / SCORE_STEPS: a power of two, so that no rounding comes in by it.
    scaled = body.node("Mul", body.node("Mul", q_scale, body.number("scaling")), steps)
    if per_token:
        scaled, k_scale = body.node("Unsqueeze", scaled, last), body.node("Unsqueeze", k_scale, second_last)
    # one scale after the other: ONNX Runtime would fuse a product by both, and round in another order
    by_key = body.node("Mul", body.node("Cast", acc, to=onnx.TensorProto.FLOAT), k_scale)
    scores = body.node("Mul", by_key, scaled)
    # subtracted, not added: ONNX Runtime would take an addition of [1, 1, 1, S] for a bias, see matmul.py
    drop = body.node(
        "Where", "mask", body.constant(0, np.float32), body.constant(-MASKED * SCORE_STEPS, np.float32)
    )
    powers, total = _powers(body, body.node("Sub", scores, drop))
    if quantize_pv:
        p = body.node("Div", powers, total)
        codes, p_scale = _probabilities(body, p, total, activation, bounded)
        values, v_scale = _values(body, heads[2], activation, bounded)
        out = body.node("Cast", body.node("MatMulInteger", codes, values), to=onnx.TensorProto.FLOAT)
        scale = body.node("Mul", p_scale, v_scale)
        context = body.node("Mul", out, body.node("Unsqueeze", scale, last) if per_token else scale)
    else:
        wide = (body.node("Cast", x, to=onnx.TensorProto.DOUBLE) for x in (powers, heads[2]))
        average = body.node("Cast", body.node("MatMul", *wide), to=onnx.TensorProto.FLOAT)
        context = body.node("Div", average, total)
    together = body.node("Transpose", context, perm=[0, 2, 1, 3])
    body.node("Reshape", together, body.constant([0, 0, -1], np.int64), output="Y")


def _split(x: npt.NDArray[np.float32], num_heads: int) -> npt.NDArray[np.float32]:
    """[B, S, H * D] as [B, H, S, D]."""
    return x.reshape(*x.shape[:2], num_heads, x.shape[2] // num_heads).swapaxes(1, 2)


def _join(x: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """[B, H, S, D] as [B, S, H * D]."""
    return x.swapaxes(1, 2).reshape(x.shape[0], x.shape[2], -1)


def _reference(
    q: npt.NDArray[np.float32],
    k: npt.NDArray[np.float32],
    v: npt.NDArray[np.float32],
    mask: npt.NDArray[np.bool_],
    *scales: npt.NDArray[np.float32],
    activation: str,
    quantize_pv: bool,
    num_heads: int,
    scaling: float,
    clip: float = 0.0,
    top: int = 127,
    p_top: int = 127,
) -> tuple[npt.NDArray[Any], ...]:
    q, k, v = (_split(x, num_heads) for x in (q, k, v))

    def scale(x: npt.NDArray[np.float32], site: int, limit: float) -> npt.NDArray[np.float32]:
        if activation == "static":
            return scales[site]
        if activation == "dynamic-tensor":
            return dynamic_scale(np.asarray(np.abs(x).max()), limit)
        return dynamic_scale(np.abs(x).max(axis=-1, keepdims=True), limit)

    q_scale, k_scale = scale(q, 0, clip), scale(k, 1, clip)
    keys = symmetric_codes(k, k_scale, top).swapaxes(-1, -2)
    acc = integer_product(symmetric_codes(q, q_scale, top), keys)
    across = k_scale.swapaxes(-1, -2) if k_scale.ndim else k_scale
    scores = acc.astype(np.float32) * across * (q_scale * np.float32(scaling))
    scores = scores + np.where(mask, np.float32(0), np.float32(MASKED))
    if not quantize_pv:
        powers, total = powers_of(scores)
        average = np.matmul(powers.astype(np.float64), v.astype(np.float64)).astype(np.float32)
        return (_join(average / total),)
    p = softmax(scores)
    p_scale = scale(p, 2, 0.0)
    if activation == "dynamic-token":
        kept = np.where(mask.swapaxes(-1, -2), np.abs(v).max(axis=-1, keepdims=True), np.float32(0))
        v_scale = dynamic_scale(kept.max(axis=2, keepdims=True), clip)
    else:
        v_scale = scale(v, 3, clip)
    out = integer_product(symmetric_codes(p, p_scale, p_top), symmetric_codes(v, v_scale, top))
    return (_join(out.astype(np.float32) * (p_scale * v_scale)),)


def _operator(activation: str, quantize_pv: bool, bounded: bool = False) -> Operator:
    inputs: tuple[str, ...] = ("q", "k", "v", "mask")
    attributes: tuple[str, ...] = ("num_heads", "scaling", "clip")
    how = {
        "dynamic-token": "a scale for each token of q, k and p, and for each sentence and head of v",
        "dynamic-tensor": "a scale for each whole tensor, padding included",
        "static": "stored float32 scalar scales",
    }[activation]
    if activation == "static":
        attributes = ("num_heads", "scaling")
        inputs += ("q_scale", "k_scale", "p_scale", "v_scale") if quantize_pv else ("q_scale", "k_scale")
    what = "8-bit QK^T and PV" if quantize_pv else "8-bit QK^T and float PV"
    if bounded:
        attributes += ("top", "p_top")
        how += ", codes of q, k and v in -top..top and of p in 0..p_top"
    return Operator(
        attention_name(activation, quantize_pv=quantize_pv, bounded=bounded),
        inputs,
        ("Y",),
        attributes,
        partial(_build, activation=activation, quantize_pv=quantize_pv, bounded=bounded),
        partial(_reference, activation=activation, quantize_pv=quantize_pv),
        f"Attention with {what}, {how}; q, k, v, Y float32 [B, S, num_heads * D], "
        "mask bool [B, 1, 1, S], true to keep.",
    )


ATTENTIONS = {
    operator.name: operator
    for operator in (
        *(_operator(activation, pv) for activation in ACTIVATIONS for pv in (True, False)),
        _operator("static", True, bounded=True),
    )
}
"""QuantizedAttention, ...PerTensor, ...Static and their QK forms; QuantizedAttentionStaticBounded."""
