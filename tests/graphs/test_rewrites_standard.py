"""The rules that rewrite standard operators."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import onnxruntime
import pytest
from export_ir import run_reference

from qexport.graphs.rewrites import expand_row_quantize, fold_transpose, reorder_gelu, simplify_reshape


def parse(text: str) -> ir.Model:
    return ir.serde.deserialize_model(
        onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 18]>\n{text}')
    )


def kinds(model: ir.Model) -> list[str]:
    return [item.op_type for item in model.graph]


def ort(model: ir.Model, feeds: dict[str, np.ndarray], *, optimise: bool = False) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    if not optimise:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    proto = ir.serde.serialize_model(model)
    onnx.checker.check_model(proto, full_check=True)
    return np.asarray(onnxruntime.InferenceSession(proto.SerializeToString(), options).run(None, feeds)[0])


X = {"x": np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)}

TRANSPOSED = """
g (float[batch, sequence, 4] x) => (float[batch, sequence, 2] y)
<float[2, 4] weight = {1, 2, 3, 4, 5, 6, 7, 8}> {
    t = Transpose<perm = [1, 0]>(weight)
    y = MatMul(x, t)
}"""


def test_fold_transpose_keeps_the_name_and_the_result() -> None:
    model = parse(TRANSPOSED)
    before = ort(model, X)
    assert fold_transpose.rules.apply_to_model(model) == 1
    assert kinds(model) == ["Identity", "MatMul"]
    assert model.graph.initializers["weight"].shape == ir.Shape([4, 2])
    np.testing.assert_array_equal(ort(model, X), before)
    assert fold_transpose.rules.apply_to_model(model) == 0


def test_fold_transpose_keeps_a_weight_that_others_read() -> None:
    model = parse(TRANSPOSED.replace("y = MatMul(x, t)", "z = MatMul(x, t)\n y = MatMul(z, weight)")
                  .replace("sequence, 2] y", "sequence, 4] y"))  # fmt: skip
    before = ort(model, X)
    assert fold_transpose.rules.apply_to_model(model) == 1
    assert set(model.graph.initializers) == {"weight", "weight.1_0"}
    np.testing.assert_array_equal(ort(model, X), before)


def test_fold_transpose_leaves_computed_values_alone() -> None:
    model = parse("g (float[2, 3] x) => (float[3, 2] y) { y = Transpose<perm = [1, 0]>(x) }")
    assert fold_transpose.rules.apply_to_model(model) == 0


RESHAPED = """
g (float[batch, sequence, 4] x, int64[batch, sequence] ids) => (float[batch, sequence, 2, 2] y)
<int64[2] tail = {-1, 2}> {
    b = Shape<start = 0, end = 1>(ids)
    s = Shape<start = 1, end = 2>(ids)
    shape = Concat<axis = 0>(b, s, tail)
    y = Reshape<allowzero = 1>(x, shape)
}"""


def test_simplify_reshape_copies_the_leading_axes() -> None:
    model = parse(RESHAPED)
    feeds = {**X, "ids": np.zeros((2, 3), np.int64)}
    before = ort(model, feeds)
    assert simplify_reshape.rules.apply_to_model(model) == 1
    assert kinds(model)[-1] == "Reshape"
    target = list(model.graph)[-1].inputs[1]
    assert target is not None and target.const_value is not None
    assert target.const_value.numpy().tolist() == [0, 0, -1, 2]
    np.testing.assert_array_equal(ort(model, feeds), before)
    assert simplify_reshape.rules.apply_to_model(model) == 0


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("int64[batch, sequence] ids", "int64[batch, other] ids"),  # not the same size
        ("Concat<axis = 0>(b, s, tail)", "Concat<axis = 0>(s, b, tail)"),  # another order
        ("{-1, 2}", "{0, 2}"),  # a real axis of size 0
        ("Shape<start = 0, end = 1>(ids)", "Shape<start = 0, end = 2>(ids)"),  # two sizes at once
    ],
)
def test_simplify_reshape_leaves_a_near_miss_alone(old: str, new: str) -> None:
    assert old in RESHAPED
    assert simplify_reshape.rules.apply_to_model(parse(RESHAPED.replace(old, new))) == 0


GELU = """
g (float[batch, sequence, 4] x) => (float[batch, sequence, 4] y)
<float root = {1.41421354}, float one = {1.0}, float half = {0.5}> {
    d = Div(x, root)
    e = Erf(d)
    a = Add(e, one)
    m = Mul(half, a)
    y = Mul(x, m)
}"""


def test_reorder_gelu_keeps_every_bit_and_onnx_runtime_fuses_it(tmp_path: object) -> None:
    model = parse(GELU)
    before = run_reference(ir.serde.serialize_model(model), X)
    assert reorder_gelu.rules.apply_to_model(model) == 1
    assert kinds(model) == ["Div", "Erf", "Add", "Mul", "Mul"]
    np.testing.assert_array_equal(run_reference(ir.serde.serialize_model(model), X), before)
    assert reorder_gelu.rules.apply_to_model(model) == 0
    path = f"{tmp_path}/fused.onnx"
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = path, 3
    onnxruntime.InferenceSession(ir.serde.serialize_model(model).SerializeToString(), options)
    assert [item.op_type for item in onnx.load(path).graph.node] == ["Gelu"]


def test_reorder_gelu_leaves_other_constants_alone() -> None:
    assert reorder_gelu.rules.apply_to_model(parse(GELU.replace("{0.5}", "{0.25}"))) == 0


ROWS = """
g (float[rows, 4] x, float[rows] scale) => (KIND[rows, 4] y) {
    like = Shape(scale)
    zero = ConstantOfShape<value = KIND[1] {ZERO}>(like)
    y = QuantizeLinear<axis = 0>(x, scale, zero)
}"""


@pytest.mark.parametrize(("kind", "zero"), [("uint8", "128"), ("uint8", "0"), ("int8", "0")])
def test_expand_row_quantize_keeps_every_bit(kind: str, zero: str) -> None:
    model = parse(ROWS.replace("KIND", kind).replace("ZERO", zero))
    x = np.random.default_rng(0).normal(size=(200, 4)).astype(np.float32)
    x[:3] = [[0.5, 1.5, 2.5, -0.5], [1e30, -1e30, 0, 1e-38], [3e38, 127.5, -127.5, -128.5]]
    scale = np.random.default_rng(1).uniform(0.001, 0.1, 200).astype(np.float32)
    scale[:3] = [1, 1.2e-32, 1]
    feeds = {"x": x, "scale": scale}
    before = ort(model, feeds)
    assert expand_row_quantize.rules.apply_to_model(model) == 1
    assert kinds(model)[-6:] == ["Unsqueeze", "Div", "Round", "Add", "Clip", "Cast"]
    np.testing.assert_array_equal(ort(model, feeds), before)
    assert before.dtype == np.dtype(kind) and len(np.unique(before)) > 50
    assert expand_row_quantize.rules.apply_to_model(model) == 0


def test_expand_row_quantize_leaves_columns_and_stored_scales_alone() -> None:
    text = ROWS.replace("KIND", "uint8").replace("ZERO", "128")
    columns = text.replace("float[rows] scale", "float[4] scale").replace("axis = 0", "axis = 1")
    assert expand_row_quantize.rules.apply_to_model(parse(columns)) == 0
    stored = text.replace(", float[rows] scale", "").replace("y) {", "y)\n<float[2] scale = {0.5, 0.25}> {")
    assert expand_row_quantize.rules.apply_to_model(parse(stored.replace("rows", "2"))) == 0
