"""QuantizedAttention and its variants: integer products, padding, batch invariance, bounds against float."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx.inliner
import onnxruntime as ort
import pytest

from qexport.formats import ACTIVATION_MODES
from qexport.graphs.operators import OPERATORS, attention_name
from qexport.graphs.operators.single import operator_model

CASES = [(activation, pv) for activation in ACTIVATION_MODES for pv in (True, False)]
SHAPE = (3, 12, 2 * 16)
"""Sentences, tokens, heads times width."""


def split(x: np.ndarray) -> np.ndarray:
    """[B, S, 2 * 16] as [B, 2, S, 16]."""
    return x.reshape(*x.shape[:2], 2, 16).swapaxes(1, 2)


def inputs_of(activation: str, pv: bool, seed: int = 0) -> tuple[list[np.ndarray], dict[str, int | float]]:
    """Three sentences: full, half padded, all padding."""
    rng = np.random.default_rng(seed)
    q, k, v = (rng.normal(size=SHAPE).astype(np.float32) for _ in range(3))
    mask = np.ones((3, 1, 1, 12), bool)
    mask[1, ..., 5:] = False
    mask[2] = False
    attributes: dict[str, int | float] = {"num_heads": 2, "scaling": 0.25}
    inputs = [q, k, v, mask]
    if activation == "static":
        inputs += [np.array(s, np.float32) for s in (0.02, 0.02, 1 / 127, 0.02)[: 4 if pv else 2]]
    else:
        attributes["clip"] = 2.0
    return inputs, attributes


def run(model: onnx.ModelProto, inputs: list[np.ndarray], *, optimize: bool = True) -> list[Any]:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(
        None, {value.name: array for value, array in zip(session.get_inputs(), inputs, strict=True)}
    )


def float_attention(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, mask: np.ndarray, scaling: float
) -> np.ndarray:
    q, k, v = (split(x).astype(float) for x in (q, k, v))
    scores = q @ k.swapaxes(-1, -2) * scaling + np.where(mask, 0, -10000)
    p = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return (p / p.sum(axis=-1, keepdims=True) @ v).swapaxes(1, 2).reshape(SHAPE)


@pytest.mark.parametrize(("activation", "pv"), CASES)
def test_close_to_float_attention(activation: str, pv: bool) -> None:
    inputs, attributes = inputs_of(activation, pv)
    (y,) = OPERATORS[attention_name(activation, quantize_pv=pv)].reference(*inputs, **attributes)
    bound = 127 * 0.02 if activation == "static" else 2.0
    q, k = (np.clip(x, -bound, bound) for x in inputs[:2])
    v = np.clip(inputs[2], -bound, bound) if pv else inputs[2]
    expected = float_attention(q, k, v, inputs[3], 0.25)
    assert y.dtype == np.float32 and np.isfinite(y).all()
    kept = slice(0, 2) if pv and activation == "dynamic-token" else slice(0, 3)
    assert np.abs(y - expected)[kept].max() < (0.1 if activation == "static" else 0.06)


@pytest.mark.parametrize("static_shapes", [False, True])
@pytest.mark.parametrize(("activation", "pv"), CASES)
def test_onnxruntime_within_one_flipped_code(activation: str, pv: bool, static_shapes: bool) -> None:
    """exp may differ in the last bit, which may move a probability to the neighbouring code."""
    name = attention_name(activation, quantize_pv=pv)
    inputs, attributes = inputs_of(activation, pv, seed=1)
    model = operator_model(OPERATORS, name, inputs, attributes, static=static_shapes)
    (expected,) = OPERATORS[name].reference(*inputs, **attributes)
    for optimize in (False, True):
        difference = np.abs(run(model, inputs, optimize=optimize)[0] - expected)
        assert difference.max() <= (2.5 / 127 if pv else 2e-6)
        assert np.mean(difference > 2e-6) < 1e-2


def test_one_sentence_of_static_shape_keeps_its_mask() -> None:
    """[1, 1, 1, S] has the shape of a bias, which ONNX Runtime would fuse and scale."""
    inputs, attributes = inputs_of("dynamic-token", True)
    inputs = [array[1:2] for array in inputs]
    model = operator_model(OPERATORS, "QuantizedAttention", inputs, attributes, static=True)
    (expected,) = OPERATORS["QuantizedAttention"].reference(*inputs, **attributes)
    assert np.abs(run(model, inputs)[0] - expected).max() < 2e-2


@pytest.mark.parametrize("optimize", [False, True])
@pytest.mark.parametrize(("activation", "pv"), CASES)
def test_integer_products_are_exact(activation: str, pv: bool, optimize: bool) -> None:
    """QK^T of codes at the ends of their range: uint8 by uint8 does not saturate without VNNI."""
    name = attention_name(activation, quantize_pv=pv)
    inputs, attributes = inputs_of(activation, pv)
    signs = np.random.default_rng(5).integers(0, 2, (2, *SHAPE)).astype(np.float32) * 2 - 1
    signs[:, 0] = 1
    inputs[0], inputs[1] = signs[0] * 2.6, signs[1] * 2.7
    model = onnx.inliner.inline_local_functions(operator_model(OPERATORS, name, inputs, attributes))
    products = [node.output[0] for node in model.graph.node if node.op_type == "MatMulInteger"]
    model.graph.output.append(onnx.helper.make_tensor_value_info(products[0], onnx.TensorProto.INT32, None))
    acc = run(model, inputs, optimize=optimize)[1]
    codes = [split(sign.astype(np.int64) * 127) for sign in signs]
    assert np.array_equal(acc, codes[0] @ codes[1].swapaxes(-1, -2))


@pytest.mark.parametrize(("top", "p_top"), [(1, 3), (7, 15), (63, 127)])
def test_bounded_codes_give_the_product_of_bounded_numbers(top: int, p_top: int) -> None:
    """Far beyond the last code every code is +-top: QK^T is a sum of +-top**2, and PV of p_top * top."""
    name = attention_name("static", bounded=True)
    inputs, attributes = inputs_of("static", True)
    signs = np.random.default_rng(5).integers(0, 2, (2, *SHAPE)).astype(np.float32) * 2 - 1
    inputs[0], inputs[1], inputs[2] = signs[0] * 900, signs[1] * 800, np.full(SHAPE, 700, np.float32)
    inputs[6] = np.array(1e-6, np.float32)
    attributes |= {"top": top, "p_top": p_top}
    model = onnx.inliner.inline_local_functions(operator_model(OPERATORS, name, inputs, attributes))
    products = [node.output[0] for node in model.graph.node if node.op_type == "MatMulInteger"]
    model.graph.output.extend(
        onnx.helper.make_tensor_value_info(product, onnx.TensorProto.INT32, None) for product in products
    )
    _, scores, context = run(model, inputs)
    codes = [split(sign.astype(np.int64) * top) for sign in signs]
    assert np.array_equal(scores, codes[0] @ codes[1].swapaxes(-1, -2))
    assert context[0].max() == 12 * p_top * top and (context % (p_top * top) == 0).all()


@pytest.mark.parametrize("pv", [True, False])
def test_per_token_scales_make_a_sentence_independent_of_its_batch(pv: bool) -> None:
    name = attention_name("dynamic-token", quantize_pv=pv)
    inputs, attributes = inputs_of("dynamic-token", pv)
    inputs[0][2] *= 100
    inputs[2][1, 5:] *= 100  # values of padding
    model = operator_model(OPERATORS, name, inputs, attributes)
    batch = run(model, inputs)[0]
    alone = run(model, [array[1:2] for array in inputs])[0]
    assert np.array_equal(batch[1:2], alone)
    cut = [array[1:2, :5] for array in inputs[:3]] + [inputs[3][1:2, ..., :5]]
    assert np.abs(run(model, cut)[0] - batch[1:2, :5]).max() < 2e-2


@pytest.mark.parametrize(("activation", "pv"), CASES)
def test_padding_only_and_zeros_stay_finite(activation: str, pv: bool) -> None:
    name = attention_name(activation, quantize_pv=pv)
    inputs, attributes = inputs_of(activation, pv)
    inputs[0][0] = inputs[1][0] = inputs[2][0] = 0
    (y,) = run(operator_model(OPERATORS, name, inputs, attributes), inputs)
    assert np.isfinite(y).all()
    assert (y[0] == 0).all()
