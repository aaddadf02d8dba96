"""The uniform layer map: as released where the depths divide, increasing and onto the last layer always."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qexport.errors import UsageError
from qexport.training.layer_map import uniform_map


def test_map_is_that_of_the_released_code_when_the_depths_divide() -> None:
    """TinyBERT: attention of layer i (from 0) learns from i * k + k - 1, state i from i * k."""
    layers, k = uniform_map(4, 12), 3
    assert layers.attentions == tuple(i * k + k - 1 for i in range(4))
    assert layers.states == tuple(i * k for i in range(5))


def test_map_takes_the_nearest_layer_when_they_do_not() -> None:
    assert uniform_map(4, 6).layers == (2, 3, 5, 6)  # 1.5, 3, 4.5, 6
    assert uniform_map(5, 6).layers == (1, 2, 4, 5, 6)  # 1.2, 2.4, 3.6, 4.8, 6


@given(st.integers(1, 48), st.integers(0, 48))
def test_map_increases_and_ends_at_the_last_layer(student: int, more: int) -> None:
    layers = uniform_map(student, student + more).layers
    assert len(layers) == student and layers[-1] == student + more
    assert all(a < b for a, b in zip((0, *layers), layers, strict=False))
    assert more or layers == tuple(range(1, student + 1))


def test_deeper_student_is_refused() -> None:
    with pytest.raises(UsageError, match=r"a student of 6 layers .* teacher of 4"):
        uniform_map(6, 4)
