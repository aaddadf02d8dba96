"""Metrics of the tasks, their confidence intervals, and the paired drop between two models.

All values are fractions, never percent. Resampling is vectorised. A bootstrap sample is one multinomial draw
over the distinct kinds (label, prediction) of rows for counting metrics, and row counts for correlations.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from qexport.errors import ShapeError, UnknownNameError, UsageError, ValueRangeError
from qexport.training.tasks import Task

__all__ = [
    "METRICS",
    "PairedDrop",
    "check_resampling",
    "compute_metrics",
    "interval",
    "paired_drop",
    "predictions",
    "row_counts",
]

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]

_CHUNK_CELLS = 200_000  # numbers of one resampling matrix: 1.6 MB, to stay near the core


def _ratio(numerator: Float64, denominator: Float64) -> Float64:
    """Divide; 0 where the denominator is 0, as scikit-learn does for an undefined metric."""
    out = np.zeros_like(numerator)
    np.divide(numerator, denominator, out=out, where=denominator != 0)
    return out


# Counting metrics: confusion [..., c, c] float64, rows true class, columns predicted class -> [...]


def _accuracy(confusion: Float64) -> Float64:
    hits = np.trace(confusion, axis1=-2, axis2=-1)
    return _ratio(np.asarray(hits), confusion.sum(axis=(-2, -1)))


def _f1_per_class(confusion: Float64) -> Float64:
    hits = np.diagonal(confusion, axis1=-2, axis2=-1).copy()
    return _ratio(2 * hits, confusion.sum(axis=-1) + confusion.sum(axis=-2))


def _f1(confusion: Float64) -> Float64:
    return _f1_per_class(confusion)[..., 1]


def _f1_macro(confusion: Float64) -> Float64:
    present = (confusion.sum(axis=-1) + confusion.sum(axis=-2)) > 0
    return _ratio(_f1_per_class(confusion).sum(axis=-1), present.sum(axis=-1).astype(np.float64))


def _matthews(confusion: Float64) -> Float64:
    total = confusion.sum(axis=(-2, -1))
    hits = np.asarray(np.trace(confusion, axis1=-2, axis2=-1))
    true, predicted = confusion.sum(axis=-1), confusion.sum(axis=-2)
    covariance = hits * total - (true * predicted).sum(axis=-1)
    spread = (total**2 - (true**2).sum(axis=-1)) * (total**2 - (predicted**2).sum(axis=-1))
    return _ratio(covariance, np.sqrt(spread))


# Correlations: counts [r, n] (how often each row was drawn), x and y [n] float64 -> [r]


def _weighted_pearson(counts: Float64, x: Float64, y: Float64) -> Float64:
    """Pearson correlation with row weights; x and y are [n] or [r, n]."""
    total = counts.sum(axis=-1, keepdims=True)
    x, y = np.broadcast_to(x, counts.shape), np.broadcast_to(y, counts.shape)
    dx = x - np.einsum("rn,rn->r", counts, x)[:, None] / total
    dy = y - np.einsum("rn,rn->r", counts, y)[:, None] / total
    weighted = counts * dx
    cross, xx = np.einsum("rn,rn->r", weighted, dy), np.einsum("rn,rn->r", weighted, dx)
    yy = np.einsum("rn,rn,rn->r", counts, dy, dy)
    # Below this a constant column differs from its own mean by rounding alone.
    tiny = (16 * np.finfo(np.float64).eps) ** 2 * total[..., 0]
    flat = (xx <= tiny * np.abs(x).max(axis=-1) ** 2) | (yy <= tiny * np.abs(y).max(axis=-1) ** 2)
    return np.where(flat, 0.0, np.clip(_ratio(cross, np.sqrt(xx) * np.sqrt(yy)), -1.0, 1.0))


def _mid_ranks(counts: Float64, values: Float64) -> Float64:
    """Average rank of every row in each resample: [r, n]; ties share the mean of their places."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    starts = np.flatnonzero(np.concatenate(([True], ordered[1:] != ordered[:-1])))
    group = np.empty(len(values), dtype=np.int64)
    group[order] = np.repeat(np.arange(len(starts)), np.diff(np.append(starts, len(values))))
    per_group = np.add.reduceat(np.take(counts, order, axis=1), starts, axis=1)
    before = np.cumsum(per_group, axis=-1) - per_group
    return np.take(before + (per_group + 1) / 2, group, axis=1)


def _pearson(counts: Float64, x: Float64, y: Float64) -> Float64:
    return _weighted_pearson(counts, x, y)


def _spearman(counts: Float64, x: Float64, y: Float64) -> Float64:
    return _weighted_pearson(counts, _mid_ranks(counts, x), _mid_ranks(counts, y))


_COUNTING: dict[str, Callable[[Float64], Float64]] = {
    "accuracy": _accuracy,
    "f1": _f1,
    "f1_macro": _f1_macro,
    "acc_and_f1": lambda confusion: (_accuracy(confusion) + _f1(confusion)) / 2,
    "matthews": _matthews,
}
_CORRELATION: dict[str, Callable[[Float64, Float64, Float64], Float64]] = {
    "pearson": _pearson,
    "spearman": _spearman,
    "corr": lambda counts, x, y: (_pearson(counts, x, y) + _spearman(counts, x, y)) / 2,
}

METRICS: tuple[str, ...] = (*_COUNTING, *_CORRELATION)
"""accuracy; f1 (of class 1, two classes); f1_macro (mean over the classes that occur); acc_and_f1 (mean of
accuracy and f1); matthews (Matthews correlation); pearson; spearman; corr (mean of pearson and spearman).
Undefined values, such as the correlation of a constant, are 0."""


def predictions(task: Task, logits: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """What the model says for each row.

    Args:
        task: tells classification from regression.
        logits: float [n, c] with c = task.num_labels; [n] is accepted for regression.
    Returns:
        int64 [n] class ids (the lowest id wins a tie), or float64 [n] for regression.
    Raises:
        ShapeError: another shape.
        ValueRangeError: NaN or infinity; the message gives the first row.
    """
    values = np.asarray(logits)
    if task.kind == "regression" and values.ndim == 1:
        values = values[:, None]
    if values.ndim != 2 or values.shape[1] != task.num_labels:
        raise ShapeError(
            f"logits of task {task.name} must be [rows, {task.num_labels}], got {list(np.shape(logits))}; "
            "use the model and the task it was trained for together"
        )
    finite = np.isfinite(values).all(axis=1)
    if not finite.all():
        row = int(np.argmin(finite))
        raise ValueRangeError(
            f"logits of task {task.name} must be finite, row {row} holds {values[row].tolist()}; "
            "the model has diverged, train it again with a lower learning rate"
        )
    if task.kind == "regression":
        numbers: Float64 = values[:, 0].astype(np.float64)
        return numbers
    ids: Int64 = values.argmax(axis=1).astype(np.int64)
    return ids


def _labels(task: Task, labels: npt.ArrayLike, n: int) -> npt.NDArray[Any]:
    values = np.asarray(labels)
    if values.shape != (n,):
        raise ShapeError(
            f"labels of task {task.name} must be [{n}], one for each row of the logits, "
            f"got {list(values.shape)}; pass the labels of the same rows"
        )
    if n == 0:
        raise UsageError(f"metrics of task {task.name} need at least one row, got none; pass evaluation rows")
    if task.kind == "regression":
        return values.astype(np.float64)
    outside = (values < 0) | (values >= task.num_labels)
    if outside.any():
        row = int(np.argmax(outside))
        raise ValueRangeError(
            f"labels of task {task.name} must be 0..{task.num_labels - 1}, row {row} holds {values[row]}; "
            "evaluate on labelled rows of this task"
        )
    return values.astype(np.int64)


def _check_metric(task: Task, metric: str) -> None:
    allowed = _CORRELATION if task.kind == "regression" else _COUNTING
    known = [name for name in allowed if task.num_labels <= 2 or name not in ("f1", "acc_and_f1")]
    if metric not in known:
        raise UnknownNameError(f"{task.kind} metric", metric, known)


def _confusion(predicted: Int64, labels: Int64, classes: int) -> Float64:
    flat = np.bincount(labels * classes + predicted, minlength=classes * classes)
    return flat.reshape(classes, classes).astype(np.float64)


def _value(task: Task, metric: str, predicted: npt.NDArray[Any], labels: npt.NDArray[Any]) -> float:
    if task.kind == "regression":
        return float(_CORRELATION[metric](np.ones((1, len(labels))), predicted, labels)[0])
    return float(_COUNTING[metric](_confusion(predicted, labels, task.num_labels)))


def compute_metrics(task: Task, logits: npt.NDArray[Any], labels: npt.ArrayLike) -> dict[str, float]:
    """Every metric of the task.

    Args:
        task: its `metrics` are computed, in that order.
        logits: float [n, c].
        labels: int [n] class ids, or float [n] for regression.
    Returns:
        Metric name to a fraction (correlations: -1..1).
    Raises:
        ShapeError, ValueRangeError: see `predictions`; also labels of another length or outside the classes.
        UsageError: no rows.
    """
    predicted = predictions(task, logits)
    truth = _labels(task, labels, len(predicted))
    return {metric: _value(task, metric, predicted, truth) for metric in task.metrics}


def _wilson(value: float, n: int, level: float) -> tuple[float, float]:
    """Wilson (1927) score interval of a proportion."""
    z = statistics.NormalDist().inv_cdf((1 + level) / 2)
    centre = (value + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(value * (1 - value) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def row_counts(n: int, resamples: int, generator: np.random.Generator) -> Iterator[Float64]:
    """Yield float64 [r, n] blocks of how often each row is drawn; r sums to `resamples`."""
    step = max(1, _CHUNK_CELLS // n)
    for start in range(0, resamples, step):
        r = min(step, resamples - start)
        drawn = generator.integers(n, size=(r, n)) + np.arange(r)[:, None] * n
        yield np.bincount(drawn.ravel(), minlength=r * n).reshape(r, n).astype(np.float64)


def _bootstrap(
    task: Task,
    metric: str,
    models: list[npt.NDArray[Any]],
    labels: npt.NDArray[Any],
    resamples: int,
    seed: int,
) -> Float64:
    """Values of the metric for each model on the same resampled rows: float64 [models, resamples]."""
    generator = np.random.default_rng(seed)
    n, classes = len(labels), task.num_labels
    if task.kind == "regression":
        blocks = [
            np.stack([_CORRELATION[metric](counts, predicted, labels) for predicted in models])
            for counts in row_counts(n, resamples, generator)
        ]
        return np.concatenate(blocks, axis=1)
    # Rows with the same label and the same predictions are interchangeable: draw how many of each kind.
    kinds, sizes = np.unique(np.stack([labels, *models], axis=1), axis=0, return_counts=True)
    drawn = generator.multinomial(n, sizes / n, size=resamples).astype(np.float64)
    values = []
    for column in range(1, kinds.shape[1]):
        cell = np.zeros((len(kinds), classes * classes))
        cell[np.arange(len(kinds)), kinds[:, 0] * classes + kinds[:, column]] = 1.0
        values.append(_COUNTING[metric]((drawn @ cell).reshape(resamples, classes, classes)))
    return np.stack(values)


def check_resampling(level: float, resamples: int) -> None:
    """Refuse a level outside 0..1 and fewer than 100 resamples, with a UsageError."""
    if not 0 < level < 1:
        raise UsageError(f"the confidence level must be between 0 and 1, got {level}; use 0.95")
    if resamples < 100:
        raise UsageError(f"a bootstrap interval needs at least 100 resamples, got {resamples}; use 2000")


def interval(
    task: Task,
    metric: str,
    logits: npt.NDArray[Any],
    labels: npt.ArrayLike,
    *,
    level: float = 0.95,
    seed: int = 0,
    resamples: int = 2000,
) -> tuple[float, float]:
    """Confidence interval of one metric over the choice of evaluation rows.

    Accuracy has the Wilson score interval (Wilson 1927), every other metric the percentile bootstrap
    (Efron 1979).

    Args:
        task, logits, labels: as in `compute_metrics`.
        metric: any metric that fits the kind of task, not only the task's own.
        level: coverage, such as 0.95.
        seed, resamples: of the bootstrap.
    Returns:
        (low, high), fractions.
    Raises:
        UnknownNameError: the metric does not exist or does not fit the task.
        UsageError: a level outside 0..1 or fewer than 100 resamples.
        ShapeError, ValueRangeError: see `compute_metrics`.
    """
    _check_metric(task, metric)
    check_resampling(level, resamples)
    predicted = predictions(task, logits)
    truth = _labels(task, labels, len(predicted))
    if metric == "accuracy":
        return _wilson(_value(task, metric, predicted, truth), len(truth), level)
    values = _bootstrap(task, metric, [predicted], truth, resamples, seed)[0]
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedDrop:
    """How much worse model b is than model a on the same rows; negative when b is better."""

    metric: str
    """Name of the metric."""
    drop: float
    """metric(a) - metric(b), a fraction: 0.01 is one point."""
    low: float
    """Lower end of the paired bootstrap interval of `drop`."""
    high: float
    """Upper end."""
    level: float
    """Coverage of the interval."""
    rows: int
    """Evaluation rows."""

    def rows_needed(self, limit: float) -> int | None:
        """Estimate how many rows would put the whole interval on one side of `limit`.

        The interval is taken to shrink with the square root of the number of rows around the same drop.

        Args:
            limit: the allowed drop, a fraction.
        Returns:
            `rows` when the interval decides already; None when `drop` equals the limit: no number would.
        """
        if self.high <= limit or self.low > limit:
            return self.rows
        distance = abs(limit - self.drop)
        if distance == 0:
            return None
        half = self.high - self.drop if self.drop < limit else self.drop - self.low
        return math.ceil(self.rows * (half / distance) ** 2)


def paired_drop(
    task: Task,
    metric: str,
    logits_a: npt.NDArray[Any],
    logits_b: npt.NDArray[Any],
    labels: npt.ArrayLike,
    *,
    level: float = 0.95,
    seed: int = 0,
    resamples: int = 2000,
) -> PairedDrop:
    """Drop from model a to model b with a paired percentile bootstrap interval.

    Both models are scored on the same resampled rows, so that what is hard for both cancels (Efron and
    Tibshirani 1993, chapter 16). Where the two never disagree on a row the interval has no width: the rows
    hold no evidence of a difference, which with few rows is weak evidence of none.

    Args:
        task, metric, labels, level, seed, resamples: as in `interval`.
        logits_a: float [n, c] of the reference, such as the teacher.
        logits_b: float [n, c] of the model under test.
    Raises:
        ShapeError: the two have different numbers of rows; see also `interval`.
    """
    _check_metric(task, metric)
    check_resampling(level, resamples)
    a, b = predictions(task, logits_a), predictions(task, logits_b)
    if len(a) != len(b):
        raise ShapeError(
            f"a paired comparison needs the same rows for both models, got {len(a)} and {len(b)}; "
            "run both on the same evaluation rows"
        )
    truth = _labels(task, labels, len(a))
    values = _bootstrap(task, metric, [a, b], truth, resamples, seed)
    low, high = np.quantile(values[0] - values[1], [(1 - level) / 2, (1 + level) / 2])
    drop = _value(task, metric, a, truth) - _value(task, metric, b, truth)
    return PairedDrop(
        metric=metric, drop=drop, low=float(low), high=float(high), level=level, rows=len(truth)
    )
