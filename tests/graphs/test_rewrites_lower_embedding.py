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
from qexport.graphs.rewrites import lower_embedding

V, D = 11, 12


def graph(bits: int, scales: int = V) -> ir.Model:
    rng = np.random.default_rng(0)
    top = max_code(bits)
    constants = {
        "codes": rng.integers(-top, top + 1, (V, D)).astype(np.int8),
        "table.scale": rng.uniform(0.01, 0.1, scales).astype(np.float32),
    }
    return model_of(
        [node("QuantEmbedding", ["ids", *constants], name="table", w_bits=bits)],
        {"ids": (onnx.TensorProto.INT64, ["batch", "sequence"])},
        ("y", ["batch", "sequence", D]),
        constants,
    )


@pytest.mark.parametrize(("bits", "kind"), [(2, "TernaryGather"), (4, "Int4Gather"), (8, "Int8Gather")])
def test_lower_embedding_keeps_every_bit_of_the_result(bits: int, kind: str) -> None:
    model, ids = graph(bits), np.random.default_rng(1).integers(0, V, (2, 5))
    before = run_reference(ir.serde.serialize_model(model), {"ids": ids})
    assert lower_embedding.rules.apply_to_model(model) == 1
    assert [(item.op_type, item.name) for item in model.graph] == [(kind, "table")]
    assert lower_embedding.rules.apply_to_model(model) == 0
    after = finish(model, Target(), {}, "test")
    np.testing.assert_array_equal(run_reference(after, {"ids": ids}), before)
    session = onnxruntime.InferenceSession(after.SerializeToString())
    np.testing.assert_array_equal(session.run(None, {"ids": ids})[0], before)


def test_lower_embedding_leaves_a_wrong_scale_alone() -> None:
    model = graph(2, scales=V + 1)
    assert lower_embedding.rules.apply_to_model(model) == 0
