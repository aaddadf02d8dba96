"""Neighbour agreement against a case worked out by hand and plain sorting."""

from __future__ import annotations

import numpy as np
import pytest

from qexport.errors import ShapeError, UsageError
from qexport.serving import neighbours
from qexport.serving.neighbours import neighbour_overlap


def at(*degrees: float) -> np.ndarray:
    angles = np.radians(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def test_overlap_equals_the_one_worked_out_by_hand() -> None:
    # by theirs 0-10 and 90-95 are neighbours; by ours the second one has moved to the other side
    assert neighbour_overlap(at(0, 80, 90, 95), at(0, 10, 90, 95), 1).tolist() == [1.0, 0.0, 1.0, 1.0]
    assert neighbour_overlap(at(0, 80, 90, 95), at(0, 10, 90, 95), 3).tolist() == [1.0] * 4
    assert neighbour_overlap(5 * at(0, 10, 90, 95), at(0, 10, 90, 95), 1).tolist() == [1.0] * 4


def test_overlap_equals_plain_sorting_when_rows_take_several_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "_BLOCK", 7)
    generator = np.random.default_rng(0)
    ours = generator.normal(size=(30, 6))
    theirs = ours + 0.5 * generator.normal(size=(30, 6))
    expected = []
    for row in range(30):
        sets = []
        for side in (ours, theirs):
            unit = side / np.linalg.norm(side, axis=1, keepdims=True)
            order = [other for other in np.argsort(-(unit @ unit[row])) if other != row]
            sets.append(set(order[:5]))
        expected.append(len(sets[0] & sets[1]) / 5)
    assert neighbour_overlap(ours, theirs, 5).tolist() == expected
    assert 0.2 < np.mean(expected) < 0.95


def test_mistakes_are_refused() -> None:
    with pytest.raises(ShapeError, match="got 3 and 2"):
        neighbour_overlap(at(0, 1, 2), at(0, 1), 1)
    with pytest.raises(UsageError, match="10 neighbours need at least 11 sentences, got 3"):
        neighbour_overlap(at(0, 1, 2), at(0, 1, 2), 10)
