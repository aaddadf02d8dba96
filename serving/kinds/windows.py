"""Windows: long contexts cut into overlapping inputs of a question answering model, with character offsets.

As in BERT's run_squad.py (Devlin et al. 2019): [CLS] question [SEP] part of the context [SEP], the next part
begins `stride` tokens further on, a question is cut to 64 tokens. Where a window has room for fewer than
twice the stride, the step is half of that room, so that an answer at the end of one part is inside the next.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from qexport.errors import UsageError

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

__all__ = ["MAX_QUESTION", "STRIDE", "Frame", "Window", "cut_windows", "frame_of"]

Int32 = npt.NDArray[np.int32]

STRIDE = 128
"""Tokens from the start of one window to the start of the next."""

MAX_QUESTION = 64
"""Tokens kept of a question."""

_ROWS = 1024  # texts that are tokenised at once


@dataclass(frozen=True, slots=True)
class Frame:
    """The special tokens around a question and a context, with the token types of all parts."""

    before: tuple[int, ...]
    """[CLS]"""
    between: tuple[int, ...]
    """[SEP]; </s></s> of RoBERTa"""
    after: tuple[int, ...]
    """[SEP]"""
    types: tuple[int, int, int, int, int] | None
    """Token type of before, question, between, context, after; None where all are 0."""

    @property
    def special(self) -> int:
        """Number of special tokens."""
        return len(self.before) + len(self.between) + len(self.after)


@dataclass(frozen=True, slots=True)
class Window:
    """One input."""

    ids: Int32
    """int32 [S]."""
    types: Int32 | None
    """int32 [S]; None where all are 0."""
    offsets: Int32
    """int32 [S, 2]: first character of each token in the context, and the one after its last; -1 outside."""


def frame_of(tokenizer: Tokenizer) -> Frame:
    """What a tokenizer without padding puts around a pair of texts."""
    pair = tokenizer.encode("a", "a")
    parts: list[list[int]] = [[], [], []]  # special tokens before, between, after
    types: list[int] = [0] * 5
    place = 0
    for token, kind, sequence in zip(pair.ids, pair.type_ids, pair.sequence_ids, strict=True):
        if sequence is None:
            parts[place].append(token)
            types[2 * place] = kind
        else:
            place = sequence + 1
            types[2 * sequence + 1] = kind
    before, between, after = (tuple(part) for part in parts)
    return Frame(
        before, between, after, (types[0], types[1], types[2], types[3], types[4]) if any(types) else None
    )


def cut_windows(
    tokenizer: Tokenizer,
    questions: Sequence[str],
    contexts: Sequence[str],
    *,
    max_length: int,
    stride: int = STRIDE,
    max_question: int = MAX_QUESTION,
) -> Iterator[list[Window]]:
    """The windows of each question, in order; a context that follows itself is tokenised once.

    Args:
        tokenizer: is not changed.
        questions: texts.
        contexts: one for each question.
        max_length: tokens of a window, special tokens included.
        stride: see `STRIDE`.
        max_question: see `MAX_QUESTION`.
    Raises:
        UsageError: a question that leaves no room for its context.
    """
    plain = _plain(tokenizer)
    frame = frame_of(plain)
    texts: dict[str, tuple[Int32, Int32]] = {}
    for start in range(0, len(questions), _ROWS):
        block = questions[start : start + _ROWS]
        wanted = contexts[start : start + _ROWS]
        texts = {text: texts[text] for text in dict.fromkeys(wanted) if text in texts}
        missing = [text for text in dict.fromkeys(wanted) if text not in texts]
        for text, found in zip(missing, plain.encode_batch(missing, add_special_tokens=False), strict=True):
            texts[text] = _tokens(found)
        asked = plain.encode_batch(list(block), add_special_tokens=False)
        for question, found, context in zip(block, asked, wanted, strict=True):
            ids = np.array(found.ids[:max_question], np.int32)
            room = max_length - frame.special - len(ids)
            if room < 1:
                raise UsageError(
                    f"a question of {len(ids)} tokens leaves no room for its context in windows of "
                    f"{max_length} tokens; raise --max-length or shorten the question: {question[:60]!r}"
                )
            yield list(_windows(frame, ids, *texts[context], room, min(stride, max(1, room // 2))))


def _plain(tokenizer: Tokenizer) -> Tokenizer:
    from tokenizers import Tokenizer as Factory

    own = Factory.from_str(tokenizer.to_str())
    own.no_padding()
    own.no_truncation()
    return own


def _tokens(found: Encoding) -> tuple[Int32, Int32]:
    """Ids int32 [L] and character offsets int32 [L, 2]."""
    return np.array(found.ids, np.int32), np.array(found.offsets, np.int32).reshape(-1, 2)


def _windows(
    frame: Frame, question: Int32, ids: Int32, offsets: Int32, room: int, step: int
) -> Iterator[Window]:
    start = 0
    while True:
        part = ids[start : start + room]
        counts = [len(frame.before), len(question), len(frame.between), len(part), len(frame.after)]
        places = np.full((sum(counts), 2), -1, np.int32)
        first = sum(counts[:3])
        places[first : first + len(part)] = offsets[start : start + room]
        pieces: list[Any] = [frame.before, question, frame.between, part, frame.after]
        yield Window(
            np.concatenate([np.asarray(piece, np.int32) for piece in pieces]),
            None if frame.types is None else np.repeat(np.array(frame.types, np.int32), counts),
            places,
        )
        if start + room >= len(ids):
            return
        start += step
