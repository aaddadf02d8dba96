"""Token classification: logits [B, S, C], one tag a word, read from the word's first piece."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from qexport.errors import ShapeError
from qexport.serving.entities import Entity, entities_of, split_words
from qexport.serving.kinds.base import (
    Agreement,
    Float32Array,
    Int64Array,
    OutputKind,
    stack_rows,
)
from qexport.serving.word_pieces import EncodedWords, encode_words, padded

if TYPE_CHECKING:
    from qexport.serving.evaluate import EvalRows
    from qexport.serving.session import Session

__all__ = ["TOKENS", "TokenItems", "Tokens", "WordTags", "find_entities"]


@dataclass(frozen=True, slots=True)
class TokenItems:
    """Where every word of some sentences is judged; W words, counted over all sentences."""

    windows: Int64Array
    """int64 [judged], row of the data that a word is judged in."""
    pieces: Int64Array
    """int64 [judged], token of that row."""
    words: Int64Array
    """int64 [judged], the word."""
    counts: Int64Array
    """int64 [sentences], words of each sentence; W together."""
    labels: tuple[str, ...]
    """Tag names in id order."""

    def __len__(self) -> int:
        return int(self.counts.sum())

    @classmethod
    def of(cls, encoded: EncodedWords, labels: Sequence[str]) -> TokenItems:
        """Those of encoded sentences."""
        return cls(*encoded.places(), encoded.counts, tuple(labels))

    def sentences(self, ids: Int64Array) -> list[list[str]]:
        """Tag names of the words of each sentence.

        Args:
            ids: int64 [W], tag ids; below 0 is a word that no piece stands for, which is O or the first tag.
        """
        outside = self.labels.index("O") if "O" in self.labels else 0
        names = [self.labels[one] for one in np.where(ids < 0, outside, ids)]
        ends = np.cumsum(self.counts)
        return [names[end - count : end] for end, count in zip(ends, self.counts, strict=True)]


@dataclass(frozen=True, slots=True)
class WordTags:
    """What a model says about W words."""

    ids: Int64Array
    """int64 [W], tag of each word; -1 where no piece stands for it, or its window was not run."""
    margins: Float32Array
    """float32 [W], best logit minus second best; 0 where there is none, NaN where a logit is not finite."""
    probabilities: Float32Array
    """float32 [W], softmax probability of the tag; 0 where there is none."""


class Tokens(OutputKind):
    """A tag for each word."""

    name = "tokens"
    title = "token classification"
    use = "call entities(text)"
    outputs = ("logits",)
    axes = "[batch, sequence, labels]"
    ranks = 3
    item = "word"

    def join(
        self, named: Mapping[str, npt.NDArray[Any]], batch: Mapping[str, npt.NDArray[Any]]
    ) -> Float32Array:
        """The logits, float32 [B, S, C], 0 on padding; see the base class."""
        logits = np.asarray(named["logits"], dtype=np.float32)
        shape = np.shape(batch["input_ids"])
        if logits.ndim != 3 or logits.shape[:2] != shape:
            raise ShapeError(
                f"logits must be [{shape[0]}, {shape[1]}, labels] for this batch, got {list(logits.shape)}"
            )
        if "attention_mask" not in batch:
            return logits
        return np.where(np.asarray(batch["attention_mask"])[:, :, None] != 0, logits, np.float32(0))

    def decode(
        self, items: TokenItems, joined: Float32Array, positions: Int64Array, settings: Mapping[str, float]
    ) -> WordTags:
        """The tag of each word; see the base class."""
        place = np.full(int(max(items.windows.max(initial=-1), positions.max(initial=-1))) + 1, -1)
        place[positions] = np.arange(len(positions))
        run = place[items.windows] >= 0
        logits = joined[place[items.windows[run]], items.pieces[run]]
        ids = np.full(len(items), -1, dtype=np.int64)
        margins, probabilities = np.zeros(len(items), np.float32), np.zeros(len(items), np.float32)
        words = items.words[run]
        if len(words):
            ordered = np.sort(logits, axis=-1)
            ids[words] = logits.argmax(axis=-1)
            margins[words] = ordered[:, -1] - ordered[:, -2] if ordered.shape[1] > 1 else 0.0
            probabilities[words] = 1.0 / np.exp(logits - ordered[:, -1:]).sum(axis=-1)
            margins[words] += np.where(np.isfinite(logits).all(axis=-1), 0.0, np.nan)
        return WordTags(ids, margins, probabilities)

    def check(self, rows: EvalRows, decoded: WordTags) -> None:
        """A tag for every word, and a logit for every tag; see the base class."""
        if len(decoded.ids) != len(rows.items) or int(decoded.ids.max(initial=0)) >= len(rows.items.labels):
            raise ShapeError(
                f"{rows.task} {rows.split} has {len(rows.items.labels)} tags, the model has more; verify it "
                "on the task that it was trained for"
            )

    def agreement(self, rows: EvalRows, ours: WordTags, theirs: WordTags, positions: Int64Array) -> Agreement:
        """The same tag; words that neither ran are left out."""
        words = np.flatnonzero((ours.ids >= 0) & (theirs.ids >= 0))
        finite = np.isfinite(ours.margins[words]) & np.isfinite(theirs.margins[words])
        names = rows.items.labels
        first = np.zeros(int(rows.items.windows.max(initial=0)) + 1, dtype=np.int64)
        first[rows.items.windows[::-1]] = rows.items.words[::-1]
        return Agreement(
            items=words, same=(ours.ids[words] == theirs.ids[words]) & finite,
            ours=ours.ids[words].astype(np.float64), theirs=theirs.ids[words].astype(np.float64),
            margin=np.nan_to_num(theirs.margins[words].astype(np.float64)),
            ours_text=[names[one] for one in ours.ids[words]],
            theirs_text=[names[one] for one in theirs.ids[words]],
            owners=first[np.minimum(positions, len(first) - 1)],
        )  # fmt: skip


TOKENS = Tokens()


def find_entities(session: Session, texts: Sequence[str]) -> list[list[Entity]]:
    """The entities of each text; see `Session.entities`."""
    spans = [split_words(text) for text in texts]
    words = [[text[start:end] for start, end in found] for text, found in zip(texts, spans, strict=True)]
    encoded = encode_words(words, session.tokenizer, session.max_length)
    items = TokenItems.of(encoded, session.labels)
    order = np.argsort(encoded.lengths(), kind="stable")
    parts, places = [], []
    for start in range(0, len(order), session.batch_size):
        rows = order[start : start + session.batch_size]
        batch = padded(encoded, rows, pad_id=int(session.config.get("pad_token_id") or 0))
        parts.append(TOKENS.join(session.run(batch), batch))
        places.append(rows)
    if not len(items):
        return [[] for _ in texts]
    positions = np.concatenate(places)
    back = np.argsort(positions, kind="stable")
    tags = TOKENS.decode(items, stack_rows(parts)[back], positions[back], {})
    ends = np.cumsum(encoded.counts)
    return [
        entities_of(text, found, names, tags.probabilities[end - len(found) : end])
        for text, found, names, end in zip(texts, spans, items.sentences(tags.ids), ends, strict=True)
    ]
