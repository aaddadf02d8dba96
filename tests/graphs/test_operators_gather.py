"""The packed embedding tables: rows, scales, and that no runtime unpacks the whole table."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from qexport.errors import ShapeError
from qexport.graphs.operators import OPERATORS, gather_name
from qexport.graphs.operators.single import operator_model
from qexport.graphs.packing import pack


def table(bits: int, rows: int, k: int) -> np.ndarray:
    rng = np.random.default_rng(bits)
    top = 1 if bits <= 2 else 2 ** (bits - 1) - 1
    codes = rng.integers(-top, top + 1, (rows, k)).astype(np.int8)
    return np.where(codes == 0, np.int8(1), codes) if bits == 1 else codes


@pytest.mark.parametrize("per_row", [True, False])
@pytest.mark.parametrize("bits", range(1, 9))
def test_rows(bits: int, per_row: bool) -> None:
    codes = table(bits, 11, 23)
    scale = np.random.default_rng(0).random(11 if per_row else 1, np.float32)
    indices = np.array([[0, 10, 3], [3, 3, 7]])
    inputs = [indices, pack(codes, bits), scale]
    (y,) = OPERATORS[gather_name(bits)].reference(*inputs, K=23)
    expected = codes.astype(np.float32) * (scale[:, None] if per_row else scale)
    assert np.array_equal(y, expected[indices])
    model = operator_model(OPERATORS, gather_name(bits), inputs, {"K": 23}, constants=("table", "scale"))
    (found,) = ort.InferenceSession(model.SerializeToString()).run(None, {"indices": indices})
    assert np.array_equal(found, y)


@pytest.mark.parametrize("bits", [1, 2, 6, 8])
def test_table_stays_packed(bits: int, tmp_path: Path) -> None:
    codes = table(bits, 500, 64)
    inputs = [np.array([[1, 2]]), pack(codes, bits), np.ones(500, np.float32)]
    model = operator_model(OPERATORS, gather_name(bits), inputs, {"K": 64}, constants=("table", "scale"))
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(tmp_path / "o.onnx")
    ort.InferenceSession(model.SerializeToString(), options)
    stored = {tuple(i.dims): i.data_type for i in onnx.load(tmp_path / "o.onnx").graph.initializer}
    assert stored[500, inputs[1].shape[1]] == onnx.TensorProto.UINT8
    assert bits == 8 or (500, 64) not in stored


def test_index_outside_the_table() -> None:
    inputs = [np.array([[1, 2]]), pack(table(2, 5, 10), 2), np.ones(1, np.float32)]
    model = operator_model(OPERATORS, "TernaryGather", inputs, {"K": 10}, constants=("table", "scale"))
    session = ort.InferenceSession(model.SerializeToString())
    with pytest.raises(Exception, match=r"indices element out of data bounds"):
        session.run(None, {"indices": np.array([[5, 0]])})


def test_reference_checks_the_width() -> None:
    with pytest.raises(ShapeError, match=r"uint8 \[N, 3\]"):
        OPERATORS["TernaryGather"].reference(
            np.array([0]), np.zeros((4, 2), np.uint8), np.ones(1, np.float32), K=11
        )
