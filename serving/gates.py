"""Bounds that a release must keep, and the decision on each: passed, failed, undecided or missing.

A gate fails closed: what was not measured, or what the data cannot decide, does not pass.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from qexport.serving.evaluate import PairedDropLike

__all__ = ["Gate", "at_least", "at_most", "drop_gate", "rows_to_decide"]

Status = Literal["passed", "failed", "undecided", "missing"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """One bound and what was found."""

    name: str
    """The option that set it: "max-drop"."""
    limit: float
    """The bound, in `unit`."""
    unit: str
    """"points", "%", "ms" or "MB"."""
    value: float | None
    """What was measured; None when it was not."""
    low: float | None = None
    """Lower end of the interval of `value`, where there is one."""
    high: float | None = None
    """Upper end."""
    status: Status
    """Only "passed" passes."""
    detail: str
    """One sentence: what was compared, and what to do when it did not pass."""
    rows: int | None = None
    """Rows that the decision rests on."""
    rows_needed: int | None = None
    """Rows that would decide it, if the measured value is the true one; None when decided or unknowable."""

    @property
    def passed(self) -> bool:
        """True only for the status "passed"."""
        return self.status == "passed"


def rows_to_decide(drop: float, low: float, high: float, limit: float, rows: int) -> int | None:
    """Rows at which the interval would leave the limit, if the measured drop is the true one.

    An interval shrinks with the square root of the rows, so half-width h at n rows is h * sqrt(n / m) at m.

    Args:
        drop: measured value; same unit as `low`, `high` and `limit`.
        low: lower end of its interval.
        high: upper end.
        limit: the bound.
        rows: rows the interval came from.
    Returns:
        the number of rows, above `rows`; None when the drop equals the limit, where no number decides.
    """
    distance = abs(limit - drop)
    half = (high - drop) if drop <= limit else (drop - low)
    if distance == 0.0 or half <= 0.0:
        return None
    needed = rows * (half / distance) ** 2
    return max(rows + 1, math.ceil(needed)) if math.isfinite(needed) else None


def drop_gate(
    limit: float, drop: PairedDropLike | None, *, metric: str, against: str, split: str, rows: int
) -> Gate:
    """Judge a loss of the metric, paired on the same rows.

    Passed when the upper end of the interval is at most the limit, failed when the lower end is above it,
    undecided when the limit lies inside.

    Args:
        limit: allowed loss in points (1 point = 0.01 of the metric).
        drop: reference minus ours, as a fraction; None when it was not measured.
        metric: name of the metric.
        against: name of the reference.
        split: name of the split.
        rows: rows compared.
    """
    if drop is None or not all(math.isfinite(value) for value in (drop.drop, drop.low, drop.high)):
        return Gate(
            name="max-drop", limit=limit, unit="points", value=None, status="missing", rows=rows,
            detail=f"the drop of {metric} was not measured: give a teacher or an FP32 baseline",
        )  # fmt: skip
    value, low, high = (100.0 * number for number in (drop.drop, drop.low, drop.high))
    where = f"{metric} on {split}, paired with {against} on {rows} rows"
    found = f"drop {value:+.2f} points, 95 % interval [{low:+.2f}, {high:+.2f}]"
    needed: int | None = None
    status: Status
    if high <= limit:
        status, end = "passed", f"the whole interval is at most {limit:g}"
    elif low > limit:
        status, end = "failed", f"the whole interval is above {limit:g}"
    else:
        needed = rows_to_decide(value, low, high, limit, rows)
        many = f"about {needed} rows would decide it" if needed else "no number of rows would decide it"
        status, end = "undecided", f"the interval holds {limit:g}, these rows cannot decide; {many}"
    return Gate(
        name="max-drop", limit=limit, unit="points", value=value, low=low, high=high, status=status,
        rows=rows, rows_needed=needed, detail=f"{where}: {found}; {end}",
    )  # fmt: skip


def at_most(name: str, limit: float, value: float | None, unit: str, what: str) -> Gate:
    """Judge a value that must not exceed `limit`; a missing or non-finite one does not pass."""
    if value is None or not math.isfinite(value):
        return Gate(
            name=name, limit=limit, unit=unit, value=None, status="missing",
            detail=f"{what} was not measured, so the bound of {limit:g} {unit} cannot be kept",
        )  # fmt: skip
    good = value <= limit
    detail = f"{what} is {value:.4g} {unit}, the bound is at most {limit:g} {unit}"
    return Gate(
        name=name, limit=limit, unit=unit, value=value, status="passed" if good else "failed", detail=detail
    )


def at_least(name: str, limit: float, value: float | None, unit: str, what: str) -> Gate:
    """Judge a value that must reach `limit`; a missing or non-finite one does not pass."""
    if value is None or not math.isfinite(value):
        return Gate(
            name=name, limit=limit, unit=unit, value=None, status="missing",
            detail=f"{what} was not measured, so the bound of {limit:g} {unit} cannot be kept",
        )  # fmt: skip
    good = value >= limit
    detail = f"{what} is {value:.5g} {unit}, the bound is at least {limit:g} {unit}"
    return Gate(
        name=name, limit=limit, unit=unit, value=value, status="passed" if good else "failed", detail=detail
    )
