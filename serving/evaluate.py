"""A task's rows over any runner: logits in row order, metrics with intervals.

Metric functions come in through `EvalRows`, so that serving needs neither torch nor qexport.training; the
command line passes those of qexport.training.metrics.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from qexport.errors import UsageError
from qexport.serving.kinds import OutputKind, get_kind, stack_rows
from qexport.serving.session import Batch, Float32Array

__all__ = ["EvalRows", "Evaluated", "MetricValue", "PairedDropLike", "Runner", "evaluate", "metric_values"]

Labels = npt.NDArray[Any]


class PairedDropLike(Protocol):
    """A drop of one metric between two engines on the same rows, as a fraction, with its interval."""

    @property
    def drop(self) -> float: ...
    @property
    def low(self) -> float: ...
    @property
    def high(self) -> float: ...


class Runner(Protocol):
    """Anything that maps one batch to named outputs; `Session` is one."""

    def run(self, batch: Batch, /) -> Mapping[str, npt.NDArray[Any]]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalRows:
    """The labelled rows of one split, tokenised, with the functions that judge logits on them."""

    task: str
    """Name of the task, for the report: "sst2"."""
    split: str = "validation"
    """Name of the split, for the report."""
    kind: str = "classification"
    """What the outputs are, see `qexport.serving.kinds`."""
    batches: Sequence[Batch]
    """Feeds, int64 [B, S] each; together `labels.shape[0]` rows."""
    labels: Labels
    """What is right for each row, [n, ...], in the order of the data file; the metric functions know it."""
    items: Any = None
    """What the kind reads outputs with, where they do not speak for themselves: the windows of questions."""
    order: npt.NDArray[np.int64] | None = None
    """Row of the data file of each row of the concatenated batches; None means in file order."""
    texts: Sequence[str] | None = None
    """Text of each item in file order, shown beside disagreements; None leaves it out."""
    label_texts: Sequence[str] | None = None
    """What is right for each item, where that is a text."""
    main_metric: str
    """The metric that gates judge."""
    metrics: Callable[[Any, Labels], Mapping[str, float]]
    """(what the kind decoded: logits [n, c], labels [n]) -> name -> fraction."""
    interval: Callable[[str, Any, Labels], tuple[float, float]]
    """(metric, decoded, labels) -> 95 % interval (low, high), fractions."""
    paired_drop: Callable[[str, Any, Any, Labels], PairedDropLike]
    """(metric, decoded_a, decoded_b, labels) -> metric(a) - metric(b) on the same rows, with its interval."""
    drop_method: str = "paired bootstrap"
    """How `paired_drop` finds its interval, for the report."""
    source: str = ""
    """Where the rows came from, for the report."""
    fingerprint: str = ""
    """sha256 of what was read."""
    agreement_tolerance: float = 0.05
    """Regression only: two predictions agree when they differ by at most this, in the unit of the label."""

    def __post_init__(self) -> None:
        rows = sum(len(batch["input_ids"]) for batch in self.batches)
        if rows != len(self.labels) or rows == 0:
            raise UsageError(
                f"{self.task} {self.split}: batches hold {rows} rows, labels {len(self.labels)}; "
                "both must be the same number, at least one"
            )
        if self.order is not None and sorted(self.order.tolist()) != list(range(rows)):
            raise UsageError(f"{self.task} {self.split}: order must be a permutation of 0..{rows - 1}")

    @property
    def n_rows(self) -> int:
        """Number of rows."""
        return len(self.labels)

    @property
    def reader(self) -> OutputKind:
        """What reads the outputs."""
        return get_kind(self.kind)

    @property
    def n_items(self) -> int:
        """Number of what reports count: rows, or what several rows belong to."""
        return self.n_rows if self.items is None else len(self.items)

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens of each row in file order, int64 [n]."""
        found = np.empty(self.n_rows, np.int64)
        found[self.positions] = np.concatenate(
            [
                np.asarray(batch.get("attention_mask", np.ones_like(batch["input_ids"]))).sum(axis=1)
                for batch in self.batches
            ]
        )
        return found

    @property
    def positions(self) -> npt.NDArray[np.int64]:
        """Row of the data file of each row of the concatenated batches, int64 [n]."""
        return np.arange(self.n_rows, dtype=np.int64) if self.order is None else self.order


@dataclass(frozen=True, slots=True)
class Evaluated:
    """What one engine said about the rows of a split, or a part of them."""

    joined: Float32Array
    """float32 [m, ...], see `OutputKind.join`."""
    positions: npt.NDArray[np.int64]
    """int64 [m], row of the data file of each, ascending."""
    decoded: Any
    """What the kind makes of `joined`."""
    settings: Mapping[str, float]
    """How it was decoded, see `OutputKind.decode`."""


@dataclass(frozen=True, slots=True)
class MetricValue:
    """One metric of one engine on one split."""

    metric: str
    """Name of the metric."""
    value: float
    """Fraction (accuracy, F1) or coefficient (Matthews, Pearson, Spearman)."""
    low: float
    """Lower end of the 95 % interval."""
    high: float
    """Upper end of the 95 % interval."""


def evaluate(
    runner: Runner,
    rows: EvalRows,
    *,
    max_rows: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Float32Array, npt.NDArray[np.int64]]:
    """Outputs for the rows, and which rows they are.

    Args:
        runner: a session, or any target's runner.
        rows: what to run.
        max_rows: stop after that many rows; the last batch is cut.
        progress: called with (rows done, rows in all) after each batch.
    Returns:
        float32 [m, ...] sorted by row (logits [m, C] of a classifier), and int64 [m] rows of the data file; m
        = n_rows without max_rows.
    Raises:
        ShapeError: the runner gave another number of rows than it was fed, or another shape than the kind's.
    """
    limit = rows.n_rows if max_rows is None else min(max_rows, rows.n_rows)
    parts: list[Float32Array] = []
    done = 0
    for batch in rows.batches:
        if done >= limit:
            break
        take = min(len(batch["input_ids"]), limit - done)
        feeds = (
            batch
            if take == len(batch["input_ids"])
            else {name: value[:take] for name, value in batch.items()}
        )
        parts.append(rows.reader.join(runner.run(feeds), feeds))
        done += take
        if progress is not None:
            progress(done, limit)
    positions = rows.positions[:done]
    inverse = np.argsort(positions, kind="stable")
    return stack_rows(parts)[inverse], positions[inverse]


def metric_values(rows: EvalRows, decoded: Any) -> list[MetricValue]:
    """Every metric of the task with its 95 % interval, the main metric first.

    Args:
        rows: the rows, all of which were run.
        decoded: see `OutputKind.decode`; logits float32 [n_rows, C] of a classifier.
    Raises:
        ShapeError: what was decoded does not fit the rows or their labels.
    """
    rows.reader.check(rows, decoded)
    values = rows.metrics(decoded, rows.labels)
    if rows.main_metric not in values:
        raise UsageError(
            f"{rows.task} has no metric '{rows.main_metric}'; known: {', '.join(sorted(values))}"
        )
    names = [rows.main_metric, *(name for name in values if name != rows.main_metric)]
    found = []
    for name in names:
        low, high = rows.interval(name, decoded, rows.labels)
        found.append(MetricValue(name, float(values[name]), float(low), float(high)))
    return found
