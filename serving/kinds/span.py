"""Question answering: start and end logits [B, S] of windows, one answer a question.

An answer is the span of context tokens with the largest start logit + end logit, its start among the `N_BEST`
largest start logits of the context, its end among those of the ends, of at most `MAX_ANSWER` tokens. Where a
question may have no answer, the empty one has the start logit + end logit of the first token ([CLS]), the
least of all windows, and is given when it exceeds the best span by more than a threshold. Source: BERT's
run_squad.py (Devlin et al. 2019), without its rule of the "maximal context" of a token that stands in several
windows: the largest sum counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from qexport.errors import DataError, ShapeError
from qexport.serving.kinds.base import Agreement, Float32Array, Int64Array, OutputKind
from qexport.serving.kinds.windows import Window, cut_windows

if TYPE_CHECKING:
    from qexport.serving.evaluate import EvalRows
    from qexport.serving.session import Session

__all__ = [
    "MAX_ANSWER",
    "NULL_THRESHOLD",
    "N_BEST",
    "SPAN",
    "Answer",
    "Answers",
    "Questions",
    "Span",
    "answer",
]

MAX_ANSWER = 30
"""Tokens of the longest answer."""

N_BEST = 20
"""Start and end logits of a window that are looked at."""

NULL_THRESHOLD = "null_threshold"
"""Setting: how much more than the best span the empty answer must have to be given; a model that has the
setting may give no answer."""

_CHUNK = 512  # windows searched at once: 512 * 384 float64 numbers a step


@dataclass(frozen=True, slots=True, kw_only=True)
class Questions:
    """What windows belong to: which question each is of, and where its tokens stand in the context."""

    contexts: Sequence[str]
    """Context of each question."""
    owner: Int64Array
    """int64 [n]: question of each window, ascending."""
    offsets: Sequence[npt.NDArray[np.int32]]
    """int32 [S, 2] of each window, see `Window.offsets`."""
    may_be_empty: bool = False
    """Whether the task has questions without an answer."""

    def __len__(self) -> int:
        return len(self.contexts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """One answer to each of k questions."""

    items: Int64Array
    """int64 [k], number of each question."""
    texts: list[str]
    """The answer; "" for none."""
    begin: Int64Array
    """int64 [k], first character in the context; -1 without an answer."""
    end: Int64Array
    """int64 [k], the one after the last; -1 without an answer."""
    score: npt.NDArray[np.float64]
    """float64 [k]: start logit + end logit of the best span; -inf where no span was found."""
    empty_score: npt.NDArray[np.float64]
    """float64 [k]: the same of the empty answer."""
    window: Int64Array
    """int64 [k], row among those given to `decode` that the best span is of."""
    tokens: Int64Array
    """int64 [k, 2], first and last token of the best span in its window."""
    owners: Int64Array
    """int64 [m]: question of each row given to `decode`."""

    @property
    def empty_margin(self) -> npt.NDArray[np.float64]:
        """float64 [k]: by how much the empty answer exceeds the best span."""
        return self.empty_score - np.where(np.isfinite(self.score), self.score, -1e9)


@dataclass(frozen=True, slots=True)
class Answer:
    """What the model says about one question."""

    text: str
    """As it stands in the context; "" where the model finds no answer."""
    score: float
    """Probability of its first token times that of its last, among the tokens of the context and [CLS]."""
    start: int | None
    """First character in the context; None without an answer."""
    end: int | None
    """The one after its last character."""


class Span(OutputKind):
    """A span of the context for each question."""

    name = "span"
    outputs = ("start_logits", "end_logits")
    axes = "[batch, sequence]"
    ranks = 2
    title = "question answering"
    use = "call answer(question, context), or qexport predict --question --context"
    item = "question"

    def join(
        self, named: Mapping[str, npt.NDArray[Any]], batch: Mapping[str, npt.NDArray[Any]]
    ) -> Float32Array:
        """Start and end logits side by side, float32 [B, S, 2], 0 at padding; see the base class."""
        shape = np.shape(batch["input_ids"])
        sides = [np.asarray(named[name], dtype=np.float32) for name in self.outputs]
        for name, side in zip(self.outputs, sides, strict=True):
            if side.shape != shape:
                raise ShapeError(
                    f"{name} must have the shape {list(shape)} of input_ids, got {list(side.shape)}"
                )
        joined = np.stack(sides, axis=-1)
        if "attention_mask" in batch:
            joined[np.asarray(batch["attention_mask"]) == 0] = 0.0
        return joined

    def decode(
        self, items: Questions, joined: Float32Array, positions: Int64Array, settings: Mapping[str, float]
    ) -> Answers:
        """The answers to the questions all of whose windows were run; see the base class."""
        owners = items.owner[positions]
        best, begin, end, tokens, empty = _search(joined, [items.offsets[row] for row in positions])
        wanted = np.bincount(items.owner, minlength=len(items))
        found = np.bincount(owners, minlength=len(items))
        numbers = np.flatnonzero((found == wanted) & (found > 0))
        kept = np.isin(owners, numbers)
        rows = np.flatnonzero(kept)
        # The best window of each question: sorted by question, then by falling score.
        order = rows[np.lexsort((rows, -best[rows], owners[rows]))]
        window = order[np.searchsorted(owners[order], numbers)]
        starts = np.searchsorted(owners[rows], numbers)
        empty_score = np.minimum.reduceat(empty[rows], starts) if len(rows) else np.zeros(0)
        score = best[window]
        refuse = ~np.isfinite(score)
        if items.may_be_empty:
            refuse |= empty_score - np.where(refuse, 0.0, score) > settings.get(NULL_THRESHOLD, 0.0)
        first = np.where(refuse, -1, begin[window])
        last = np.where(refuse, -1, end[window])
        texts = [
            "" if a < 0 else items.contexts[number][a:b]
            for number, a, b in zip(numbers.tolist(), first.tolist(), last.tolist(), strict=True)
        ]
        return Answers(
            items=numbers, texts=texts, begin=first, end=last, score=score, empty_score=empty_score,
            window=window, tokens=tokens[window], owners=owners,
        )  # fmt: skip

    def check(self, rows: EvalRows, decoded: Answers) -> None:
        """An answer to every question; see the base class."""
        if len(decoded.items) != rows.n_items:
            raise ShapeError(
                f"{rows.task} {rows.split} has {rows.n_items} questions, {len(decoded.items)} are answered; "
                "run every window of every question"
            )

    def same_rows(self, ours: Float32Array, theirs: Float32Array) -> npt.NDArray[np.bool_]:
        """Rows with the same largest start logit and the same largest end logit, bool [m]."""
        return np.asarray((ours.argmax(axis=1) == theirs.argmax(axis=1)).all(axis=-1))

    def agreement(self, rows: EvalRows, ours: Answers, theirs: Answers, positions: Int64Array) -> Agreement:
        """The same answer text, or both none; the margin is that of the reference's score over no answer."""
        zeros = np.zeros(len(ours.items))
        same = np.array([a == b for a, b in zip(ours.texts, theirs.texts, strict=True)], dtype=bool)
        finite = np.isfinite(ours.score) & np.isfinite(theirs.score)
        return Agreement(
            items=ours.items, same=same & finite, ours=zeros, theirs=zeros,
            margin=np.where(finite, np.abs(theirs.empty_margin), 0.0),
            ours_text=ours.texts, theirs_text=theirs.texts, owners=ours.owners,
        )  # fmt: skip


def _search(
    joined: Float32Array, offsets: Sequence[npt.NDArray[np.int32]]
) -> tuple[npt.NDArray[np.float64], Int64Array, Int64Array, Int64Array, npt.NDArray[np.float64]]:
    """Best span of each window.

    Args:
        joined: float32 [m, S, 2].
        offsets: int32 [s, 2] of each window, s <= S.
    Returns:
        score float64 [m] (-inf where there is none), first and end character int64 [m], first and last token
        int64 [m, 2], score of [CLS] float64 [m]. A logit that is not finite is none.
    """
    m, width = joined.shape[:2]
    score = np.full(m, -np.inf)
    begin, end = np.full(m, -1, np.int64), np.full(m, -1, np.int64)
    tokens = np.zeros((m, 2), np.int64)
    for at in range(0, m, _CHUNK):
        rows = slice(at, min(at + _CHUNK, m))
        inside = np.zeros((rows.stop - at, width), bool)
        for index, places in enumerate(offsets[rows]):
            inside[index, : len(places)] = places[:, 0] >= 0
        logits = joined[rows].astype(np.float64)
        logits = np.where(np.isfinite(logits), logits, -np.inf)
        first, last = (_largest(logits[..., side], inside) for side in (0, 1))
        best = np.full(len(inside), -np.inf)
        start = np.zeros(len(inside), np.int64)
        stop = np.zeros(len(inside), np.int64)
        for step in range(min(MAX_ANSWER, width)):
            sums = first[:, : width - step] + last[:, step:]
            place = sums.argmax(axis=1)
            value = sums[np.arange(len(sums)), place]
            better = value > best
            best = np.where(better, value, best)
            start, stop = np.where(better, place, start), np.where(better, place + step, stop)
        score[rows], tokens[rows, 0], tokens[rows, 1] = best, start, stop
        for index in np.flatnonzero(np.isfinite(best)).tolist():
            places = offsets[at + index]
            begin[at + index], end[at + index] = places[start[index], 0], places[stop[index], 1]
    return score, begin, end, tokens, joined[:, 0].astype(np.float64).sum(axis=-1)


def _largest(logits: npt.NDArray[np.float64], inside: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """The `N_BEST` largest of each row that stand in the context, the others -inf; [m, S]."""
    logits = np.where(inside, logits, -np.inf)
    if logits.shape[1] <= N_BEST:
        return logits
    least = np.partition(logits, -N_BEST, axis=1)[:, -N_BEST, None]
    return np.where(logits >= least, logits, -np.inf)


def answer(session: Session, question: str, context: str) -> Answer:
    """Find the answer to a question in a text; what `Session.answer` calls.

    Args:
        session: an exported question answering model.
        question: one question.
        context: the text; longer than the model's window it is read in parts.
    Raises:
        DataError: a question or context without text.
        UsageError: a question that leaves no room for its context.
    """
    for name, text in (("question", question), ("context", context)):
        if not text.strip():
            raise DataError(
                f"the {name} is empty; give the text as --{name}, or to answer(question, context)"
            )
    settings = session.decoding
    windows = next(
        cut_windows(
            session.tokenizer, [question], [context], max_length=session.max_length,
            max_question=session.max_length,
        )
    )  # fmt: skip
    joined = np.zeros((len(windows), max(len(window.ids) for window in windows), 2), np.float32)
    for start in range(0, len(windows), session.batch_size):
        part = windows[start : start + session.batch_size]
        batch = _padded(part, int(session.config.get("pad_token_id") or 0))
        found = session.kind.join(session.run(batch), batch)
        joined[start : start + len(part), : found.shape[1]] = found
    items = Questions(
        contexts=[context], owner=np.zeros(len(windows), np.int64),
        offsets=[window.offsets for window in windows], may_be_empty=NULL_THRESHOLD in settings,
    )  # fmt: skip
    found_answers = SPAN.decode(items, joined, np.arange(len(windows), dtype=np.int64), settings)
    text = found_answers.texts[0]
    row = int(found_answers.window[0])
    first, last = found_answers.tokens[0].tolist() if text else (0, 0)
    inside = windows[row].offsets[:, 0] >= 0
    inside[0] = True
    ends = joined[row, : len(inside)]
    score = _softmax(ends[:, 0], inside)[first] * _softmax(ends[:, 1], inside)[last]
    if not text:
        return Answer("", float(score), None, None)
    return Answer(text, float(score), int(found_answers.begin[0]), int(found_answers.end[0]))


def _softmax(logits: Float32Array, kept: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """Softmax over the kept tokens, [S]; 0 elsewhere."""
    values = np.where(kept, np.exp(logits.astype(np.float64) - logits[kept].max()), 0.0)
    return np.asarray(values / values.sum())


def _padded(windows: Sequence[Window], pad_id: int) -> dict[str, Int64Array]:
    """The windows as one batch, int64 [B, S] each."""
    shape = (len(windows), max(len(window.ids) for window in windows))
    batch = {name: np.zeros(shape, np.int64) for name in ("attention_mask", "token_type_ids")}
    batch["input_ids"] = np.full(shape, pad_id, np.int64)
    for index, window in enumerate(windows):
        length = len(window.ids)
        batch["input_ids"][index, :length] = window.ids
        batch["attention_mask"][index, :length] = 1
        if window.types is not None:
            batch["token_type_ids"][index, :length] = window.types
    return batch


SPAN = Span()
