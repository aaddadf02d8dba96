from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from export_ir import model_of, node, run_reference

from qexport.formats import max_code
from qexport.graphs.config import Target
from qexport.graphs.pipeline import finish
from qexport.graphs.rewrites import lower_linear_weight_only

K, N = 13, 7


def graph(bits: int, scales: int = N, act: str = "none") -> ir.Model:
    rng = np.random.default_rng(0)
    top = max_code(bits)
    constants = {
        "codes": rng.integers(-top, top + 1, (N, K)).astype(np.int8),
        "layer.scale": rng.uniform(0.01, 0.1, scales).astype(np.float32),
        "layer.bias": rng.normal(size=N).astype(np.float32),
    }
    return model_of(
        [node("QuantLinear", ["x", *constants], name="layer", w_bits=bits, act=act)],
        {"x": (onnx.TensorProto.FLOAT, ["batch", "sequence", K])},
        ("y", ["batch", "sequence", N]),
        constants,
    )


@pytest.mark.parametrize("scales", [1, N])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_weight_only_linear_stays_within_the_rounding_of_its_sums(bits: int, scales: int) -> None:
    model = graph(bits, scales)
    x = np.random.default_rng(1).normal(size=(2, 5, K)).astype(np.float32)
    initializers = {name: value.const_value.numpy() for name, value in model.graph.initializers.items()}  # type: ignore[union-attr]
    weight = initializers["codes"] * initializers["layer.scale"].reshape(-1, 1)
    before = run_reference(ir.serde.serialize_model(model), {"x": x})
    assert lower_linear_weight_only.rules.apply_to_model(model) == 1
    assert [item.op_type for item in model.graph][-3:] == ["Transpose", "MatMul", "Add"]
    after = finish(model, Target(), {}, "test")
    bound = 2 * (K + 2) * 2.0**-24 * (np.abs(x) @ np.abs(weight).T + np.abs(initializers["layer.bias"]))
    found = onnxruntime.InferenceSession(after.SerializeToString()).run(None, {"x": x})[0]
    assert (np.abs(found - before) <= bound).all()
    assert not (np.abs(found * 1.001 - before) <= bound).all()
    assert lower_linear_weight_only.rules.apply_to_model(model) == 0


def test_weight_only_linear_leaves_quantised_activations_alone() -> None:
    model = graph(2, act="dynamic-token")
    assert lower_linear_weight_only.rules.apply_to_model(model) == 0
