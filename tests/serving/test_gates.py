from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest

from qexport.serving.gates import Gate, at_least, at_most, drop_gate, rows_to_decide
from qexport.serving.paired import score_interval


def gate(low: float, drop: float, high: float, limit: float = 1.0, rows: int = 400) -> Gate:
    found = SimpleNamespace(drop=drop / 100, low=low / 100, high=high / 100)
    return drop_gate(limit, found, metric="accuracy", against="teacher", split="validation", rows=rows)


def test_drop_passes_only_when_the_whole_interval_is_within_the_limit() -> None:
    assert gate(-0.5, 0.1, 0.9).status == "passed"
    assert gate(-0.5, 0.1, 1.0).status == "passed"
    assert gate(0.2, 0.6, 1.01).status == "undecided"
    assert gate(0.9, 1.4, 1.9).status == "undecided"
    assert gate(1.1, 1.4, 1.9).status == "failed"
    assert [gate(-0.5, 0.1, 0.9).passed, gate(0.2, 0.6, 1.2).passed, gate(1.1, 1.4, 1.9).passed] == [
        True,
        False,
        False,
    ]


def test_an_undecided_drop_says_how_many_rows_would_decide() -> None:
    found = gate(0.0, 0.5, 1.5)
    assert found.rows_needed == 1600  # half-width 1.0 must shrink to 0.5: four times the rows
    assert "about 1600 rows would decide it" in found.detail
    assert gate(0.5, 1.0, 1.5).rows_needed is None
    assert "no number of rows" in gate(0.5, 1.0, 1.5).detail
    assert rows_to_decide(2.0, 0.0, 3.0, 1.0, 100) == 400


def test_rows_needed_do_decide_when_they_are_taken() -> None:
    rows, worse, better = 400, 6, 4
    small = score_interval(worse, better, rows)
    assert small.low < 0.01 < small.high
    needed = rows_to_decide(small.drop, small.low, small.high, 0.01, rows)
    assert needed is not None
    scale = needed / rows * 1.05
    large = score_interval(round(worse * scale), round(better * scale), round(rows * scale))
    assert large.high <= 0.01


@pytest.mark.parametrize("drop", [None, SimpleNamespace(drop=math.nan, low=0.0, high=0.0)])
def test_a_drop_that_was_not_measured_does_not_pass(drop: SimpleNamespace | None) -> None:
    found = drop_gate(1.0, drop, metric="accuracy", against="", split="validation", rows=10)
    assert (found.status, found.passed, found.value) == ("missing", False, None)


def test_bounds_include_their_limit_and_a_missing_value_fails() -> None:
    assert at_most("max-size-mb", 5.0, 5.0, "MB", "size").passed
    assert at_most("max-size-mb", 5.0, 5.001, "MB", "size").status == "failed"
    assert at_least("min-agreement", 99.9, 99.9, "%", "agreement").passed
    assert at_least("min-agreement", 99.9, 99.89, "%", "agreement").status == "failed"
    for missing in (None, math.nan, math.inf):
        assert at_most("max-latency-ms", 5.0, missing, "ms", "latency").status == "missing"
        assert at_least("min-agreement", 5.0, missing, "%", "agreement").status == "missing"


def test_a_model_at_the_limit_passes_wrongly_no_more_often_than_stated() -> None:
    """Gate at the true drop of one point: 2.5 % may pass, 2.5 % may fail, the rest are undecided."""
    draws = np.random.default_rng(3).multinomial(872, [0.02, 0.01, 0.97], size=1500)
    states = [
        drop_gate(
            1.0, score_interval(int(a), int(b), 872), metric="accuracy", against="t", split="v", rows=872
        ).status
        for a, b, _ in draws
    ]
    assert states.count("passed") / 1500 < 0.037
    assert states.count("failed") / 1500 < 0.037
