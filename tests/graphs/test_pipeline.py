from __future__ import annotations

import logging

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from export_ir import model_of, node, run_reference
from onnx import helper

from qexport.errors import UnsupportedModelError
from qexport.graphs.config import Target
from qexport.graphs.pipeline import LOWERINGS, Pass, finish, lower, run_passes

K, N = 10, 6


def two_layers(act: str = "dynamic-token", **changes: object) -> ir.Model:
    """y = second(x) + first(x): both read x, so one quantisation serves both."""
    rng = np.random.default_rng(0)
    constants: dict[str, np.ndarray] = {}
    nodes = []
    for name in ("first", "second"):
        own = {
            f"{name}.codes": rng.integers(-1, 2, (N, K)).astype(np.int8),
            f"{name}.scale": rng.uniform(0.01, 0.1, N).astype(np.float32),
            f"{name}.bias": rng.normal(size=N).astype(np.float32),
        }
        if act == "static":
            own[f"{name}.a_scale"] = np.array(0.02, np.float32)
        constants |= own
        attributes = {"name": name, "w_bits": 2, "act": act, "a_bits": 8, "clip": 0.0, **changes}
        nodes.append(node("QuantLinear", ["x", *own], f"{name}_out", **attributes))
    nodes.append(helper.make_node("Add", ["first_out", "second_out"], ["logits"]))
    shapes = (onnx.TensorProto.FLOAT, ["batch", "sequence", K])
    return model_of(nodes, {"x": shapes}, ("logits", ["batch", "sequence", N]), constants)


EXPECTED = {"first": "QuantLinear", "second": "QuantLinear"}


@pytest.mark.parametrize(
    ("act", "kinds"),
    [
        ("dynamic-token", ["QuantizePerToken", "TernaryMatMul", "TernaryMatMul", "Add"]),
        ("dynamic-tensor", ["QuantizePerTensor", "TernaryMatMul", "TernaryMatMul", "Add"]),
        ("static", ["Clip", "QuantizeLinear", "TernaryMatMul", "TernaryMatMul", "Add"]),
    ],
)
def test_layers_that_read_one_value_share_its_quantisation(act: str, kinds: list[str]) -> None:
    model = two_layers(act)
    x = {"x": np.random.default_rng(1).normal(size=(2, 3, K)).astype(np.float32)}
    before = run_reference(ir.serde.serialize_model(model), x)
    lower(model, EXPECTED)
    assert [item.op_type for item in model.graph] == kinds
    after = finish(model, Target(), {"qexport.bits": "2-2-8"}, "1.2.3")
    np.testing.assert_array_equal(run_reference(after, x), before)
    assert not [t.name for t in after.graph.initializer if t.name.endswith("codes")]
    assert (after.producer_version, after.metadata_props[0].value) == ("1.2.3", "2-2-8")


def test_pipeline_is_at_rest_after_one_run() -> None:
    model = two_layers()
    lower(model, EXPECTED)
    first = ir.serde.serialize_model(model).SerializeToString(deterministic=True)
    lower(model, EXPECTED)
    assert ir.serde.serialize_model(model).SerializeToString(deterministic=True) == first


def test_inlined_model_is_free_of_functions_and_computes_the_same() -> None:
    model = two_layers()
    x = {"x": np.random.default_rng(1).normal(size=(2, 3, K)).astype(np.float32)}
    before = run_reference(ir.serde.serialize_model(model), x)
    lower(model, EXPECTED)
    after = finish(model, Target(inline=True), {}, "test")
    assert not after.functions
    assert {item.domain for item in after.graph.node} == {""}
    np.testing.assert_array_equal(run_reference(after, x), before)
    assert sum(list(t.dims) == [243, 5] for t in after.graph.initializer) == 1


def test_a_node_that_no_rule_lowers_is_named_with_the_reason() -> None:
    with pytest.raises(UnsupportedModelError, match=r"first: .*QuantLinear: activations must have 8 bits"):
        lower(two_layers(a_bits=4), EXPECTED)


def test_a_module_that_is_not_in_the_graph_is_named() -> None:
    with pytest.raises(UnsupportedModelError, match=r"third: this QuantLinear .*1 of 3 modules"):
        lower(two_layers(), {**EXPECTED, "third": "QuantLinear"})


def test_passes_run_to_rest_and_log_one_line_each(caplog: pytest.LogCaptureFixture) -> None:
    left = [2, 1, 0]
    with caplog.at_level(logging.INFO, logger="qexport.graphs.pipeline"):
        reports = run_passes(two_layers(), [Pass("drop-things", lambda _: left.pop(0))])
    assert [(report.name, report.matches) for report in reports] == [("drop-things", 3)]
    assert [record.message.split(",")[0] for record in caplog.records] == ["drop-things: 3 matches"]


def test_a_pass_that_never_rests_is_an_error() -> None:
    with pytest.raises(UnsupportedModelError, match="spin did not come to rest"):
        run_passes(two_layers(), [Pass("spin", lambda _: 1)])


def test_only_the_lowering_passes_touch_the_export_ir() -> None:
    model = two_layers()
    reports = run_passes(model, LOWERINGS)
    assert {report.name: report.matches for report in reports} == {
        "lower-linear": 2,
        "lower-linear-weight-only": 0,
        "lower-embedding": 0,
        "lower-attention": 0,
    }


def test_an_invalid_graph_is_one_sentence() -> None:
    model = two_layers()
    lower(model, EXPECTED)
    model.graph.outputs[0].shape = ir.Shape([7, 7])
    with pytest.raises(UnsupportedModelError, match="not valid ONNX") as caught:
        finish(model, Target(), {}, "test")
    assert "\n" not in str(caught.value)
