"""Judge: what the rows of one split count as right, for any engine that was run on them; without torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from qexport.serving.kinds import get_kind
from qexport.serving.kinds.span import NULL_THRESHOLD
from qexport.serving.kinds.tokens import WordTags
from qexport.serving.neighbours import unit_rows
from qexport.training import metrics
from qexport.training.data import Encoded
from qexport.training.entity_metrics import (
    entity_counts,
    entity_interval,
    entity_paired_drop,
    entity_scores,
)
from qexport.training.metrics import PairedDrop
from qexport.training.rows import Split
from qexport.training.sentences import ScoredPairs
from qexport.training.span_metrics import SpanScores, best_threshold
from qexport.training.spans import EncodedSpans, SpanSplit
from qexport.training.tagged import TaggedEncoded
from qexport.training.tasks import Task

__all__ = ["Judge", "Judged", "judge_of"]


class Judged(Protocol):
    """A paired drop, see `qexport.training.metrics.PairedDrop`."""

    @property
    def drop(self) -> float: ...
    @property
    def low(self) -> float: ...
    @property
    def high(self) -> float: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Judge:
    """The metric functions of one split's rows; "decoded" is what `OutputKind.decode` gives."""

    kind: str
    """See `Task.kind`."""
    labels: npt.NDArray[Any]
    """[n, ...], what is right for each row; handed to every function below."""
    items: Any
    """What the kind reads outputs with; None where a row speaks for itself."""
    texts: Sequence[str]
    """Text of each item, for people."""
    label_texts: Sequence[str] | None = None
    """What is right for each item, where that is a text."""
    metrics: Callable[[Any, Any], dict[str, float]]
    """(decoded, labels) -> metric -> fraction, in the task's order."""
    interval: Callable[[str, Any, Any], tuple[float, float]]
    """(metric, decoded, labels) -> 95 % interval."""
    paired_drop: Callable[[str, Any, Any, Any], Judged]
    """(metric, decoded_a, decoded_b, labels) -> metric(a) - metric(b)."""
    drop_method: str = "paired bootstrap"
    """How `paired_drop` finds its interval."""

    tune: Callable[[Any], Mapping[str, float]] | None = None
    """What chooses settings by held-out training rows: (what was decoded with `untuned`) -> settings."""
    untuned: Mapping[str, float] = field(default_factory=dict)
    """Settings under which nothing is refused."""

    def tuned(self, joined: npt.NDArray[np.float32]) -> Mapping[str, float]:
        """The settings that these rows choose; {} for a kind without settings."""
        return {} if self.tune is None else self.tune(self._decoded(joined, self.untuned))

    def score(self, joined: npt.NDArray[np.float32], settings: Mapping[str, float]) -> dict[str, float]:
        """Every metric of outputs for all rows.

        Args:
            joined: float32 [n, ...] in the order of the split, see `OutputKind.join`.
            settings: how they are decoded, see `OutputKind.decode`.
        """
        return self.metrics(self._decoded(joined, settings), self.labels)

    def _decoded(self, joined: npt.NDArray[np.float32], settings: Mapping[str, float]) -> Any:
        every = np.arange(len(joined), dtype=np.int64)
        return get_kind(self.kind).decode(self.items, joined, every, settings)


def judge_of(task: Task, split: Split, encoded: Encoded) -> Judge:
    """The judge of a split.

    Args:
        task: its kind and metrics.
        split: the rows.
        encoded: what `encode` made of them.
    """
    if isinstance(split, SpanSplit):
        assert isinstance(encoded, EncodedSpans)
        scores = SpanScores(task, split)
        rights = [" / ".join(dict.fromkeys(right for right, _ in found)) for found in split.answers]
        return Judge(
            kind=task.kind, labels=encoded.labels, items=encoded.questions, texts=split.texts,
            label_texts=rights, metrics=scores.metrics, interval=scores.interval,
            paired_drop=scores.paired_drop, drop_method=scores.drop_method,
            tune=partial(best_threshold, scores) if split.may_be_empty else None,
            untuned={NULL_THRESHOLD: math.inf},
        )  # fmt: skip
    if isinstance(encoded, TaggedEncoded):
        return _of_words(task, split, encoded)
    if isinstance(split, ScoredPairs):
        return _of_pairs(task, split, encoded)
    return Judge(
        kind=task.kind, labels=encoded.labels, items=None, texts=_shown(split),
        metrics=partial(metrics.compute_metrics, task), interval=partial(metrics.interval, task),
        paired_drop=partial(metrics.paired_drop, task),
    )  # fmt: skip


def _of_words(task: Task, split: Split, encoded: TaggedEncoded) -> Judge:
    """Entities of the sentences; decoded are the tags of words, a `WordTags`."""
    items = encoded.items
    truth = items.sentences(split.labels)

    def counts(decoded: WordTags) -> npt.NDArray[np.int64]:
        return entity_counts(truth, items.sentences(decoded.ids))

    def paired_drop(metric: str, a: WordTags, b: WordTags, _: Any) -> PairedDrop:
        return entity_paired_drop(counts(a), counts(b), metric)

    words = [(word, text) for tags, text in zip(truth, split.texts, strict=True) for word in tags]
    return Judge(
        kind=task.kind, labels=encoded.labels, items=items,
        texts=[text for _, text in words], label_texts=[tag for tag, _ in words],
        metrics=lambda decoded, _: entity_scores(counts(decoded)),
        interval=lambda metric, decoded, _: entity_interval(counts(decoded), metric),
        paired_drop=paired_drop, drop_method="paired bootstrap over sentences",
    )  # fmt: skip


def _of_pairs(task: Task, split: ScoredPairs, encoded: Encoded) -> Judge:
    """How the cosines of pairs rank against their scores; decoded are embeddings, float32 [sentences, D]."""
    places, scores = split.places, split.labels
    ranked = replace(task, kind="regression", labels=())

    def cosines(decoded: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
        rows = unit_rows(decoded).astype(np.float64)
        return np.asarray(np.einsum("nd,nd->n", rows[places[:, 0]], rows[places[:, 1]]), dtype=np.float64)

    return Judge(
        kind=task.kind, labels=np.zeros((len(encoded), 0)), items=None, texts=split.sentences,
        metrics=lambda decoded, _: metrics.compute_metrics(ranked, cosines(decoded), scores),
        interval=lambda metric, decoded, _: metrics.interval(ranked, metric, cosines(decoded), scores),
        paired_drop=lambda metric, a, b, _: metrics.paired_drop(
            ranked, metric, cosines(a), cosines(b), scores
        ),
        drop_method="paired bootstrap over pairs",
    )  # fmt: skip


def _shown(split: Split) -> Sequence[str]:
    if split.pairs is None:
        return split.texts
    return [f"{text} | {pair}" for text, pair in zip(split.texts, split.pairs, strict=True)]
