"""Sentence: words with an entity tag each, from files in columns (CoNLL) or from JSONL.

A file in columns has one word a line, a blank line between sentences, and lines `-DOCSTART-` between
documents. JSONL has one sentence a line: `{"tokens": ["EU", "rejects"], "ner_tags": ["B-ORG", "O"]}`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qexport.errors import DataError
from qexport.tags import OUTSIDE, Scheme, split_tag
from qexport.training.rows import listed, read_rows, read_text

__all__ = ["Sentence", "read_sentences", "scheme_of", "tag_names"]

_JSON_SUFFIXES = (".jsonl", ".ndjson")
_WORD_KEYS = ("tokens", "words")
_TAG_KEYS = ("ner_tags", "tags", "labels")
_DOCUMENT = "-DOCSTART-"
_ORDER = ("B", "I", "E", "S")


@dataclass(frozen=True, slots=True)
class Sentence:
    """Words and their tags, as a file has them."""

    words: list[str]
    """At least one."""
    tags: list[str]
    """One for each word: "O", "B-PER", ..."""
    lines: list[int]
    """Line of each word in the file; in JSONL the one of the sentence."""


def read_sentences(
    path: Path,
    *,
    word_column: str | None = None,
    tag_column: str | None = None,
    labels: Sequence[str] = (),
) -> list[Sentence]:
    """Read a file in columns, or JSONL by its suffix.

    Columns are separated by tabs where the first line has one, else by blanks. A line that begins with `#`
    before the first word of a sentence and has another number of columns is a comment (CoNLL-U).

    Args:
        path: `.jsonl` and `.ndjson` are JSONL, every other suffix is columns.
        word_column: number of the column from 0, -1 for the last one (default 0), or the key in JSONL
            (default tokens or words).
        tag_column: the same of the tag; default: the last column, or ner_tags, tags or labels.
        labels: what tags given as numbers mean, JSONL only.
    Raises:
        DataError: missing, not UTF-8, empty, a line with another number of columns, a tag that is none; names
            the line.
    """
    if path.suffix.lower() in _JSON_SUFFIXES:
        found = list(_json_sentences(path, word_column, tag_column, labels))
    else:
        found = list(_column_sentences(path, word_column, tag_column))
    if not found:
        raise DataError(f"{path} holds no sentences; give one word and its tag a line")
    return found


def _column(path: Path, option: str, value: str | None, default: int, count: int) -> int:
    try:
        number = default if value is None else int(value)
    except ValueError as error:
        raise DataError(
            f"{option} must be the number of a column from 0 for a file in columns ({path}), got '{value}'; "
            "-1 is the last one"
        ) from error
    if not -count <= number < count:
        raise DataError(
            f"{path} has {count} columns, {option} {number} is none of them; count from 0, or from the end "
            "with -1"
        )
    return number % count


def _column_sentences(path: Path, word_column: str | None, tag_column: str | None) -> Iterator[Sentence]:
    lines = [line.removesuffix("\r") for line in read_text(path).split("\n")]
    first = next(
        (line for line in lines if line.strip() and not line.startswith((_DOCUMENT, "#"))),
        next((line for line in lines if line.strip() and not line.startswith(_DOCUMENT)), ""),
    )
    tabs = "\t" in first

    def fields(line: str) -> list[str]:
        return [field.strip() for field in line.split("\t")] if tabs else line.split()

    count = len(fields(first))
    if first and count < 2:
        raise DataError(
            f"{path}, line {lines.index(first) + 1}: a line must have a word and its tag, got {count} "
            "column; separate them by a tab or a blank"
        )
    if first:
        word_place = _column(path, "--text-column", word_column, 0, count)
        tag_place = _column(path, "--label-column", tag_column, -1, count)
    words: list[str] = []
    tags: list[str] = []
    numbers: list[int] = []
    for number, line in enumerate([*lines, ""], 1):
        values = fields(line)
        if not line.strip() or line.startswith(_DOCUMENT):
            if words:
                yield Sentence(words, tags, numbers)
            words, tags, numbers = [], [], []
        elif len(values) == count:
            if not values[word_place]:
                raise DataError(f"{path}, line {number}: the word is empty; give one, or leave the line out")
            words.append(values[word_place])
            tags.append(_checked(path, number, values[tag_place]))
            numbers.append(number)
        elif not (line.startswith("#") and not words):
            how = "tabs" if tabs else "blanks"
            raise DataError(
                f"{path}, line {number}: a line must have {count} columns separated by {how} like the first "
                f"one, got {len(values)}; repair the line"
            )


def _checked(path: Path, line: int, tag: str) -> str:
    if split_tag(tag) is not None:
        return tag
    prefix = tag.partition("-")[0]
    way_out = (
        "write L- as E- and U- as S-, which is IOBES"
        if prefix in ("L", "U")
        else "correct the tag, or choose its column with --label-column"
    )
    raise DataError(
        f"{path}, line {line}: a tag must be O, or B-, I-, E- or S- and a type such as B-PER, got '{tag}'; "
        f"{way_out}"
    )


def _json_sentences(
    path: Path, word_column: str | None, tag_column: str | None, labels: Sequence[str]
) -> Iterator[Sentence]:
    for line, row in read_rows(path):
        where = f"{path}, line {line}"
        columns = []
        for option, asked, usual in (
            ("--text-column", word_column, _WORD_KEYS),
            ("--label-column", tag_column, _TAG_KEYS),
        ):
            key = asked or next((name for name in usual if name in row), usual[0])
            values = row.get(key)
            if not isinstance(values, list):
                raise DataError(
                    f"{where}: '{key}' must hold a list, its keys are {listed(row)}; correct the row or "
                    f"{option}"
                )
            columns.append(values)
        words, tags = columns
        if len(words) != len(tags):
            raise DataError(
                f"{where}: every word must have one tag, got {len(words)} words and {len(tags)} tags; "
                "correct the row"
            )
        for word in words:
            if not isinstance(word, str) or not word.strip():
                raise DataError(f"{where}: a word must be text, got {word!r}; correct the row")
        if words:
            names = [_checked(path, line, _tag_name(where, tag, labels)) for tag in tags]
            yield Sentence(list(words), names, [line] * len(words))


def _tag_name(where: str, tag: Any, labels: Sequence[str]) -> str:
    if isinstance(tag, str):
        return tag
    if isinstance(tag, int) and not isinstance(tag, bool) and 0 <= tag < len(labels):
        return labels[tag]
    known = f"0..{len(labels) - 1} or names" if labels else "names such as B-PER"
    raise DataError(f"{where}: tags must be {known}, got {tag!r}; write the names of the tags")


def scheme_of(path: Path, sentences: Sequence[Sentence]) -> Scheme:
    """Tell which scheme the tags of a file follow.

    Raises:
        DataError: I- tags that begin entities, as only in IOB1, beside B- tags that touch no entity of their
            type, as only in IOB2 and IOBES; names both lines. Or no tag but O.
    """
    opened_by_inside: tuple[int, str] | None = None
    free_beginning: tuple[int, str] | None = None
    closing = any_entity = False
    for sentence in sentences:
        before, before_type = OUTSIDE, ""
        for tag, line in zip(sentence.tags, sentence.lines, strict=True):
            prefix, kind = split_tag(tag) or (OUTSIDE, "")
            any_entity |= prefix != OUTSIDE
            closing |= prefix in ("E", "S")
            touches = before != OUTSIDE and before_type == kind
            if prefix in ("I", "E") and (not touches or before in ("E", "S")):
                opened_by_inside = opened_by_inside or (line, tag)
            if prefix == "B" and not touches:
                free_beginning = free_beginning or (line, tag)
            before, before_type = prefix, kind
    if not any_entity:
        raise DataError(f"{path}: every tag is O, so there is no entity to learn; correct --label-column")
    if opened_by_inside is None:
        return "IOBES" if closing else "IOB2"
    line, tag = opened_by_inside
    if closing:
        raise DataError(
            f"{path}, line {line}: {tag} must follow a word of the same entity in IOBES, it begins one; "
            "correct the tag"
        )
    if free_beginning is not None:
        raise DataError(
            f"{path}: line {line} begins an entity with {tag}, which only IOB1 does, line "
            f"{free_beginning[0]} one with {free_beginning[1]}, which only IOB2 does; write all of them one "
            "way"
        )
    return "IOB1"


def tag_names(sentences: Iterable[Sentence]) -> tuple[str, ...]:
    """The tags that occur: O first, then by type, and B, I, E, S in a type."""
    found = {tag for sentence in sentences for tag in sentence.tags} - {OUTSIDE}
    parts = {tag: split_tag(tag) or (OUTSIDE, "") for tag in found}
    return (OUTSIDE, *sorted(found, key=lambda tag: (parts[tag][1], _ORDER.index(parts[tag][0]))))
