"""GELU and LayerNorm fused with quantisation: against float64, and what ONNX Runtime makes of the bodies."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from qexport.graphs.operators import OPERATORS
from qexport.graphs.operators.single import operator_model

B, S, K = 2, 5, 48
GRID = 0.0064  # what the grids of GELU may move it by
Attributes = dict[str, int | float]


def gelu_inputs(name: str) -> tuple[list[np.ndarray], Attributes]:
    x = 3 * np.random.default_rng(0).normal(size=(B, S, K)).astype(np.float32)
    x[0, 1] = 0
    if name.endswith("Linear"):
        return [x, np.array(0.03, np.float32)], {}
    return [x], {"clip": 0.0}


def norm_inputs(name: str, positions: bool = False) -> tuple[list[np.ndarray], Attributes]:
    rng = np.random.default_rng(1)
    x = 2 * rng.normal(size=(B, S, K)).astype(np.float32)
    residual = rng.normal(size=(1 if positions else B, S, K)).astype(np.float32)
    gamma, beta = (1 + 0.2 * rng.normal(size=K)).astype(np.float32), rng.normal(size=K).astype(np.float32)
    x[0, 1] = residual[0, 1] = 0
    inputs, attributes = [x, residual, gamma, beta], {"epsilon": 1e-12}
    if name.endswith("Linear"):
        return [*inputs, np.array(0.02, np.float32)], attributes
    return inputs, attributes | {"clip": 0.0}


def run(
    model: onnx.ModelProto, inputs: list[np.ndarray], *, optimize: bool = True, path: Any = ""
) -> list[Any]:
    options = ort.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, 1
    if path:
        options.optimized_model_filepath = str(path)
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    return list(session.run(None, dict(zip(names, inputs, strict=True))))


def exact_gelu(x: np.ndarray) -> np.ndarray:
    return np.array([value * (1 + math.erf(value / math.sqrt(2))) / 2 for value in x.ravel()]).reshape(
        x.shape
    )


def exact_norm(x: np.ndarray, residual: np.ndarray, gamma: np.ndarray, beta: np.ndarray) -> np.ndarray:
    total = x.astype(np.float64) + residual
    centred = total - total.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-12) * gamma + beta


def norm_error(x: np.ndarray, residual: np.ndarray, gamma: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The most that LayerNorm's whole numbers may move y.

    Half a step of the mean, half a step of the mean square, and what Newton's method leaves of half a step
    of the root.
    """
    total = x.astype(np.float64) + residual
    largest = np.abs(total).max(-1, keepdims=True)
    variance = (128 / np.where(largest > 0, largest, np.inf)) ** 2 * total.var(-1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        moved = np.abs(gamma) / 128 / np.sqrt(variance) + np.abs(y) * (0.25 + 1 / 64) / variance
    return np.asarray(np.where(largest > 0, moved, 0))


@pytest.mark.parametrize("name", ["GeluQuantizePerToken", "GeluQuantizeLinear"])
def test_gelu_is_within_half_a_code_of_float64(name: str) -> None:
    inputs, attributes = gelu_inputs(name)
    results = OPERATORS[name].reference(*inputs, **attributes)
    scale = inputs[1] if name.endswith("Linear") else results[1]
    on_grid = np.rint(inputs[0] * 128) / 128  # what GELU takes, and what it gives
    y = np.clip(np.rint(exact_gelu(on_grid) * 256) / 256, -127 * scale, 127 * scale)
    assert results[0].dtype == np.uint8 and results[0].min() >= 1
    assert (np.abs((results[0] - 128.0) * scale - y) <= 0.501 * scale).all()
    assert (results[0][0, 1] == 128).all()


def test_gelu_takes_and_gives_the_values_of_its_grids() -> None:
    x = np.linspace(-9, 9, 10_001, dtype=np.float32)
    (y,) = OPERATORS["Gelu"].reference(x)
    assert np.abs(y - exact_gelu(x)).max() <= GRID
    assert np.array_equal(y * 256, np.rint(y * 256))
    assert np.array_equal(y, OPERATORS["Gelu"].reference(np.rint(x * 128) / np.float32(128))[0])
    assert (y[x > 6] == np.rint(x[x > 6] * 128) / 128).all()
    assert (y[x < -5] == 0).all()


@pytest.mark.parametrize("positions", [False, True])
@pytest.mark.parametrize("name", ["AddLayerNormQuantizePerToken", "AddLayerNormQuantizeLinear"])
def test_layer_norm_is_within_its_steps_of_float64(name: str, positions: bool) -> None:
    inputs, attributes = norm_inputs(name, positions)
    y, q, *found = OPERATORS[name].reference(*inputs, **attributes)
    scale = found[0] if found else inputs[4]
    expected = exact_norm(*inputs[:4])
    allowed = norm_error(*inputs[:3], expected - inputs[3])
    assert (np.abs(y - expected) <= allowed + 2e-6).all()
    assert np.median(allowed) < 0.02 * np.median(scale)  # nothing beside the rounding to codes
    bounded = np.clip(y, -127 * scale, 127 * scale)
    assert (np.abs((q - 128.0) * scale - bounded) <= 0.501 * scale).all()
    if not positions:
        assert np.array_equal(y[0, 1], inputs[3])  # a sum of zeros


@pytest.mark.parametrize("optimize", [False, True])
@pytest.mark.parametrize("positions", [False, True])
def test_codes_are_those_of_the_quantiser_on_y(positions: bool, optimize: bool) -> None:
    """However a runtime computes y, q and scale are QuantizePerToken of it, bit for bit."""
    inputs, attributes = norm_inputs("AddLayerNormQuantizePerToken", positions)
    model = operator_model(OPERATORS, "AddLayerNormQuantizePerToken", inputs, attributes)
    y, q, scale = run(model, inputs, optimize=optimize)
    expected_q, expected_scale = OPERATORS["QuantizePerToken"].reference(y, clip=0.0)
    assert np.array_equal(q, expected_q)
    assert np.array_equal(scale, expected_scale)


@pytest.mark.parametrize("name", ["GeluQuantizePerToken", "AddLayerNormQuantizePerToken"])
def test_onnx_runtime_fuses_nothing_that_would_round_in_another_order(name: str, tmp_path: Any) -> None:
    inputs, attributes = (gelu_inputs if name.startswith("Gelu") else norm_inputs)(name)
    stored = tuple(key for key in ("gamma", "beta") if key in OPERATORS[name].inputs)
    model = operator_model(OPERATORS, name, inputs, attributes, constants=stored, static=True)
    kept = [array for key, array in zip(OPERATORS[name].inputs, inputs, strict=True) if key not in stored]
    run(model, kept, path=tmp_path / "optimised.onnx")
    nodes = onnx.load(tmp_path / "optimised.onnx").graph.node
    assert {item.domain for item in nodes} <= {"", "ai.onnx"}
    assert not {"Gelu", "LayerNormalization", "SkipLayerNormalization"} & {item.op_type for item in nodes}
