"""The integer matrix products: reference, exactness at the extremes, what ONNX Runtime makes of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper

from qexport.errors import UnknownNameError, UsageError
from qexport.graphs.operators import DOMAIN, OPERATORS, matmul_name
from qexport.graphs.operators.single import chain_model, operator_model
from qexport.graphs.packing import pack

ZERO = np.array(128, np.uint8)
STORED = ("a_zero_point", "B", "b_scale", "bias")


def top_code(bits: int) -> int:
    return 1 if bits <= 2 else 2 ** (bits - 1) - 1


def run(
    model: onnx.ModelProto, feed: dict[str, Any], *, optimize: bool, saved: Path | None = None
) -> list[Any]:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    levels = ort.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimize else levels.ORT_DISABLE_ALL
    if saved:
        options.optimized_model_filepath = str(saved)
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, feed)


@pytest.mark.parametrize("bits", range(1, 9))
def test_reference_is_the_float_product_of_the_decoded_matrices(bits: int) -> None:
    rng = np.random.default_rng(bits)
    codes = (rng.integers(0, 2, (6, 21)) * 2 - 1) * top_code(bits)
    codes = codes.astype(np.int8)
    a = rng.integers(1, 256, (4, 21)).astype(np.uint8)
    a_scale, b_scale = rng.random((4, 1), np.float32), rng.random(6, np.float32)
    bias = rng.normal(size=6).astype(np.float32)
    (y,) = OPERATORS[matmul_name(bits)].reference(a, a_scale, ZERO, pack(codes, bits), b_scale, bias, K=21)
    expected = ((a.astype(float) - 128) * a_scale) @ (codes * b_scale[:, None].astype(float)).T + bias
    assert y.dtype == np.float32
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("optimize", [False, True])
@pytest.mark.parametrize("bits", range(1, 9))
def test_no_product_saturates(bits: int, optimize: bool) -> None:
    """The largest sums that codes allow, K = 3072: x86 without VNNI adds pairs of products in 16 bits."""
    rng = np.random.default_rng(3)
    k, n, top = 3072, 4, top_code(bits)
    a = np.stack([np.full(k, 255), np.full(k, 1), np.where(rng.random(k) < 0.5, 255, 1)]).astype(np.uint8)
    codes = np.stack([np.full(k, top), np.full(k, -top), *(rng.integers(0, 2, (2, k)) * 2 - 1) * top]).astype(
        np.int8
    )
    one, zeros = np.ones(1, np.float32), np.zeros(n, np.float32)
    inputs = [a, np.ones((3, 1), np.float32), ZERO, pack(codes, bits), one, zeros]
    model = operator_model(OPERATORS, matmul_name(bits), inputs, {"K": k}, constants=STORED)
    (y,) = run(model, {"A": a, "a_scale": inputs[1]}, optimize=optimize)
    exact = (a.astype(np.int64) - 128) @ codes.astype(np.int64).T
    assert np.array_equal(y, exact.astype(np.float32))


@pytest.mark.parametrize("bits", range(1, 9))
def test_optimised_graph_is_one_integer_product(bits: int, tmp_path: Path) -> None:
    """The unpacking is folded at load, so the speed is that of an int8 file."""
    rng = np.random.default_rng(0)
    codes = ((rng.integers(0, 2, (8, 33)) * 2 - 1) * top_code(bits)).astype(np.int8)
    inputs = [
        np.ones((5, 33), np.uint8),
        np.array(0.1, np.float32),
        ZERO,
        pack(codes, bits),
        np.ones(8, np.float32),
        np.ones(8, np.float32),
    ]
    model = operator_model(OPERATORS, matmul_name(bits), inputs, {"K": 33}, constants=STORED)
    run(model, {"A": inputs[0], "a_scale": inputs[1]}, optimize=True, saved=tmp_path / "o.onnx")
    left = [node.op_type for node in onnx.load(tmp_path / "o.onnx").graph.node]
    assert left == ["MatMulInteger", "Cast", "Mul", "Mul", "Sub"]


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("quantizer", ["QuantizePerToken", "QuantizePerTensor"])
def test_bias_is_not_scaled_by_the_activation(quantizer: str, static: bool) -> None:
    """ONNX Runtime's fused node multiplies a bias that it absorbed by the scale of each token."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(2, 6, 20)).astype(np.float32)
    codes = rng.integers(-1, 2, (9, 20)).astype(np.int8)
    stored = {"z": ZERO, "B": pack(codes, 2), "s": rng.random(9, np.float32), "b": np.full(9, 50, np.float32)}
    q, scale = OPERATORS[quantizer].reference(x, clip=0.0)
    (y,) = OPERATORS["TernaryMatMul"].reference(q, scale, ZERO, stored["B"], stored["s"], stored["b"], K=20)
    nodes = [
        helper.make_node(quantizer, ["x"], ["q", "a"], domain=DOMAIN, clip=0.0),
        helper.make_node("TernaryMatMul", ["q", "a", "z", "B", "s", "b"], ["Y"], domain=DOMAIN, K=20),
    ]
    operators = [OPERATORS[quantizer], OPERATORS["TernaryMatMul"]]
    model = chain_model(nodes, operators, {"x": x}, stored, {"Y": y}, static=static)
    assert np.array_equal(run(model, {"x": x}, optimize=False)[0], y)
    np.testing.assert_allclose(run(model, {"x": x}, optimize=True)[0], y, rtol=3e-7, atol=1e-5)


def test_batch_does_not_change_a_token() -> None:
    rng = np.random.default_rng(2)
    x = rng.normal(size=(3, 5, 32)).astype(np.float32)
    x[1] *= 40
    stored = {
        "z": ZERO,
        "B": pack(rng.integers(-1, 2, (7, 32)).astype(np.int8), 2),
        "s": rng.random(7, np.float32),
        "b": rng.random(7, np.float32),
    }
    nodes = [
        helper.make_node("QuantizePerToken", ["x"], ["q", "a"], domain=DOMAIN, clip=2.5),
        helper.make_node("TernaryMatMul", ["q", "a", "z", "B", "s", "b"], ["Y"], domain=DOMAIN, K=32),
    ]
    operators = [OPERATORS["QuantizePerToken"], OPERATORS["TernaryMatMul"]]
    model = chain_model(nodes, operators, {"x": x}, stored, {"Y": np.zeros((3, 5, 7), np.float32)})
    whole = run(model, {"x": x}, optimize=True)[0]
    alone = run(model, {"x": x[2:, :4]}, optimize=True)[0]
    assert np.array_equal(whole[2:, :4], alone)


def test_names_and_opsets_that_do_not_exist() -> None:
    with pytest.raises(UsageError, match="opset 17 to 21, got 16"):
        OPERATORS["TernaryMatMul"].function(16)
    with pytest.raises(UnknownNameError, match="did you mean 'TernaryMatMul'"):
        operator_model(OPERATORS, "TernarMatMul", [], {})


@pytest.mark.parametrize("name", sorted(OPERATORS))
def test_every_body_uses_standard_operators_only(name: str) -> None:
    for opset in (17, 18, 21):
        function = OPERATORS[name].function(opset)
        assert {node.domain for node in function.node} == {""}
        assert function.doc_string
        assert len({output for node in function.node for output in node.output}) == len(function.node)
