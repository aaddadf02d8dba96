"""Entity: a stretch of a text with a type, and how the tags of words become entities.

A raw text is first split into words as news corpora are: at blanks, with the marks around a word as words of
their own. A full stop stays with a word that has another one inside, as in "U.S.".
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from qexport.tags import entity_spans

__all__ = ["Entity", "entities_of", "split_words"]


@dataclass(frozen=True, slots=True)
class Entity:
    """One entity in a text."""

    label: str
    """Its type: "PER"."""
    text: str
    """The stretch itself."""
    start: int
    """Place of its first character."""
    end: int
    """Place after its last character: `text == source[start:end]`."""
    score: float
    """Mean over its words of the probability of their tags."""


def split_words(text: str) -> list[tuple[int, int]]:
    """Where the words of a text are, (start, end) in characters, in order; blanks are left out."""
    found: list[tuple[int, int]] = []
    place = 0
    for chunk in text.split():
        start = text.index(chunk, place)
        place = end = start + len(chunk)
        while start < end and _is_mark(text[start]):
            found.append((start, start + 1))
            start += 1
        tail: list[tuple[int, int]] = []
        while start < end and _is_mark(text[end - 1]) and not _abbreviation(text[start:end]):
            tail.append((end - 1, end))
            end -= 1
        if start < end:
            found.append((start, end))
        found.extend(reversed(tail))
    return found


def _is_mark(character: str) -> bool:
    return unicodedata.category(character).startswith("P")


def _abbreviation(word: str) -> bool:
    """Whether the full stop at the end belongs to the word."""
    inner = word[:-1]
    return word.endswith(".") and "." in inner and inner[-1].isalpha() and inner[0].isalpha()


def entities_of(
    text: str, words: Sequence[tuple[int, int]], tags: Sequence[str], scores: npt.NDArray[np.float32]
) -> list[Entity]:
    """The entities of one text.

    Args:
        text: the text.
        words: (start, end) of each word in it, in order.
        tags: of each word.
        scores: float32 [words], probability of each tag.
    """
    found = []
    for span in entity_spans(tags):
        start, end = words[span.start][0], words[span.end - 1][1]
        score = float(np.mean(scores[span.start : span.end], dtype=np.float64))
        found.append(Entity(span.type, text[start:end], start, end, score))
    return found
