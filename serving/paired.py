"""Score interval of the difference of two shares on the same rows.

A bootstrap of the rows covers too little when two models differ on few of them: with no differing row at all
its interval has no width, whatever the number of rows. The score interval keeps its level there (Tango 1998,
"Equivalence test and confidence interval for the difference in proportions for the paired-sample design",
Statistics in Medicine 17, pages 891-908).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

__all__ = ["PairedShares", "score_interval"]


@dataclass(frozen=True, slots=True)
class PairedShares:
    """Difference of two shares, a fraction, with its interval."""

    drop: float
    low: float
    high: float


def _score(worse: int, better: int, rows: int, drop: float) -> float:
    """Standardised distance of the observed difference from a true difference of `drop`."""
    a = 2.0 * rows
    b = -worse - better + (2.0 * rows - worse + better) * drop
    c = -better * drop * (1.0 - drop)
    share = (math.sqrt(max(0.0, b * b - 4.0 * a * c)) - b) / (2.0 * a)  # likeliest share of "better" rows
    variance = rows * (2.0 * share + drop * (1.0 - drop))
    distance = worse - better - rows * drop
    if variance <= 0.0:
        return 0.0 if distance == 0.0 else math.copysign(math.inf, distance)
    return distance / math.sqrt(variance)


def _solve(worse: int, better: int, rows: int, target: float, low: float, high: float) -> float:
    """The true difference at which the score is `target`; the score falls from `low` to `high`."""
    for _ in range(60):
        middle = (low + high) / 2.0
        if _score(worse, better, rows, middle) > target:
            low = middle
        else:
            high = middle
    return (low + high) / 2.0


def score_interval(worse: int, better: int, rows: int, *, level: float = 0.95) -> PairedShares:
    """Tango's interval of (worse - better) / rows.

    Args:
        worse: rows that only the reference gets right.
        better: rows that only ours gets right.
        rows: all rows, those on which both agree included; at least 1.
        level: coverage.
    """
    z = NormalDist().inv_cdf((1.0 + level) / 2.0)
    drop = (worse - better) / rows
    low = _solve(worse, better, rows, z, -1.0, drop)
    high = _solve(worse, better, rows, -z, drop, 1.0)
    return PairedShares(drop, low, high)
