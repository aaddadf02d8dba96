from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from export_ir import model_of, node, run_reference

from qexport.formats import max_code
from qexport.graphs.config import Target
from qexport.graphs.operators import matmul_name
from qexport.graphs.packing import unpack
from qexport.graphs.pipeline import finish
from qexport.graphs.rewrites import lower_linear

K, N = 13, 7


def graph(
    act: str, bits: int = 2, *, clip: float = 0.0, scales: int = N, seed: int = 0, **changes: Any
) -> ir.Model:
    rng = np.random.default_rng(seed)
    top = max_code(bits) if bits > 1 else 1
    codes = rng.integers(-top, top + 1, (N, K)).astype(np.int8)
    if bits == 1:
        codes[codes == 0] = 1
    constants = {
        "codes": codes,
        "layer.scale": rng.uniform(0.01, 0.1, scales).astype(np.float32),
        "layer.bias": rng.normal(size=N).astype(np.float32),
    }
    inputs = ["x", *constants]
    if act == "static":
        constants["layer.a_scale"] = np.array(0.015, np.float32)
        inputs.append("layer.a_scale")
    constants.update(changes.pop("constants", {}))
    attributes = {"name": "layer", "w_bits": bits, "act": act, "a_bits": 8, "clip": clip, **changes}
    return model_of(
        [node("QuantLinear", inputs, **attributes)],
        {"x": (onnx.TensorProto.FLOAT, ["batch", "sequence", K])},
        ("y", ["batch", "sequence", N]),
        constants,
    )


def x_of(seed: int = 1) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(seed).normal(size=(2, 5, K)).astype(np.float32)}


def kinds(model: ir.Model) -> list[str]:
    return [item.op_type for item in model.graph]


@pytest.mark.parametrize("act", ["dynamic-token", "dynamic-tensor", "static"])
@pytest.mark.parametrize("bits", [1, 2, 3, 6, 8])
def test_lower_linear_keeps_every_bit_of_the_result(act: str, bits: int) -> None:
    model, feeds = graph(act, bits), x_of()
    before = run_reference(ir.serde.serialize_model(model), feeds)
    assert lower_linear.rules.apply_to_model(model) == 1
    after = finish(model, Target(), {}, "test")
    np.testing.assert_array_equal(run_reference(after, feeds), before)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(after.SerializeToString(), options)
    np.testing.assert_array_equal(session.run(None, feeds)[0], before)


@pytest.mark.parametrize("a_bits", [2, 3, 4, 6, 7])
def test_static_codes_below_8_bits_keep_to_their_own_range(a_bits: int) -> None:
    """0.015 a step: x reaches beyond the last code of 2 to 6 bits, and of 7 bits too."""
    model, feeds = graph("static", 4, a_bits=a_bits), x_of()
    before = run_reference(ir.serde.serialize_model(model), feeds)
    assert lower_linear.rules.apply_to_model(model) == 1
    assert kinds(model) == ["Clip", "QuantizeLinear", "Int4MatMul"]
    after = finish(model, Target(), {}, "test")
    codes = after.graph.node[1].output[0]
    after.graph.output.append(onnx.helper.make_tensor_value_info(codes, onnx.TensorProto.UINT8, None))
    for level in (onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL, None):
        options = onnxruntime.SessionOptions()
        if level is not None:
            options.graph_optimization_level = level
        y, q = onnxruntime.InferenceSession(after.SerializeToString(), options).run(None, feeds)
        np.testing.assert_array_equal(y, before)
        assert (q.min(), q.max()) == (128 - max_code(a_bits), 128 + max_code(a_bits))


@pytest.mark.parametrize(
    ("act", "expected"),
    [
        ("dynamic-token", ["QuantizePerToken", "TernaryMatMul"]),
        ("dynamic-tensor", ["QuantizePerTensor", "TernaryMatMul"]),
        ("static", ["Clip", "QuantizeLinear", "TernaryMatMul"]),
    ],
)
def test_lower_linear_makes_these_nodes(act: str, expected: list[str]) -> None:
    model = graph(act)
    lower_linear.rules.apply_to_model(model)
    assert kinds(model) == expected
    assert next(item for item in model.graph if item.op_type == "TernaryMatMul").name == "layer"
    assert lower_linear.rules.apply_to_model(model) == 0


def test_lower_linear_packs_the_codes_under_the_module_name() -> None:
    model = graph("dynamic-token", 2)
    codes = model.graph.initializers["codes"].const_value
    lower_linear.rules.apply_to_model(model)
    packed = model.graph.initializers["layer.weight"].const_value
    assert codes is not None and packed is not None
    assert packed.shape == (N, 3)
    np.testing.assert_array_equal(unpack(packed.numpy(), K, 2), codes.numpy())


@pytest.mark.parametrize("act", ["dynamic-token", "dynamic-tensor", "static"])
def test_lower_linear_clips_first_when_asked(act: str) -> None:
    model, feeds = graph(act, clip=0.7), x_of()
    before = run_reference(ir.serde.serialize_model(model), feeds)
    unclipped = run_reference(ir.serde.serialize_model(graph(act)), feeds)
    assert np.abs(before - unclipped).max() > 1e-3
    lower_linear.rules.apply_to_model(model)
    np.testing.assert_array_equal(run_reference(finish(model, Target(), {}, "test"), feeds), before)


def test_lower_linear_takes_one_scale_for_the_matrix() -> None:
    model, feeds = graph("dynamic-token", scales=1), x_of()
    before = run_reference(ir.serde.serialize_model(model), feeds)
    assert lower_linear.rules.apply_to_model(model) == 1
    np.testing.assert_array_equal(run_reference(finish(model, Target(), {}, "test"), feeds), before)


@pytest.mark.parametrize(
    "broken",
    [
        {"act": "none"},
        {"act": "per-channel"},
        {"act": "dynamic-token", "a_bits": 4},
        {"act": "static", "a_bits": 1},
        {"act": "dynamic-token", "asymmetric": 1},
        {"act": "static", "asymmetric": 1, "a_zero": 256},
        {"act": "static", "asymmetric": 1, "a_zero": 16, "a_bits": 4},
        {"act": "dynamic-token", "w_bits": 9},
        {"act": "dynamic-token", "constants": {"layer.scale": np.ones(N - 1, np.float32)}},
        {"act": "dynamic-token", "constants": {"layer.scale": np.full(N, np.nan, np.float32)}},
        {"act": "dynamic-token", "constants": {"layer.bias": np.ones(N + 1, np.float32)}},
        {"act": "dynamic-token", "constants": {"codes": np.ones((N, K), np.int16)}},
        {"act": "static", "constants": {"layer.a_scale": np.array(0, np.float32)}},
        {"act": "static", "constants": {"layer.a_scale": np.ones(2, np.float32)}},
    ],
)
def test_lower_linear_leaves_a_near_miss_alone(broken: dict[str, Any]) -> None:
    model = graph(**broken)
    assert lower_linear.rules.apply_to_model(model) == 0
    assert kinds(model) == ["QuantLinear"]


def test_a_module_that_runs_twice_stores_its_weight_once() -> None:
    model = graph("dynamic-token")
    proto = ir.serde.serialize_model(model)
    second = onnx.NodeProto()
    second.CopyFrom(proto.graph.node[0])
    second.output[0] = "y2"
    proto.graph.node.append(second)
    proto.graph.output.append(onnx.helper.make_tensor_value_info("y2", 1, ["batch", "sequence", N]))
    model = ir.serde.deserialize_model(proto)
    assert lower_linear.rules.apply_to_model(model) == 2
    assert [name for name in model.graph.initializers if name.endswith("weight")] == ["layer.weight"]


def test_matmul_names_are_those_of_the_operator_set() -> None:
    assert [matmul_name(bits) for bits in (1, 2, 3, 8)] == [
        "BinaryMatMul",
        "TernaryMatMul",
        "Int3MatMul",
        "Int8MatMul",
    ]
