"""Split: labelled texts, and how rows of the user's CSV, TSV and JSONL files become one."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from qexport.errors import DataError
from qexport.training.tasks import Task

__all__ = [
    "FileColumns",
    "Row",
    "Split",
    "find_columns",
    "label_text",
    "listed",
    "make_split",
    "read_rows",
    "read_text",
    "tsv_lines",
    "with_header",
]


@dataclass(frozen=True)
class Split:
    """Labelled texts."""

    name: str
    """train, validation, validation_matched, ..."""
    texts: list[str]
    """First (or only) text of each row."""
    pairs: list[str] | None
    """Second text of each row; None for single-sentence tasks."""
    labels: npt.NDArray[Any]
    """int64 [n] class ids, or float32 [n] for regression."""

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def digest(self) -> str:
        """sha256 of all texts and labels in order; the same rows from another source have the same."""
        content = hashlib.sha256(f"{len(self.texts)} {self.pairs is not None}\n".encode())
        for column in (self.texts, self.pairs or []):
            for text in column:
                data = text.encode("utf-8")
                content.update(b"%d:" % len(data) + data)
        content.update(
            np.ascontiguousarray(self.labels).astype(self.labels.dtype.newbyteorder("<")).tobytes()
        )
        return content.hexdigest()

    def take(self, rows: npt.NDArray[np.int64]) -> Split:
        """Return the given rows, in the given order."""
        return Split(
            self.name,
            [self.texts[row] for row in rows],
            None if self.pairs is None else [self.pairs[row] for row in rows],
            self.labels[rows],
        )


@dataclass(frozen=True)
class FileColumns:
    """Which columns of a file are read."""

    texts: tuple[str] | tuple[str, str]
    """One text column, or the two of a pair."""
    label: str
    """Label column."""


Row = tuple[int, Mapping[str, Any]]
"""Line in the file, and the value of each column."""

Accept = Literal["names", "ids", "both"]


def read_text(path: Path) -> str:
    """The text of a data file.

    Raises:
        DataError: missing, a folder, not readable, or not UTF-8; with the line.
    """
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise DataError(f"data file {path} {what}; pass the path of a CSV, TSV or JSONL file")
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = path.read_bytes()[: error.start].count(b"\n") + 1
        raise DataError(
            f"{path}, line {line}: text must be UTF-8, byte 0x{error.object[error.start]:02x} is not; "
            "convert the file, for example with iconv -t UTF-8"
        ) from error
    except OSError as error:
        raise DataError(
            f"data file {path} cannot be read: {error.strerror}; check its permissions"
        ) from error


def tsv_lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield line number and fields of a tab-separated file; quotes are text, rows end in LF or CR LF.

    Raises:
        DataError: missing or not UTF-8.
    """
    # By hand: csv would end a row at a lone CR, and join lines at an unpaired quote.
    for number, line in enumerate(read_text(path).split("\n"), 1):
        line = line.removesuffix("\r")
        if line:
            yield number, line.split("\t")


def with_header(
    path: Path, lines: Iterator[tuple[int, list[str]]], *, skip_short: bool = False
) -> Iterator[Row]:
    """Give each line the names of the first one.

    Args:
        path: for messages.
        lines: line number and fields.
        skip_short: leave out lines with too few fields instead of refusing them.
    Raises:
        DataError: no lines, a repeated column name, or a line with another number of fields.
    """
    first = next(lines, None)
    if first is None:
        raise DataError(f"{path} is empty; it must hold a header line and rows")
    header = first[1]
    repeated = {name for name in header if header.count(name) > 1}
    if repeated:
        raise DataError(
            f"{path}: column names must differ, {listed(sorted(repeated))} comes twice; rename one of them"
        )
    for number, values in lines:
        if len(values) == len(header):
            yield number, dict(zip(header, values, strict=True))
        elif not (skip_short and len(values) < len(header)):
            raise DataError(
                f"{path}, line {number}: a row must have the header's {len(header)} columns, "
                f"got {len(values)}; repair the line (in CSV, quote a text that holds a comma)"
            )


def _csv_lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(io.StringIO(read_text(path), newline=""), strict=True)
    try:
        for values in reader:
            if values:
                yield reader.line_num, values
    except csv.Error as error:
        raise DataError(
            f"{path}, line {reader.line_num}: not valid CSV ({error}); repair the quoting"
        ) from error


def _json_rows(path: Path) -> Iterator[Row]:
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(
                f"{path}, line {number}: not valid JSON ({error.msg}); every line must be one JSON object"
            ) from error
        if not isinstance(row, dict):
            raise DataError(
                f"{path}, line {number}: must be a JSON object with a value for each column, "
                f"got {type(row).__name__}; write one object a line"
            )
        yield number, row


def read_rows(path: Path) -> list[Row]:
    """Read a CSV, TSV or JSONL file.

    CSV has RFC 4180 quotes; TSV has none, as GLUE's files; both have a header line. JSONL has one object
    on each line.

    Raises:
        DataError: missing, not UTF-8, empty, another suffix or malformed; with the line.
    """
    suffix = path.suffix.lower()
    if suffix == ".csv":
        rows = list(with_header(path, _csv_lines(path)))
    elif suffix == ".tsv":
        rows = list(with_header(path, tsv_lines(path)))
    elif suffix in (".jsonl", ".ndjson"):
        rows = list(_json_rows(path))
    else:
        raise DataError(
            f"data file {path} must end in .csv, .tsv or .jsonl, got '{suffix}'; rename or convert it"
        )
    if not rows:
        raise DataError(f"{path} holds no rows; give it at least one labelled row")
    return rows


_SINGLE_NAMES = ("text", "sentence")
_PAIR_NAMES = (
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("text_a", "text_b"),
)


def find_columns(
    path: Path, present: Sequence[str], text: str | None, pair: str | None, label: str | None
) -> FileColumns:
    """Choose the columns of the user's file: those named, else the usual names.

    Raises:
        DataError: a column is missing, or the text column cannot be told; lists those present.
    """
    if text is None:
        both = [names for names in _PAIR_NAMES if set(names) <= set(present)]
        one = [name for name in _SINGLE_NAMES if name in present]
        if pair is None and both:
            text, pair = both[0]
        elif one:
            text = one[0]
        else:
            raise DataError(
                f"{path} has no column 'text' or 'sentence', its columns are {listed(present)}; "
                "name the text column with --text-column (and --text-pair-column for pairs)"
            )
    label = "label" if label is None else label
    for option, column in (("--text-column", text), ("--text-pair-column", pair), ("--label-column", label)):
        if column is not None and column not in present:
            raise DataError(
                f"{path} has no column '{column}', its columns are {listed(present)}; correct {option}"
            )
    return FileColumns((text,) if pair is None else (text, pair), label)


def listed(names: Iterable[str]) -> str:
    """Quote names for a message: 'a', 'b'."""
    return ", ".join(f"'{name}'" for name in names)


def label_text(value: Any) -> str:
    """Spell a label from a file: 1, 1.0, "1" and true in JSON are "1", "1.0", "1" and "true"."""
    return json.dumps(value) if isinstance(value, bool) else str(value).strip()


def _class_ids(task: Task, accept: Accept) -> dict[str, int]:
    """Map each spelling of a label to its id; where names are numbers themselves only names count."""
    names = {label: number for number, label in enumerate(task.labels)}
    numbers = {str(number): number for number in range(len(task.labels))}
    if accept == "names" or (accept == "both" and names.keys() & numbers.keys()):
        return names
    return numbers if accept == "ids" else {**names, **numbers}


def _class_id(task: Task, where: str, value: Any, ids: Mapping[str, int]) -> int:
    found = ids.get(label_text(value))
    if found is None:
        raise DataError(
            f"{where}: the label of task {task.name} must be one of {listed(ids)}, got {value!r}; "
            "correct the row or leave it out"
        )
    return found


def _number(task: Task, where: str, value: Any) -> float:
    try:
        number = float(value) if not isinstance(value, bool) else float("nan")
    except (TypeError, ValueError):
        number = float("nan")
    if not abs(number) <= float(np.finfo(np.float32).max):  # false for NaN too
        raise DataError(
            f"{where}: the label of task {task.name} must be a finite number, got {value!r}; "
            "correct the row or leave it out"
        )
    return number


def make_split(
    name: str, task: Task, path: Path, rows: Sequence[Row], columns: FileColumns, *, accept: Accept = "both"
) -> Split:
    """Turn rows of a file into a split.

    Args:
        name: of the split.
        task: gives the label names or says that labels are numbers.
        path, rows: the file, for messages, and what `read_rows` gave.
        columns: which columns to take.
        accept: whether labels are written as names, as ids, or either.
    Raises:
        DataError: no rows, a missing column, a text that is not text, or a label outside the task's; with
            the line.
    """
    if not rows:
        raise DataError(f"{path} holds no rows; give it at least one labelled row")
    ids = _class_ids(task, accept)
    texts: list[list[str]] = [[] for _ in columns.texts]
    labels: list[float] = []
    for line, row in rows:
        where = f"{path}, line {line}"
        for column, kept in zip(columns.texts, texts, strict=True):
            kept.append(_text(where, column, row))
        if columns.label not in row:
            raise DataError(
                f"{where} has no column '{columns.label}', its columns are {listed(row)}; add the label"
            )
        value = row[columns.label]
        classes = task.kind == "classification"
        labels.append(_class_id(task, where, value, ids) if classes else _number(task, where, value))
    dtype = np.int64 if task.kind == "classification" else np.float32
    return Split(name, texts[0], texts[1] if len(texts) > 1 else None, np.array(labels, dtype=dtype))


def _text(where: str, column: str, row: Mapping[str, Any]) -> str:
    if column not in row:
        raise DataError(
            f"{where} has no column '{column}', its columns are {listed(row)}; correct the column name"
        )
    value = row[column]
    if not isinstance(value, str):
        raise DataError(f"{where}: column '{column}' must hold text, got {value!r}; correct the row")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(
            f"{where}: column '{column}' holds half of a surrogate pair, which is not text; correct the row"
        ) from error
    return value
