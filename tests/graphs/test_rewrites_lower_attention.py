from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnx_ir.passes.common as common
import onnxruntime
import pytest
from export_ir import model_of, node, run_reference
from onnx import helper

from qexport.formats import max_code
from qexport.graphs.config import Target
from qexport.graphs.pipeline import finish
from qexport.graphs.rewrites import lower_attention, merge_heads

B, H, S, D = 2, 2, 6, 5
MODES = {"dynamic-token": "", "dynamic-tensor": "PerTensor", "static": "Static"}
SCALES = {"q_scale": 0.012, "k_scale": 0.011, "p_scale": 1 / 127, "v_scale": 0.013}


def graph(
    act: str, *, pv: int = 1, n_scales: int | None = None, heads: int | str = H, **changes: Any
) -> ir.Model:
    count = (0 if act != "static" else 4 if pv else 2) if n_scales is None else n_scales
    constants = {name: np.array(value, np.float32) for name, value in list(SCALES.items())[:count]}
    shape = ["batch", heads, "sequence", D]
    inputs = {name: (onnx.TensorProto.FLOAT, shape) for name in "qkv"}
    attributes = {
        "name": "layer.attention", "act": act, "a_bits": 8, "clip": 0.0, "scaling": D**-0.5,
        "quantize_qk": 1, "quantize_p": pv, "quantize_v": pv, **changes,
    }  # fmt: skip
    return model_of(
        [node("QuantAttention", ["q", "k", "v", "mask", *constants], **attributes)],
        {**inputs, "mask": (onnx.TensorProto.BOOL, ["batch", 1, 1, "sequence"])},
        ("y", shape),
        constants,
    )


def feeds_of(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    feeds: dict[str, np.ndarray] = {name: rng.normal(size=(B, H, S, D)).astype(np.float32) for name in "qkv"}
    mask = np.ones((B, 1, 1, S), bool)
    mask[1, :, :, 4:] = False
    return {**feeds, "mask": mask}


@pytest.mark.parametrize("clip", [0.0, 1.5])
@pytest.mark.parametrize("pv", [0, 1])
@pytest.mark.parametrize(("act", "kind"), MODES.items())
def test_lower_attention_computes_the_same(act: str, kind: str, pv: int, clip: float) -> None:
    model, feeds = graph(act, pv=pv, clip=clip), feeds_of()
    before = run_reference(ir.serde.serialize_model(model), feeds)
    assert lower_attention.rules.apply_to_model(model) == 1
    (lowered,) = [item for item in model.graph if item.domain == "ai.qexport"]
    assert (lowered.op_type, lowered.name) == (
        f"QuantizedAttention{kind}{'' if pv else 'QK'}",
        "layer.attention",
    )
    assert lowered.attributes.get_int("num_heads") == H
    assert lower_attention.rules.apply_to_model(model) == 0
    after = finish(model, Target(), {}, "test")
    for found in (run_reference(after, feeds), run_ort(after, feeds)):
        np.testing.assert_array_equal(found, before)


@pytest.mark.parametrize(("a_bits", "p_top"), [(2, 1), (2, 3), (4, 7), (4, 15), (6, 63), (7, 127)])
def test_lower_attention_below_8_bits_bounds_the_codes(a_bits: int, p_top: int) -> None:
    """The scales of q, k and v are small: a quarter of the values lies beyond the last code of 2 bits."""
    model, feeds = graph("static", a_bits=a_bits, p_top=p_top), feeds_of()
    top = max_code(a_bits)
    for name, value in (("q", 1.2 / top), ("k", 1.1 / top), ("v", 1.3 / top), ("p", 0.3 / p_top)):
        model.graph.initializers[f"{name}_scale"].const_value = ir.tensor(np.array(value, np.float32))
    before = run_reference(ir.serde.serialize_model(model), feeds)
    assert lower_attention.rules.apply_to_model(model) == 1
    (lowered,) = [item for item in model.graph if item.domain == "ai.qexport"]
    assert lowered.op_type == "QuantizedAttentionStaticBounded"
    assert (lowered.attributes.get_int("top"), lowered.attributes.get_int("p_top")) == (top, p_top)
    after = finish(model, Target(), {}, "test")
    for found in (run_reference(after, feeds), run_ort(after, feeds)):
        np.testing.assert_array_equal(found, before)


def encoder(act: str, **changes: Any) -> ir.Model:
    """Attention as encoders call it: heads are split before it and joined after it."""
    shape, flat = ["batch", H, "sequence", D], ["batch", "sequence", H * D]
    inner = ir.serde.serialize_model(graph(act, **changes))
    nodes = [item for item in inner.graph.node if item.op_type != "Constant"]
    nodes[0].output[0] = "context"
    before = []
    for index, name in enumerate("qkv"):
        before.append(helper.make_node("Reshape", [name, "split"], [f"{name}_apart"]))
        before.append(helper.make_node("Transpose", [f"{name}_apart"], [f"{name}_heads"], perm=[0, 2, 1, 3]))
        nodes[0].input[index] = f"{name}_heads"
    after = [
        helper.make_node("Transpose", ["context"], ["back"], perm=[0, 2, 1, 3]),
        helper.make_node("Reshape", ["back", "join"], ["y"]),
    ]
    constants = {t.name: onnx.numpy_helper.to_array(t) for t in inner.graph.initializer}
    constants |= {"split": np.array([0, 0, -1, D]), "join": np.array([0, 0, H * D])}
    inputs: dict[str, tuple[int, list[Any]]] = {name: (onnx.TensorProto.FLOAT, flat) for name in "qkv"}
    inputs["mask"] = (onnx.TensorProto.BOOL, ["batch", 1, 1, "sequence"])
    model = model_of([*before, *nodes, *after], inputs, ("y", flat), constants)
    for item in model.graph:
        for value in item.outputs:
            if str(value.name).endswith("_heads") or value.name == "context":
                value.shape = ir.Shape(shape)
    return model


def flat_feeds() -> dict[str, np.ndarray]:
    feeds = feeds_of()
    return {
        name: x if name == "mask" else x.swapaxes(1, 2).reshape(B, S, H * D).copy()
        for name, x in feeds.items()
    }


@pytest.mark.parametrize("act", ["dynamic-token", "dynamic-tensor", "static"])
def test_lowered_attention_takes_what_linear_layers_write(act: str) -> None:
    model, feeds = encoder(act), flat_feeds()
    before = run_reference(ir.serde.serialize_model(model), feeds)
    assert lower_attention.rules.apply_to_model(model) == 1
    assert merge_heads.rules.apply_to_model(model) == 4
    assert merge_heads.rules.apply_to_model(model) == 0
    common.IdentityEliminationPass()(model)
    assert [item.op_type for item in model.graph] == [f"QuantizedAttention{MODES[act]}"]
    after = run_reference(finish(model, Target(), {}, "test"), feeds)
    np.testing.assert_array_equal(after, before)


def test_static_attention_keeps_a_clip_that_bounds_more_than_the_codes() -> None:
    """127 * scale is 1.52 for q, 1.40 for k and 1.65 for v."""
    for clip, clips in ((1.2, 3), (1.6, 1), (1.7, 0)):
        model, feeds = encoder("static", clip=clip), flat_feeds()
        before = run_reference(ir.serde.serialize_model(model), feeds)
        lower_attention.rules.apply_to_model(model)
        merge_heads.rules.apply_to_model(model)
        assert sum(item.op_type == "Clip" for item in model.graph) == clips
        after = run_reference(finish(model, Target(), {}, "test"), feeds)
        np.testing.assert_array_equal(after, before)


@pytest.mark.parametrize(
    ("name", "value"),
    [("split", [0, 0, 1, -1, D]), ("join", [0, 0, D, H]), ("join", [0, -1, D])],
)
def test_merge_heads_leaves_a_near_miss_alone(name: str, value: list[int]) -> None:
    model = encoder("dynamic-token")
    model.graph.initializers[name].const_value = ir.tensor(np.array(value))
    lower_attention.rules.apply_to_model(model)
    assert merge_heads.rules.apply_to_model(model) == (1 if name == "split" else 3)


def run_ort(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> np.ndarray:
    return np.asarray(onnxruntime.InferenceSession(model.SerializeToString()).run(None, feeds)[0])


@pytest.mark.parametrize(
    "broken",
    [
        {"act": "none"},
        {"act": "dynamic-token", "a_bits": 4},
        {"act": "static", "a_bits": 9},
        {"act": "static", "a_bits": 4, "pv": 0},
        {"act": "static", "a_bits": 4, "clip": 2.0},
        {"act": "static", "a_bits": 4, "p_top": 16},
        {"act": "static", "p_top": 255},
        {"act": "dynamic-token", "quantize_v": 0},
        {"act": "dynamic-token", "quantize_qk": 0},
        {"act": "dynamic-token", "clip": 0.5},
        {"act": "dynamic-token", "n_scales": 4},
        {"act": "static", "n_scales": 2},
        {"act": "static", "pv": 0, "n_scales": 4},
        {"act": "dynamic-token", "heads": "heads"},
    ],
)
def test_lower_attention_leaves_a_near_miss_alone(broken: dict[str, Any]) -> None:
    model = graph(**broken)
    assert lower_attention.rules.apply_to_model(model) == 0


def test_lower_attention_of_padding_only_is_finite() -> None:
    model, feeds = graph("dynamic-token"), feeds_of()
    feeds["mask"][1] = False
    lower_attention.rules.apply_to_model(model)
    assert np.isfinite(run_ort(finish(model, Target(), {}, "test"), feeds)).all()
