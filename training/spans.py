"""SpanSplit: questions with their contexts and answers, and the windows that a model reads; no torch."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from qexport.serving.kinds.span import Questions
from qexport.serving.kinds.windows import STRIDE, Window, cut_windows
from qexport.training.encoded import Encoded
from qexport.training.rows import Split

__all__ = ["EncodedSpans", "SpanSplit", "encode_spans"]

Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class SpanSplit(Split):
    """Questions (`texts`) about contexts (`pairs`); `labels` is int64 [n], 1 where there is an answer."""

    ids: list[str]
    """Id of each question."""
    answers: list[list[tuple[str, int]]]
    """Right answers of each question: text, and first character in the context; [] where there is none."""
    titles: list[str]
    """Article of each question."""
    may_be_empty: bool
    """Whether the task has questions without an answer."""

    @property
    def contexts(self) -> list[str]:
        """`pairs`, which these rows always have."""
        assert self.pairs is not None
        return self.pairs

    @property
    def digest(self) -> str:
        """sha256 of texts, contexts and answers in order."""
        content = hashlib.sha256(super().digest.encode())
        for answers in self.answers:
            content.update(repr(answers).encode("utf-8"))
        return content.hexdigest()

    def take(self, rows: Int64) -> SpanSplit:
        """Return the given rows, in the given order."""
        return SpanSplit(
            self.name,
            [self.texts[row] for row in rows],
            [self.contexts[row] for row in rows],
            self.labels[rows],
            [self.ids[row] for row in rows],
            [self.answers[row] for row in rows],
            [self.titles[row] for row in rows],
            self.may_be_empty,
        )

    def named(self, name: str) -> SpanSplit:
        """The same rows under another name."""
        return SpanSplit(
            name, self.texts, self.pairs, self.labels, self.ids, self.answers, self.titles, self.may_be_empty
        )


@dataclass(frozen=True)
class EncodedSpans(Encoded):
    """Windows; `labels` is int64 [n, 2], first and last token of the answer, 0 where it is not inside."""

    questions: Questions | None
    """What windows belong to; None for rows that are only trained on."""


def encode_spans(
    split: SpanSplit, tokenizer: Tokenizer, max_length: int, *, stride: int = STRIDE, judged: bool = True
) -> EncodedSpans:
    """Cut the rows of a split into windows.

    The first answer of a question is the one that is learned. A window that does not hold all of it, and
    every window of a question without an answer, points at its first token ([CLS]).

    Args:
        split: the rows.
        tokenizer: is not changed.
        max_length: tokens of a window.
        stride: see `qexport.serving.kinds.windows.STRIDE`.
        judged: keep what is needed to find answers in outputs.
    Raises:
        UsageError: `max_length` leaves no room for the context of a question.
    """
    ids: list[Int32] = []
    types: list[Int32] = []
    places: list[Int32] = []
    labels: list[tuple[int, int]] = []
    owner: list[int] = []
    groups = cut_windows(tokenizer, split.texts, split.contexts, max_length=max_length, stride=stride)
    for row, windows in enumerate(groups):
        spans = split.answers[row][:1]
        for window in windows:
            ids.append(window.ids)
            if window.types is not None:
                types.append(window.types)
            if judged:
                places.append(window.offsets)
            labels.append(next(_located(window, spans), (0, 0)))
            owner.append(row)
    questions = None
    if judged:
        questions = Questions(
            contexts=split.contexts, owner=np.array(owner, np.int64), offsets=places,
            may_be_empty=split.may_be_empty,
        )  # fmt: skip
    found: npt.NDArray[Any] = np.array(labels, np.int64).reshape(-1, 2)
    return EncodedSpans(ids, types or None, found, questions)


def _located(window: Window, answers: list[tuple[str, int]]) -> Iterator[tuple[int, int]]:
    """First and last token of each answer that stands in the window as a whole."""
    begins, ends = window.offsets[:, 0], window.offsets[:, 1]
    inside = np.flatnonzero(begins >= 0)
    for text, start in answers:
        stop = start + len(text)
        if not len(inside) or start < begins[inside[0]] or stop > ends[inside[-1]]:
            continue
        first = inside[np.searchsorted(begins[inside], start, side="right") - 1]
        last = inside[np.searchsorted(ends[inside], stop)]
        yield int(first), int(last)
