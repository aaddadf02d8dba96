"""Tag: what a token classifier says about a word, "O" or "B-PER", and the entities that a row of tags means.

Three schemes are told apart (Ramshaw and Marcus 1995; Tjong Kim Sang and Veenstra 1999):

- IOB2: every entity begins with B-, goes on with I-.
- IOB1: an entity begins with I-; B- only where it touches one of the same type before it.
- IOBES: as IOB2, its last word is E-, an entity of one word is S-.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

__all__ = ["OUTSIDE", "Scheme", "Span", "entity_spans", "split_tag"]

OUTSIDE = "O"
"""The tag of a word that belongs to no entity."""

Scheme = Literal["IOB1", "IOB2", "IOBES"]

_PREFIXES = ("B", "I", "E", "S")


@dataclass(frozen=True, slots=True)
class Span:
    """One entity in a row of tags."""

    type: str
    """What stands behind the prefix: "PER"."""
    start: int
    """Its first word."""
    end: int
    """The word after its last one."""


def split_tag(tag: str) -> tuple[str, str] | None:
    """Prefix and type of a tag: ("B", "PER"), or ("O", "").

    Returns:
        None for what is neither O nor B-, I-, E- or S- with a type behind it.
    """
    if tag == OUTSIDE:
        return OUTSIDE, ""
    prefix, dash, kind = tag.partition("-")
    return (prefix, kind) if prefix in _PREFIXES and dash and kind else None


def entity_spans(tags: Sequence[str]) -> list[Span]:
    """The entities that a row of tags means, by the rules of the CoNLL-2000 evaluation script.

    They read all three schemes and leave no row undefined, which a model's output needs: I- after O begins an
    entity, another type begins another entity. The library seqeval has the same rules.

    Args:
        tags: of the words, each O or a prefix and a type.
    """
    found: list[Span] = []
    begin, current, previous = 0, "", OUTSIDE
    for place, tag in enumerate((*tags, OUTSIDE)):
        prefix, kind = split_tag(tag) or (OUTSIDE, "")
        ends = previous in ("E", "S") or prefix in (OUTSIDE, "B", "S") or kind != current
        if previous != OUTSIDE and ends:
            found.append(Span(current, begin, place))
        if prefix != OUTSIDE and (previous == OUTSIDE or ends):
            begin = place
        previous, current = prefix, kind
    return found
