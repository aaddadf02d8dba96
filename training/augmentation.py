"""Augmented rows: copies of training rows in which words are replaced by others that fit.

Source: TinyBERT (Jiao et al. 2020), algorithm 1, as in its released code: each alphabetic word that is no
stop word is replaced with probability p by one of its candidates; those come from a masked language model
or from word vectors (training/candidates.py). The list of stop words is ours. The released code joins
lower-cased words with spaces, here all else in a text stays as it was. Of a pair one text is replaced at a
time, beside the original other one; in the released code the first stays replaced while the second is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qexport.training.rows import Split

__all__ = ["STOP_WORDS", "Word", "augment_split", "copies", "is_replaceable"]

_STOP_WORDS = """
a about above after again against all am an and any are as at be because been before being below between
both but by can cannot could did do does doing don down during each either few for from further had has
have having he her here hers herself him himself his how i if in into is it its itself just let me might
more most must my myself neither no nor not now of off on once only or other ought our ours ourselves out
over own s same shall she should so some such t than that the their theirs them themselves then there
these they this those through to too under until up upon us very was we were what when where which while
who whom whose why will with would you your yours yourself yourselves
"""

STOP_WORDS = frozenset(_STOP_WORDS.split())
"""English words that are never replaced: articles, pronouns, prepositions, auxiliaries and the like."""


@dataclass(frozen=True, slots=True)
class Word:
    """A word of a text that can be replaced."""

    start: int
    """First character."""
    end: int
    """Character after the last."""
    choices: tuple[str, ...]
    """What may take its place, at least one; the word itself may be among them."""


def is_replaceable(word: str) -> bool:
    """Whether a word is alphabetic and no stop word."""
    return word.isalpha() and word.lower() not in STOP_WORDS


def copies(
    text: str, words: Sequence[Word], *, count: int, probability: float, generator: np.random.Generator
) -> list[str]:
    """Up to `count` texts that differ from `text` and from one another.

    Args:
        text: the original.
        words: what can be replaced in it, in order.
        count: how often to try.
        probability: of replacing a word.
        generator: of the draws.
    """
    found = {text: None}
    for _ in range(count if words else 0):
        parts, end = [], 0
        for word in words:
            chosen = word.choices[int(generator.integers(len(word.choices)))]
            if generator.random() < probability:
                parts += [text[end : word.start], chosen]
                end = word.end
        found["".join([*parts, text[end:]])] = None
    return [other for other in found if other != text]


def augment_split(
    split: Split, words: Sequence[Sequence[Sequence[Word]]], *, count: int, probability: float, seed: int
) -> Split:
    """Each row followed by its copies, with its label.

    Args:
        split: the rows.
        words: for each text column and row what can be replaced.
        count: tries for each text of a row.
        probability: of replacing a word.
        seed: of the draws; those of a row do not depend on other rows.
    """
    columns = [split.texts, *([] if split.pairs is None else [split.pairs])]
    texts: list[list[str]] = [[] for _ in columns]
    origin: list[int] = []
    for row in range(len(split)):
        own = [column[row] for column in columns]
        rows = [own]
        for number, text in enumerate(own):
            others = copies(
                text,
                words[number][row],
                count=count,
                probability=probability,
                generator=np.random.default_rng((seed, row, number)),
            )
            rows += [[*own[:number], other, *own[number + 1 :]] for other in others]
        for filled in rows:
            for column, text in zip(texts, filled, strict=True):
                column.append(text)
        origin += [row] * len(rows)
    return Split(split.name, texts[0], texts[1] if len(texts) > 1 else None, split.labels[np.array(origin)])
