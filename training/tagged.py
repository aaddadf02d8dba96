"""TaggedSplit: sentences with a tag for each word; where they come from, and their windows of word pieces."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from qexport.errors import DataError, UsageError
from qexport.serving.kinds.tokens import TokenItems
from qexport.serving.word_pieces import encode_words
from qexport.training.conll import Sentence, read_sentences, scheme_of, tag_names
from qexport.training.encoded import Encoded
from qexport.training.hub import hub_split
from qexport.training.rows import Split, listed
from qexport.training.tasks import Task

__all__ = ["TaggedEncoded", "TaggedSplit", "encode_tagged", "load_tagged", "make_tagged_split"]

Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class TaggedSplit(Split):
    """Sentences whose words have tag ids; `labels` holds those of all words, one sentence after the other."""

    words: list[list[str]]
    """Of each sentence."""
    names: tuple[str, ...]
    """Tag names in id order."""

    @property
    def tags(self) -> list[Int64]:
        """int64 [words] of each sentence."""
        ends = np.cumsum([len(words) for words in self.words])
        return list(np.split(self.labels, ends[:-1]))

    @property
    def digest(self) -> str:
        """sha256 of all words and tags in order; the same sentences from another file have the same."""
        content = hashlib.sha256(f"tagged {len(self)} {self.names}\n".encode())
        for words in self.words:
            content.update(f"{len(words)}\n".encode())
            for word in words:
                data = word.encode("utf-8")
                content.update(b"%d:" % len(data) + data)
        content.update(self.labels.astype("<i8").tobytes())
        return content.hexdigest()

    def take(self, rows: Int64) -> TaggedSplit:
        """Return the given sentences, in the given order."""
        tags = self.tags
        return _split(self.name, [self.words[row] for row in rows], [tags[row] for row in rows], self.names)


def _split(name: str, words: list[list[str]], tags: list[Int64], names: tuple[str, ...]) -> TaggedSplit:
    return TaggedSplit(
        name=name,
        texts=[" ".join(sentence) for sentence in words],
        pairs=None,
        labels=np.concatenate([np.zeros(0, np.int64), *tags]),
        words=words,
        names=names,
    )


def make_tagged_split(
    name: str, path: Path, sentences: Sequence[Sentence], labels: Sequence[str]
) -> TaggedSplit:
    """Sentences with tag ids.

    Args:
        name: of the split.
        path: the file, for messages.
        sentences: from `read_sentences`.
        labels: tag names in id order.
    Raises:
        DataError: a tag that is not among `labels`, with its line.
    """
    ids = {label: number for number, label in enumerate(labels)}
    for sentence in sentences:
        for tag, line in zip(sentence.tags, sentence.lines, strict=True):
            if tag not in ids:
                raise DataError(
                    f"{path}, line {line}: tag '{tag}' is not among those of the model or the training file, "
                    f"{listed(labels)}; correct it or leave the sentence out"
                )
    tags = [np.array([ids[tag] for tag in sentence.tags], dtype=np.int64) for sentence in sentences]
    return _split(name, [sentence.words for sentence in sentences], tags, tuple(labels))


@dataclass(frozen=True)
class TaggedEncoded(Encoded):
    """Windows of word pieces; `labels` is 0 for each window, what is right is in `tags` and the split."""

    tags: list[Int64]
    """int64 [length] of each window: tag id of a word's first piece, -100 elsewhere."""
    items: TokenItems
    """Where every word is judged."""


def encode_tagged(split: TaggedSplit, tokenizer: Tokenizer, max_length: int) -> TaggedEncoded:
    """Windows of the sentences; see `encode_words`.

    Raises:
        UsageError: `max_length` leaves no room for a piece.
    """
    encoded = encode_words(split.words, tokenizer, max_length)
    return TaggedEncoded(
        input_ids=encoded.input_ids,
        token_type_ids=encoded.token_type_ids,
        labels=np.zeros(len(encoded), dtype=np.int64),
        tags=encoded.labels(split.tags),
        items=TokenItems.of(encoded, split.names),
    )


def load_tagged(
    task: Task,
    *,
    train_file: Path | None,
    eval_file: Path | None,
    text_column: str | None,
    label_column: str | None,
    need_train: bool,
    labels: Sequence[str] | None,
    **others: Any,
) -> tuple[Task, Split | None, dict[str, Split], str]:
    """Read a task of tagged words: the user's files, else the hub.

    Args:
        task: its labels are those of the files where it has none of its own.
        train_file, eval_file: see `read_sentences`.
        text_column, label_column: column of words and of tags.
        need_train: read the training rows too.
        labels: tags of a model, in id order.
        others: options that have no meaning here; they must be unset.
    Raises:
        UsageError, DataError, MissingPackageError, EnvironmentProblem: see the message.
    """
    for name, value in others.items():
        if value:
            raise UsageError(f"task {task.name} reads words and tags; leave --{name.replace('_', '-')} out")
    if train_file is None and eval_file is None:
        return _from_hub(task, need_train=need_train, labels=labels)
    if need_train and train_file is None:
        raise UsageError("training on your own files needs --data; add it beside --eval")
    if eval_file is None:
        raise UsageError("your own files need --eval; add it, checkpoints are selected and judged by it")
    known = tuple(labels or task.labels)

    def read(path: Path) -> list[Sentence]:
        return read_sentences(path, word_column=text_column, tag_column=label_column, labels=known)

    train_rows = read(train_file) if need_train and train_file is not None else None
    eval_rows = read(eval_file)
    paths = [eval_file] if train_rows is None or train_file is None else [train_file, eval_file]
    schemes = [
        scheme_of(path, rows) for path, rows in zip(paths, filter(None, (train_rows, eval_rows)), strict=True)
    ]
    if "IOB1" in schemes and len(set(schemes)) > 1:
        raise DataError(
            f"{paths[0]} has tags in {schemes[0]}, {paths[1]} in {schemes[1]}; write both one way"
        )
    names = known or tag_names(train_rows or eval_rows)
    train = None if train_rows is None else make_tagged_split("train", paths[0], train_rows, names)
    evals: dict[str, Split] = {"validation": make_tagged_split("validation", eval_file, eval_rows, names)}
    files = ", ".join(path.name for path in paths)
    return replace(task, labels=names), train, evals, f"own files: {files} ({schemes[0]})"


def _from_hub(
    task: Task, *, need_train: bool, labels: Sequence[str] | None
) -> tuple[Task, Split | None, dict[str, Split], str]:
    """Read a task from the Hugging Face hub through the optional package `datasets`.

    Raises:
        UsageError: a task without a place there; MissingPackageError: no `datasets`; EnvironmentProblem: no
            network and nothing cached; DataError: other columns than words and tag ids.
    """
    if task.hub_id is None:
        raise UsageError(f"task {task.name} reads your own files; give --data and --eval")
    order = tuple(labels or task.labels)
    found: dict[str, Split] = {}
    for name in (*(("train",) if need_train else ()), *task.eval_splits):
        data = hub_split(task, name, instead="pass your own files as --data and --eval")
        if not {"tokens", task.label_column} <= set(data.column_names):
            raise DataError(
                f"{task.hub_id} on the hub must have columns tokens and {task.label_column}, it has "
                f"{listed(data.column_names)}; pass the data as --data and --eval"
            )
        feature = getattr(data.features[task.label_column], "feature", None)
        names = tuple(getattr(feature, "names", None) or task.labels)
        rows = [
            Sentence(list(words), [names[tag] for tag in tags], [line] * len(words))
            for line, (words, tags) in enumerate(zip(data["tokens"], data[task.label_column], strict=True), 1)
            if words
        ]
        found[name] = make_tagged_split(name, Path(task.hub_id) / name, rows, order)
    train = found.pop("train", None)
    return replace(task, labels=order), train, found, f"Hugging Face hub {task.hub_id}"
