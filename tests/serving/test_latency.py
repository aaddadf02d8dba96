from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy.stats import binom

from qexport.errors import UsageError
from qexport.serving.latency import feeds_from_rows, interleaved_times, measure_latency, median_interval


class Sleeper:
    """A runner that takes a fixed time and writes its name down."""

    def __init__(self, name: str, seconds: float, log: list[str]) -> None:
        self.name, self.seconds, self.log = name, seconds, log

    def run(self, batch: Any) -> dict[str, Any]:
        self.log.append(self.name)
        time.sleep(self.seconds)
        return {}


def test_engines_take_turns_in_a_rotating_order() -> None:
    log: list[str] = []
    engines = {name: Sleeper(name, 0.0, log) for name in "abc"}
    interleaved_times(engines, {}, rounds=4, warmup=1)
    assert "".join(log) == "abc" + "abc" + "bca" + "cab" + "abc"


def test_ratios_are_those_of_the_sleeps() -> None:
    log: list[str] = []
    cells = measure_latency(
        lambda threads: {"ours": Sleeper("ours", 0.002, log), "slow": Sleeper("slow", 0.006, log)},
        [{"input_ids": np.array([[5, 6]])}], lengths=[8, 16], threads=[1, 2], rounds=11, warmup=1,
    )  # fmt: skip
    assert [(cell.engine, cell.length, cell.threads) for cell in cells] == [
        (name, length, threads) for threads in (1, 2) for length in (8, 16) for name in ("ours", "slow")
    ]
    for cell in cells:
        assert 0 < cell.min_ms <= cell.p50_ms <= cell.p90_ms <= cell.p99_ms
    (ratio,) = cells[0].ratios
    assert ratio.against == "slow" and cells[1].ratios == []
    assert ratio.low <= ratio.median <= ratio.high and ratio.p10 <= ratio.median <= ratio.p90
    assert 1.5 < ratio.median < 4.0  # 3, with room for a busy machine


@pytest.mark.parametrize("n", [6, 11, 30, 101])
def test_interval_of_the_median_holds_its_level_by_the_binomial(n: int) -> None:
    low, high = median_interval(np.arange(1.0, n + 1))
    coverage = 1 - 2 * binom.cdf(low - 1, n, 0.5)  # the k-th value of n has rank k
    tighter = 1 - 2 * binom.cdf(low, n, 0.5)
    assert low + high == n + 1
    assert coverage >= 0.95 and tighter < 0.95


def test_interval_of_few_values_is_their_range() -> None:
    assert median_interval(np.array([3.0])) == (3.0, 3.0)
    assert median_interval(np.array([2.0, 1.0])) == (1.0, 2.0)


def test_timed_batches_hold_ids_of_the_rows_and_no_padding() -> None:
    rows = [{"input_ids": np.array([[7, 8, 0]]), "attention_mask": np.array([[1, 1, 0]])}]
    feeds = feeds_from_rows(rows, length=50, batch_size=3, seed=1)
    assert {name: value.shape for name, value in feeds.items()} == {
        name: (3, 50) for name in ("input_ids", "attention_mask", "token_type_ids")
    }
    assert set(feeds["input_ids"].ravel()) == {7, 8}
    assert feeds["attention_mask"].all()
    again = feeds_from_rows(rows, length=50, batch_size=3, seed=1)
    np.testing.assert_array_equal(feeds["input_ids"], again["input_ids"])


@pytest.mark.parametrize(
    "changes", [{"lengths": []}, {"lengths": [0]}, {"threads": [0]}, {"batch_size": 0}, {"rounds": 0}]
)
def test_nothing_below_one_is_measured(changes: dict[str, Any]) -> None:
    arguments: dict[str, Any] = {"lengths": [8], "threads": [1], "rounds": 1, "batch_size": 1, **changes}
    with pytest.raises(UsageError, match="must be at least 1"):
        measure_latency(lambda threads: {"a": SimpleNamespace(run=lambda batch: {})}, [], **arguments)
