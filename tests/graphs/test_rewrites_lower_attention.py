from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from export_ir import model_of, node, run_reference

from qexport.graphs.config import Target
from qexport.graphs.pipeline import finish
from qexport.graphs.rewrites import lower_attention

B, H, S, D = 2, 2, 6, 5
SCALES = {"q_scale": 0.012, "k_scale": 0.011, "p_scale": 1 / 127, "v_scale": 0.013}


def graph(act: str, *, pv: int = 1, n_scales: int | None = None, **changes: Any) -> ir.Model:
    count = (0 if act != "static" else 4 if pv else 2) if n_scales is None else n_scales
    constants = {name: np.array(value, np.float32) for name, value in list(SCALES.items())[:count]}
    shape = ["batch", H, "sequence", D]
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
@pytest.mark.parametrize(
    ("act", "kind"),
    [("dynamic-token", ""), ("dynamic-tensor", "PerTensor"), ("static", "Static")],
)
def test_lower_attention_computes_the_same(act: str, kind: str, pv: int, clip: float) -> None:
    model, feeds = graph(act, pv=pv, clip=clip), feeds_of()
    before = run_reference(ir.serde.serialize_model(model), feeds)
    assert lower_attention.rules.apply_to_model(model) == 1
    last = list(model.graph)[-1]
    assert (last.op_type, last.name) == (f"QuantizedAttention{kind}{'' if pv else 'QK'}", "layer.attention")
    assert lower_attention.rules.apply_to_model(model) == 0
    after = finish(model, Target(), {}, "test")
    # exp differs by an ulp between numpy and ONNX Runtime: at most one step of the code of each probability
    step = S * np.abs(feeds["v"]).max() / 127 if pv else 0.0
    for found in (run_reference(after, feeds), run_ort(after, feeds)):
        difference = np.abs(found - before)
        assert difference.max() <= step + 1e-5
        assert np.median(difference) <= 1e-6


def run_ort(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> np.ndarray:
    return np.asarray(onnxruntime.InferenceSession(model.SerializeToString()).run(None, feeds)[0])


@pytest.mark.parametrize(
    "broken",
    [
        {"act": "none"},
        {"act": "dynamic-token", "a_bits": 4},
        {"act": "dynamic-token", "quantize_v": 0},
        {"act": "dynamic-token", "quantize_qk": 0},
        {"act": "dynamic-token", "clip": 0.5},
        {"act": "dynamic-token", "n_scales": 4},
        {"act": "static", "n_scales": 2},
        {"act": "static", "pv": 0, "n_scales": 4},
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
