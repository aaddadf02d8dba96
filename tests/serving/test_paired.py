from __future__ import annotations

import numpy as np
import pytest

from qexport.serving.paired import score_interval


def test_interval_has_width_when_no_row_differs() -> None:
    found = score_interval(0, 0, 872)
    z = 1.959964
    assert found.high == pytest.approx(z * z / (872 + z * z), rel=1e-5)  # the closed form of this case
    assert found.drop == 0.0 and found.low == pytest.approx(-found.high)


def test_interval_is_mirrored_when_the_models_change_places() -> None:
    one, other = score_interval(12, 2, 50), score_interval(2, 12, 50)
    assert one.low == pytest.approx(-other.high) and one.high == pytest.approx(-other.low)
    assert one.drop == pytest.approx(0.2) and one.low < 0.2 < one.high


def test_interval_nears_the_normal_one_when_many_rows_differ() -> None:
    worse, better, rows = 5_000, 4_000, 50_000
    drop = (worse - better) / rows
    half = 1.959964 * np.sqrt((worse + better) / rows - drop**2) / np.sqrt(rows)
    found = score_interval(worse, better, rows)
    assert found.low == pytest.approx(drop - half, abs=2e-5)
    assert found.high == pytest.approx(drop + half, abs=2e-5)


@pytest.mark.parametrize(("worse", "better", "rows"), [(0, 7, 7), (7, 0, 7), (1, 0, 1), (3, 3, 6)])
def test_interval_stays_within_the_possible(worse: int, better: int, rows: int) -> None:
    found = score_interval(worse, better, rows)
    assert -1.0 <= found.low <= found.drop <= found.high <= 1.0


@pytest.mark.parametrize(("worse", "better"), [(0.005, 0.0), (0.010, 0.005), (0.03, 0.02)])
def test_each_end_misses_as_often_as_stated(worse: float, better: float) -> None:
    """2.5 % on each side: a gate at the true drop passes, or fails, wrongly no more often than that."""
    draws = np.random.default_rng(7).multinomial(872, [worse, better, 1 - worse - better], size=1500)
    found = [score_interval(int(first), int(second), 872) for first, second, _ in draws]
    truth = worse - better
    too_low = np.mean([item.high < truth for item in found])
    too_high = np.mean([item.low > truth for item in found])
    assert (
        too_low < 0.036 and too_high < 0.046
    )  # 0.025 plus three standard errors and the steps of small counts
