"""The Gather of a classifier's token, moved in front of the last layer's row-by-row part."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import numpy_helper
from tiny_students import save_float, save_student

from qexport.graphs.config import ExportConfig, Target
from qexport.graphs.export import to_onnx
from qexport.graphs.pipeline import finish
from qexport.graphs.rewrites import first_token


def head(body: str, *, index: str = "{0}", outputs: str = "float[batch, 4] y") -> ir.Model:
    text = f"""
<ir_version: 8, opset_import: ["": 18, "ai.qexport": 2]>
g (float[batch, sequence, 4] x, float[batch, sequence, 4] r) => ({outputs})
<float[4, 4] w = {{1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 1.5, 2.5, 3.5, 4.5, -1.0, 1.0, -1.0, 1.0}},
 float[4] gain = {{1.0, 2.0, 3.0, 4.0}}, float[4] shift = {{0.1, 0.2, 0.3, 0.4}}, int64 index = {index}> {{
    {body}
}}"""
    model = ir.serde.deserialize_model(onnx.parser.parse_model(text))
    for node in model.graph:
        if node.op_type != "Gather":
            for value in node.outputs:
                value.shape = ir.Shape(["batch", "sequence", 4])
    return model


LAYER = """
    p = MatMul(x, w)
    s = Add(p, r)
    n = ai.qexport.LayerNorm<epsilon = 0.001>(s, gain, shift)
    y = Gather<axis = 1>(n, index)
"""


TWICE = "float[batch, 4] y, float[batch, sequence, 4] twice"


def run(model: ir.Model) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    feeds = {name: rng.normal(size=(3, 5, 4)).astype(np.float32) for name in "xr"}
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    proto = finish(model.clone(), Target(), {}, "test")
    return list(onnxruntime.InferenceSession(proto.SerializeToString(), options).run(None, feeds))


def test_only_the_first_token_goes_through_the_layer() -> None:
    model = head(LAYER)
    before = run(model)
    assert first_token.apply(model) == 3
    assert [node.op_type for node in model.graph] == [
        "Gather",
        "MatMul",
        "Gather",
        "Add",
        "LayerNorm",
        "Gather",
    ]
    assert all(node.outputs[0].shape[1] == 1 for node in list(model.graph)[:-1])
    np.testing.assert_array_equal(run(model)[0], before[0])
    assert first_token.apply(model) == 0


@pytest.mark.parametrize(
    ("model", "moved"),
    [
        (head(LAYER, index="{1}"), 0),
        (head(LAYER.replace("axis = 1", "axis = 0"), outputs="float[sequence, 4] y"), 0),
        (head(LAYER, outputs="float[batch, 4] y, float[batch, sequence, 4] n"), 0),
        (head(LAYER, outputs="float[batch, 4] y, float[batch, sequence, 4] p"), 0),
        (head(LAYER + "    twice = Add(n, n)\n", outputs=TWICE), 0),
        (head(LAYER + "    twice = Add(p, p)\n", outputs=TWICE), 0),
        (head(LAYER.replace("MatMul(x, w)", "Mul(x, x)")), 0),
        (head(LAYER.replace("LayerNorm<epsilon", "SomethingElse<epsilon")), 0),
    ],
    ids=[
        "another token",
        "another axis",
        "the last value is read",
        "the product is read",
        "the last value is used",
        "the product is used",
        "no product",
        "unknown",
    ],
)
def test_nothing_moves_where_another_token_may_be_needed(model: ir.Model, moved: int) -> None:
    assert first_token.apply(model) == moved


@pytest.mark.usefixtures("trace_once")  # which must tell students apart that have the same weights
@pytest.mark.parametrize(
    ("family", "activations"),
    [("bert", "dynamic-token"), ("distilbert", "static"), ("bert", "dynamic-tensor"), ("electra", None)],
)
def test_every_family_computes_its_last_layer_for_one_token(
    family: str, activations: str | None, tmp_path: Path
) -> None:
    """Scales for a whole tensor need every token: there only the last product is computed for one."""
    if activations is None:
        source = save_float(tmp_path / "model", family)
    else:
        source = save_student(tmp_path / "model", family, activations=activations)
    result = to_onnx(ExportConfig(model=source, output=tmp_path / "out"))
    assert result.parity is not None and result.parity.max_abs_difference < 2e-6
    graph = onnx.load(tmp_path / "out" / "model.onnx").graph
    lists = {t.name for t in graph.initializer if numpy_helper.to_array(t).tolist() == [0]}
    places = [i for i, node in enumerate(graph.node) if node.op_type == "Gather" and node.input[1] in lists]
    assert len(places) == 2
    after = list(graph.node)[places[0] :]
    products = [node.op_type for node in after if node.op_type.endswith("MatMul")]
    heads = sum(node.op_type in ("Gemm", "Tanh") for node in after)
    assert len(products) + heads >= (3 if activations == "dynamic-tensor" else 5)
