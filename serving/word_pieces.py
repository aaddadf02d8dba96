"""EncodedWords: sentences of tagged words as windows of word pieces, and word tags read back from logits.

A sentence is tokenised with a blank between its words, so that a model sees what it saw in pre-training and
what it will see in use. A word is judged by its first piece (Devlin et al. 2019, section 5.3); other pieces
have the label `IGNORED`. A sentence with more pieces than fit becomes overlapping windows; each word is
judged in the window where the nearer end is farthest away ("max context", as BERT's SQuAD code does it).

Training reads its files with it too; nothing here needs torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from qexport.errors import UsageError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["IGNORED", "EncodedWords", "encode_words", "padded", "word_starts"]

IGNORED = -100
"""Label of pieces that are not judged; torch's cross-entropy leaves it out."""

_OVERLAP = 4  # a window shares one in so many of its pieces with the next one
_FAR = int(np.iinfo(np.int64).max)  # farther than any place in a text

Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class EncodedWords:
    """Windows of word pieces, unpadded, n of them."""

    input_ids: list[Int32]
    """int32 [length] of each window, special tokens included."""
    token_type_ids: list[Int32] | None
    """int32 [length] of each window; None where the tokenizer has one type only."""
    sentence: Int64
    """int64 [n]: sentence that a window is of, ascending."""
    words: list[Int32]
    """int32 [length] of each window: the word that a piece stands for, -1 where a piece is not judged."""
    counts: Int64
    """int64 [sentences]: words of each sentence."""

    def __len__(self) -> int:
        return len(self.input_ids)

    def lengths(self) -> Int64:
        """Pieces of each window, int64 [n]."""
        return np.array([len(ids) for ids in self.input_ids], dtype=np.int64)

    def labels(self, tags: Sequence[Int64]) -> list[Int64]:
        """Label of every piece, int64 [length] of each window, `IGNORED` where it is not judged.

        Args:
            tags: int64 [words] of each sentence.
        """
        found = []
        for sentence, words in zip(self.sentence, self.words, strict=True):
            labels = np.full(len(words), IGNORED, dtype=np.int64)
            judged = words >= 0
            labels[judged] = tags[sentence][words[judged]]
            found.append(labels)
        return found

    def places(self) -> tuple[Int64, Int64, Int64]:
        """Where each word is judged: window, piece in it, word over all sentences; int64 [judged] each.

        A word without a piece, such as one of control characters only, is not among them.
        """
        first = np.concatenate([[0], np.cumsum(self.counts)])
        windows, pieces, words = [], [], []
        for number, (sentence, judged) in enumerate(zip(self.sentence, self.words, strict=True)):
            where = np.flatnonzero(judged >= 0)
            windows.append(np.full(len(where), number, dtype=np.int64))
            pieces.append(where.astype(np.int64))
            words.append(first[sentence] + judged[where])
        nothing = [np.zeros(0, dtype=np.int64)]
        return (
            np.concatenate([*nothing, *windows]),
            np.concatenate([*nothing, *pieces]),
            np.concatenate([*nothing, *words]),
        )


def padded(encoded: EncodedWords, rows: Sequence[int] | Int64, *, pad_id: int) -> dict[str, Int64]:
    """A batch of windows, padded on the right; int64 [b, S] input_ids, attention_mask, token_type_ids.

    Args:
        encoded: the windows.
        rows: which of them, in order.
        pad_id: id of the padding token.
    """
    width = max((len(encoded.input_ids[row]) for row in rows), default=0)
    ids = np.full((len(rows), width), pad_id, dtype=np.int64)
    mask, types = np.zeros_like(ids), np.zeros_like(ids)
    for place, row in enumerate(rows):
        length = len(encoded.input_ids[row])
        ids[place, :length], mask[place, :length] = encoded.input_ids[row], 1
        if encoded.token_type_ids is not None:
            types[place, :length] = encoded.token_type_ids[row]
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}


def word_starts(words: Sequence[str]) -> Int64:
    """Place of each word's first character, and the end of the text plus a blank: int64 [words + 1]."""
    return np.cumsum([0, *(len(word) + 1 for word in words)], dtype=np.int64)


def encode_words(sentences: Sequence[Sequence[str]], tokenizer: Tokenizer, max_length: int) -> EncodedWords:
    """Cut sentences into windows of word pieces.

    Args:
        sentences: words of each.
        tokenizer: is not changed; its own truncation and padding are not used.
        max_length: pieces of a window, special ones included.
    Raises:
        UsageError: `max_length` leaves no room for a piece beside the special ones.
    """
    room = max_length - tokenizer.num_special_tokens_to_add(False)
    if room < 1:
        raise UsageError(
            f"the maximum length must be at least {max_length - room + 1} tokens, {max_length - room} of "
            f"them special, got {max_length}; raise --max-length"
        )
    own = type(tokenizer).from_str(tokenizer.to_str())
    own.no_padding()
    own.enable_truncation(max_length, stride=room // _OVERLAP)
    typed = 1 in own.encode("a", "b").type_ids
    ids: list[Int32] = []
    types: list[Int32] = []
    owners: list[int] = []
    judged: list[Int32] = []
    for number, encoding in enumerate(own.encode_batch([" ".join(words) for words in sentences])):
        windows = [encoding, *encoding.overflowing]
        starts = word_starts(sentences[number])
        for window, words in zip(windows, _judged(windows, starts), strict=True):
            ids.append(np.array(window.ids, dtype=np.int32))
            types.append(np.array(window.type_ids, dtype=np.int32))
            owners.append(number)
            judged.append(words)
    counts = np.array([len(words) for words in sentences], dtype=np.int64)
    return EncodedWords(ids, types if typed else None, np.array(owners, dtype=np.int64), judged, counts)


def _judged(windows: Sequence[Any], starts: Int64) -> list[Int32]:
    """For each window and piece the word that is judged there, or -1.

    Args:
        windows: encodings of one text, in order; offsets count its characters.
        starts: from `word_starts`.
    """
    first = np.full(len(starts) - 1, _FAR)  # where each word's first piece ends
    spans = []
    for window in windows:
        offsets = np.array(window.offsets, dtype=np.int64).reshape(-1, 2)
        real = (np.array(window.special_tokens_mask) == 0) & (offsets[:, 1] > offsets[:, 0])
        # the word of a piece's last character: the first one may be the blank before it
        word = np.where(real, np.searchsorted(starts, offsets[:, 1] - 1, side="right") - 1, -1)
        spans.append((offsets[:, 1], word))
        np.minimum.at(first, word[real], offsets[real, 1])
    found = [np.full(len(word), -1, dtype=np.int32) for _, word in spans]
    best = [-1] * len(first)  # context of the window that judges the word so far
    owner: list[tuple[int, int]] = [(-1, -1)] * len(first)
    for number, (ends, word) in enumerate(spans):
        for piece in np.flatnonzero(word >= 0):
            which = int(word[piece])
            before_in_word = piece > 0 and word[piece - 1] == which
            if before_in_word or ends[piece] != first[which]:
                continue
            left = _FAR if number == 0 else int(piece)
            right = _FAR if number == len(spans) - 1 else len(word) - 1 - int(piece)
            context = min(left, right)
            if context > best[which]:
                best[which] = context
                owner[which] = (number, int(piece))
    for index, (window_number, place) in enumerate(owner):
        if window_number >= 0:
            found[window_number][place] = index
    return found
