"""QuantizePerToken and QuantizePerTensor against their definition."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from qexport.graphs.operators import OPERATORS, SMALLEST_SCALE
from qexport.graphs.operators.single import operator_model

NAMES = ("QuantizePerToken", "QuantizePerTensor")


def session(name: str, rank: int, clip: float) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    model = operator_model(OPERATORS, name, [np.zeros((2,) * rank, np.float32)], {"clip": clip})
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


SESSIONS = {(name, clip): session(name, 2, clip) for name in NAMES for clip in (0.0, 1.5)}


@settings(max_examples=60, deadline=None)
@given(
    x=hnp.arrays(
        np.float32,
        hnp.array_shapes(min_dims=2, max_dims=2, max_side=40),
        elements=st.floats(-1e4, 1e4, width=32),
    ),
    key=st.sampled_from(sorted(SESSIONS)),
)
def test_onnxruntime_gives_the_reference(x: np.ndarray, key: tuple[str, float]) -> None:
    q, scale = SESSIONS[key].run(None, {"x": x})
    expected_q, expected_scale = OPERATORS[key[0]].reference(x, clip=key[1])
    assert np.array_equal(scale, expected_scale)
    assert np.array_equal(q, expected_q)
    assert q.dtype == np.uint8 and q.min() >= 1


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("clip", [0.0, 2.5])
def test_definition(name: str, clip: float) -> None:
    """The numbers as they are written down: clip first, then the largest magnitude."""
    x = np.random.default_rng(0).normal(size=(3, 5, 17)).astype(np.float32) * 3
    q, scale = OPERATORS[name].reference(x, clip=clip)
    bounded = np.clip(x, -clip, clip) if clip else x
    largest = (
        np.abs(bounded).max(axis=-1, keepdims=True) if name == "QuantizePerToken" else np.abs(bounded).max()
    )
    assert np.array_equal(scale, np.maximum(largest / np.float32(127), SMALLEST_SCALE))
    assert np.array_equal(q, (np.rint(bounded / scale) + 128).astype(np.uint8))
    assert scale.shape == ((3, 5, 1) if name == "QuantizePerToken" else ())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("rank", [1, 2, 4])
def test_ranks_and_zeros(name: str, rank: int) -> None:
    x = np.zeros((3,) * rank, np.float32)
    q, scale = session(name, rank, 0.0).run(None, {"x": x})
    assert (q == 128).all() and q.shape == x.shape
    assert (scale == SMALLEST_SCALE).all()


def test_half_codes_round_to_even() -> None:
    x = np.array([[127, 0.5, 1.5, 2.5, -0.5, -1.5]], np.float32)
    q, scale = SESSIONS["QuantizePerToken", 0.0].run(None, {"x": x})
    assert scale.item() == 1
    assert q[0].tolist() == [255, 128, 130, 130, 128, 126]
