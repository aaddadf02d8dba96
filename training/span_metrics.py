"""Exact match and F1 of question answering, as the evaluation scripts of SQuAD 1.1 and 2.0 define them.

An answer is compared after normalisation: lower case, no punctuation, no articles, single blanks. Of several
right answers the best counts. SQuAD 2.0 differs in what has no tokens left: there it matches only what has
none either, and a right answer without tokens is ignored.

Intervals are percentile bootstraps (Efron 1979) over articles where the questions are of at least
`LEAST_ARTICLES`, since questions about one text stand and fall together, else over questions.
"""

from __future__ import annotations

import re
import string
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from qexport.errors import UnknownNameError, UsageError
from qexport.serving.kinds.span import NULL_THRESHOLD, Answers
from qexport.training.metrics import PairedDrop, check_resampling, row_counts
from qexport.training.spans import SpanSplit
from qexport.training.tasks import Task

__all__ = ["LEAST_ARTICLES", "SpanScores", "best_threshold", "exact_match", "f1_score", "normalise_answer"]

LEAST_ARTICLES = 10
"""Articles from which on the bootstrap draws articles."""

Float64 = npt.NDArray[np.float64]

_ARTICLES = re.compile(r"\b(a|an|the)\b", re.UNICODE)
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalise_answer(text: str) -> str:
    """Lower case, no punctuation, no articles, single blanks, in this order."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(prediction: str, answers: Sequence[str]) -> float:
    """1 where the prediction is one of the answers after normalisation, else 0."""
    said = normalise_answer(prediction)
    return float(any(said == normalise_answer(answer) for answer in answers))


def f1_score(prediction: str, answers: Sequence[str], *, empty_matches: bool) -> float:
    """Harmonic mean of precision and recall of the tokens, of the best answer.

    Args:
        prediction: what was said.
        answers: what is right; at least one.
        empty_matches: SQuAD 2.0: two texts without tokens match; of 1.1 they do not.
    """
    return max(_f1(normalise_answer(prediction).split(), normalise_answer(answer).split(), empty_matches)
               for answer in answers)  # fmt: skip


def _f1(said: list[str], right: list[str], empty_matches: bool) -> float:
    if empty_matches and not (said and right):
        return float(said == right)
    shared = sum((Counter(said) & Counter(right)).values())
    if shared == 0:
        return 0.0
    precision, recall = shared / len(said), shared / len(right)
    return 2 * precision * recall / (precision + recall)


@dataclass(frozen=True, slots=True)
class _Scored:
    """Scores of each question, float64 [k]."""

    exact: Float64
    f1: Float64


class SpanScores:
    """The metrics of the questions of one split.

    Args:
        task: names the metrics.
        split: the questions.
    """

    def __init__(self, task: Task, split: SpanSplit) -> None:
        self.task = task
        self.may_be_empty = split.may_be_empty
        self.right = [self._right([text for text, _ in answers]) for answers in split.answers]
        self.has_answer = np.array([found != [""] for found in self.right])
        clusters, self.cluster = np.unique(np.array(split.titles), return_inverse=True)
        if len(clusters) < LEAST_ARTICLES:
            clusters, self.cluster = np.arange(len(split)), np.arange(len(split))
        self.n_clusters = len(clusters)
        drawn = "questions" if self.n_clusters == len(split) else "articles"
        self._kept: deque[tuple[Sequence[str], _Scored]] = deque(maxlen=8)
        self.drop_method = f"paired bootstrap of {self.n_clusters:,} {drawn}"

    def _right(self, texts: list[str]) -> list[str]:
        """Right answers as the official script takes them; [""] where none is."""
        kept = [text for text in texts if normalise_answer(text)] if self.may_be_empty else texts
        return kept or [""]

    def scored(self, texts: Sequence[str]) -> _Scored:
        """Scores of one answer to each question, in the order of the split; the last few are kept."""
        for known, found in self._kept:
            if known is texts:
                return found
        pairs = list(zip(texts, self.right, strict=True))
        found = _Scored(
            np.array([exact_match(said, right) for said, right in pairs]),
            np.array([f1_score(said, right, empty_matches=self.may_be_empty) for said, right in pairs]),
        )
        self._kept.append((texts, found))
        return found

    def _column(self, metric: str, scored: _Scored) -> tuple[Float64, npt.NDArray[np.bool_]]:
        """What a metric is the mean of, and over which questions."""
        if metric not in self.task.metrics:
            raise UnknownNameError("question answering metric", metric, self.task.metrics)
        if not len(self.right):
            raise UsageError(f"metrics of task {self.task.name} need at least one question, got none")
        values = scored.exact if metric.startswith("exact") or metric.endswith("exact") else scored.f1
        if metric.startswith("has_ans"):
            return values, self.has_answer
        return values, ~self.has_answer if metric.startswith("no_ans") else np.ones(len(values), bool)

    def metrics(self, decoded: Answers, labels: Any = None) -> dict[str, float]:
        """Every metric of the task, fractions; one over no questions is 0."""
        scored = self.scored(decoded.texts)
        found = {}
        for metric in self.task.metrics:
            values, kept = self._column(metric, scored)
            found[metric] = float(values[kept].mean()) if kept.any() else 0.0
        return found

    def _resampled(self, metric: str, models: Sequence[Answers], resamples: int, seed: int) -> Float64:
        """Values of the metric on the same drawn clusters, float64 [models, resamples]."""
        sums = []
        for decoded in models:
            values, kept = self._column(metric, self.scored(decoded.texts))
            size = np.bincount(self.cluster, weights=kept.astype(np.float64), minlength=self.n_clusters)
            sums.append(np.bincount(self.cluster, weights=values * kept, minlength=self.n_clusters))
        blocks = []
        for counts in row_counts(self.n_clusters, resamples, np.random.default_rng(seed)):
            drawn = np.maximum(counts @ size, 1e-12)
            blocks.append(np.stack([counts @ total / drawn for total in sums]))
        return np.concatenate(blocks, axis=1)

    def interval(
        self, metric: str, decoded: Answers, labels: Any = None, *, level: float = 0.95, seed: int = 0,
        resamples: int = 2000,
    ) -> tuple[float, float]:  # fmt: skip
        """Percentile bootstrap interval of one metric, fractions.

        Raises:
            UnknownNameError: not a metric of the task.
            UsageError: a level outside 0..1 or fewer than 100 resamples.
        """
        check_resampling(level, resamples)
        values = self._resampled(metric, [decoded], resamples, seed)[0]
        low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
        return float(low), float(high)

    def paired_drop(
        self, metric: str, a: Answers, b: Answers, labels: Any = None, *, level: float = 0.95, seed: int = 0,
        resamples: int = 2000,
    ) -> PairedDrop:  # fmt: skip
        """Loss from answers a to answers b with its paired bootstrap interval; see `interval`."""
        check_resampling(level, resamples)
        first, second = self._resampled(metric, [a, b], resamples, seed)
        low, high = np.quantile(first - second, [(1 - level) / 2, (1 + level) / 2])
        values = [self.metrics(decoded)[metric] for decoded in (a, b)]
        return PairedDrop(
            metric=metric, drop=values[0] - values[1], low=float(low), high=float(high), level=level,
            rows=len(self.right),
        )  # fmt: skip


def best_threshold(scores: SpanScores, spans: Answers) -> Mapping[str, float]:
    """The threshold of the empty answer with the largest F1.

    As `find_best_thresh` of the evaluation script of SQuAD 2.0, but placed in the middle between the two
    margins it parts, and on training questions.

    Args:
        scores: the questions, some of which have no answer.
        spans: the best span of each, decoded without a threshold.
    Returns:
        the setting that `decode` takes.
    """
    found = scores.scored(spans.texts)
    empty = np.where(scores.has_answer, 0.0, 1.0)  # F1 of the empty answer
    order = np.argsort(spans.empty_margin, kind="stable")
    margins = spans.empty_margin[order]
    # Answered are the questions with a margin up to the threshold: the first i in this order.
    gain = np.concatenate(([0.0], np.cumsum((found.f1 - empty)[order])))
    cuts = np.concatenate(([margins[0] - 1.0], (margins[1:] + margins[:-1]) / 2, [margins[-1] + 1.0]))
    distinct = np.concatenate(([True], margins[1:] > margins[:-1], [True]))
    best = int(np.where(distinct, gain, -np.inf).argmax())
    return {NULL_THRESHOLD: float(np.clip(cuts[best], -1e6, 1e6))}
