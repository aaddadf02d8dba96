"""SQuAD (Rajpurkar et al. 2016, 2018): questions about articles, read from JSON or the Hugging Face hub."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from qexport.errors import DataError, UsageError
from qexport.training.hub import hub_split
from qexport.training.spans import SpanSplit
from qexport.training.tasks import Task, get_task

__all__ = [
    "SpanSources",
    "hold_out_paragraphs",
    "is_squad_file",
    "read_squad",
    "span_sources",
    "split_articles",
]

_TUNING_SHARE, _TUNING_MOST = 0.1, 2000


@dataclasses.dataclass(frozen=True, slots=True)
class SpanSources:
    """What one run reads."""

    task: Task
    train: SpanSplit | None
    tuning: SpanSplit | None
    """Training questions by which the threshold of the empty answer is chosen; None where all have one."""
    evals: dict[str, SpanSplit]
    source: str
    """For people; says which parts are not official splits."""


def is_squad_file(path: Path | None) -> bool:
    """Whether a file of one's own is meant as SQuAD JSON: by its suffix."""
    return path is not None and path.suffix.lower() == ".json"


def _content(path: Path) -> Any:
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise DataError(f"data file {path} {what}; pass a JSON file in the layout of SQuAD")
    try:
        return json.loads(path.read_bytes().decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise DataError(f"{path} must be UTF-8, byte {error.start} is not; convert the file") from error
    except ValueError as error:
        raise DataError(f"{path} is not valid JSON ({error}); repair or download it again") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}; check its permissions") from error


_LAYOUT = (
    '{"data": [{"title", "paragraphs": [{"context", "qas": [{"id", "question", "answers": [{"text", '
    '"answer_start"}]}]}]}]}'
)


class _Reader:
    """Fields of one file, each named in the message when it is not there."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def field(self, where: str, value: Any, name: str, kind: type) -> Any:
        if not isinstance(value, dict) or name not in value:
            raise DataError(f"{self.path}: {where} has no '{name}'; the layout of SQuAD is {_LAYOUT}")
        found = value[name]
        if not isinstance(found, kind) or (kind is int and isinstance(found, bool)):
            what = {str: "a text", list: "a list", int: "a whole number"}[kind]
            raise DataError(
                f"{self.path}: '{name}' of {where} must be {what}, got {type(found).__name__}; "
                f"the layout of SQuAD is {_LAYOUT}"
            )
        return found


def read_squad(path: Path, name: str, *, may_be_empty: bool, learn: bool) -> tuple[SpanSplit, str]:
    """Read one file in SQuAD's layout.

    Args:
        path: JSON.
        name: of the split.
        may_be_empty: read questions without an answer (SQuAD 2.0); else they are left out.
        learn: the answers are learned from, so those that do not stand where the file says are left out.
    Returns:
        the rows, and what was left out, "" for nothing: ", 3 questions left out whose answers are elsewhere".
    Raises:
        DataError: missing, not JSON, another layout, or no questions.
    """
    read = _Reader(path)
    rows: list[tuple[str, str, str, list[tuple[str, int]], str]] = []
    astray = unanswered = 0
    for number, article in enumerate(read.field("the file", _content(path), "data", list)):
        place = f"article {number}"
        title = str(article.get("title", place)) if isinstance(article, dict) else place
        for index, paragraph in enumerate(read.field(place, article, "paragraphs", list)):
            where = f"paragraph {index} of {place}"
            context = read.field(where, paragraph, "context", str)
            for entry in read.field(where, paragraph, "qas", list):
                question = read.field(f"a question in {where}", entry, "question", str)
                key = str(read.field(f"a question in {where}", entry, "id", str))
                found = [
                    (
                        read.field(f"an answer of question {key}", answer, "text", str),
                        read.field(f"an answer of question {key}", answer, "answer_start", int),
                    )
                    for answer in ([] if entry.get("is_impossible") else entry.get("answers") or [])
                ]
                right = [(text, start) for text, start in found if context[start : start + len(text)] == text]
                if learn and len(right) < len(found):
                    astray += not right
                    found = right
                    if not right:
                        continue
                if not found and not may_be_empty:
                    unanswered += 1
                    continue
                rows.append((key, question, context, found, title))
    if not rows:
        raise DataError(
            f"{path} holds no questions{' with an answer' if unanswered else ''}; give another file"
        )
    notes = [
        f", {count:,} question{'s' * (count > 1)} left out {why}"
        for count, why in ((astray, "whose answers do not stand where the file says"),
                           (unanswered, "that have no answer"))
        if count
    ]  # fmt: skip
    return _split(name, rows, may_be_empty), "".join(notes)


def _split(
    name: str, rows: Iterable[tuple[str, str, str, list[tuple[str, int]], str]], may_be_empty: bool
) -> SpanSplit:
    ids, questions, contexts, answers, titles = (list(column) for column in zip(*rows, strict=True))
    labels = np.array([int(bool(found)) for found in answers], np.int64)
    return SpanSplit(name, questions, contexts, labels, ids, answers, titles, may_be_empty)


def split_articles(split: SpanSplit, share: float) -> tuple[SpanSplit, SpanSplit]:
    """Part the articles of a file: the rest, and the share that is evaluated; by a hash of the title.

    Raises:
        DataError: one article only.
    """
    titles = sorted(set(split.titles), key=lambda title: hashlib.sha256(title.encode("utf-8")).hexdigest())
    if len(titles) < 2:
        raise DataError(
            f"--eval-articles needs a file of at least two articles, got {len(titles)}; give --eval instead"
        )
    held = set(titles[: min(len(titles) - 1, max(1, round(share * len(titles))))])
    chosen = np.array([title in held for title in split.titles])
    return split.take(np.flatnonzero(~chosen)), split.take(np.flatnonzero(chosen)).named("validation")


def hold_out_paragraphs(split: SpanSplit) -> tuple[SpanSplit, SpanSplit]:
    """Part the paragraphs: the rest, and those by which the threshold of the empty answer is chosen.

    Whole paragraphs by a hash of their text, until a tenth of the questions, at most 2,000, is held out.

    Raises:
        DataError: one paragraph only.
    """
    keys: dict[str, int] = {}
    for context in split.contexts:
        keys[context] = keys.get(context, 0) + 1
    if len(keys) < 2:
        raise DataError(
            "a task with unanswerable questions needs at least two paragraphs to train on, got one"
        )
    held: set[str] = set()
    wanted, taken = min(_TUNING_MOST, _TUNING_SHARE * len(split)), 0
    for context in sorted(keys, key=lambda text: hashlib.sha256(text.encode("utf-8")).hexdigest()):
        if taken >= wanted or len(held) == len(keys) - 1:
            break
        held.add(context)
        taken += keys[context]
    chosen = np.array([context in held for context in split.contexts])
    return split.take(np.flatnonzero(~chosen)), split.take(np.flatnonzero(chosen)).named("threshold")


def span_sources(
    task: Task | None,
    *,
    data_dir: Path | None,
    train_file: Path | None,
    eval_file: Path | None,
    eval_articles: float | None,
    need_train: bool,
) -> SpanSources:
    """Read a question answering task from the first source that applies.

    The sources, in order: the user's own files; `data_dir` with SQuAD's own files; the Hugging Face hub.

    Args:
        task: squad or squad_v2; None for own files, which then say whether answers may be empty.
        data_dir: the folder with train-v1.1.json, dev-v1.1.json and so on. Where the training file is absent,
            files train-v1.1-part*.json stand in, and the source says so.
        train_file, eval_file: JSON in SQuAD's layout.
        eval_articles: part of the articles of the one file that is evaluated and never trained on.
        need_train: read the training questions too.
    Raises:
        UsageError: options that do not go together.
        DataError: see `read_squad`, `split_articles`.
        MissingPackageError, EnvironmentProblem: the hub is needed and `datasets` or the network is missing.
    """
    if eval_articles is not None and not 0 < eval_articles < 1:
        raise UsageError(f"--eval-articles must be between 0 and 1, got {eval_articles:g}; use 0.1")
    if train_file is not None or eval_file is not None:
        found = _from_files(task, train_file, eval_file, eval_articles, need_train)
    elif task is None:
        raise UsageError("no data was named; pass --task squad, or your own --data and --eval")
    elif eval_articles is not None:
        raise UsageError(
            "--eval-articles parts one file of your own; give it with --data FILE, without --eval"
        )
    elif data_dir is not None:
        found = _from_folder(task, data_dir, need_train)
    else:
        found = _from_hub(task, need_train)
    if found.train is None or not found.train.may_be_empty:
        return found
    train, tuning = hold_out_paragraphs(found.train)
    note = f"; {len(tuning):,} training questions held out for the threshold of the empty answer"
    return dataclasses.replace(found, train=train, tuning=tuning, source=found.source + note)


def _from_files(
    task: Task | None, train_file: Path | None, eval_file: Path | None, share: float | None, need_train: bool
) -> SpanSources:
    if need_train and train_file is None:
        raise UsageError("training on your own files needs --data; add it beside --eval")
    if share is not None and need_train and eval_file is not None:
        raise UsageError("--eval-articles takes the evaluation questions from --data; leave --eval or it out")
    if eval_file is None and (share is None or train_file is None):
        raise UsageError(
            "your own files need --eval, or --eval-articles to evaluate on articles of --data that are not "
            "trained on; add one of them"
        )
    first = train_file if need_train and train_file is not None else eval_file
    assert first is not None
    if task is None:
        task = dataclasses.replace(get_task("squad_v2" if _has_empty(first) else "squad"), name="custom")
    empty = "no_ans_exact" in task.metrics
    if eval_file is None or not need_train:
        name = "train" if need_train else "validation"
        split, left_out = read_squad(first, name, may_be_empty=empty, learn=need_train)
        if share is None:
            return SpanSources(task, None, None, {"validation": split}, f"own file: {first.name}{left_out}")
        rest, held = split_articles(split, share)
        count = len(set(held.titles))
        return SpanSources(
            task, rest if need_train else None, None, {"validation": held},
            f"own file: {first.name}{left_out}; validation is {count} of its "
            f"{count + len(set(rest.titles))} articles, which are not trained on",
        )  # fmt: skip
    assert train_file is not None
    train, left_out = read_squad(train_file, "train", may_be_empty=empty, learn=True)
    validation, skipped = read_squad(eval_file, "validation", may_be_empty=empty, learn=False)
    both = set(train.contexts) & set(validation.contexts)
    note = f"; {len(both):,} paragraphs stand in both files" if both else ""
    return SpanSources(
        task, train, None, {"validation": validation},
        f"own files: {train_file.name}{left_out}, {eval_file.name}{skipped}{note}",
    )  # fmt: skip


def _has_empty(path: Path) -> bool:
    """Whether a file marks a question as impossible."""
    content = _content(path)
    articles = content.get("data", []) if isinstance(content, dict) else []
    return any(
        bool(entry.get("is_impossible"))
        for article in _objects(articles)
        for paragraph in _objects(article.get("paragraphs"))
        for entry in _objects(paragraph.get("qas"))
    )


def _objects(value: Any) -> list[dict[str, Any]]:
    """The objects of a JSON list; none of what is no list."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _from_folder(task: Task, data_dir: Path, need_train: bool) -> SpanSources:
    empty = "no_ans_exact" in task.metrics
    version = "2.0" if empty else "1.1"
    if not data_dir.is_dir():
        raise DataError(
            f"data folder {data_dir} does not exist; pass the folder that holds dev-v{version}.json"
        )
    dev = data_dir / f"dev-v{version}.json"
    if not dev.is_file():
        raise DataError(f"{data_dir} has no {dev.name}; {task.name} needs it, correct --data-dir")
    validation, skipped = read_squad(dev, "validation", may_be_empty=empty, learn=False)
    notes, train = [], None
    if need_train:
        official = data_dir / f"train-v{version}.json"
        files = [official] if official.is_file() else sorted(data_dir.glob(f"train-v{version}-part*.json"))
        if not files:
            raise DataError(f"{data_dir} has no {official.name}; {task.name} needs it, correct --data-dir")
        parts = []
        for path in files:
            part, left_out = read_squad(path, "train", may_be_empty=empty, learn=True)
            parts.append(part)
            notes.append(path.name + left_out)
        train = _joined(parts)
        if files != [official]:
            notes[-1] += f" ({len(train):,} questions, parts of the official split)"
    notes.append(dev.name + skipped)
    return SpanSources(task, train, None, {"validation": validation}, f"SQuAD files: {'; '.join(notes)}")


def _joined(parts: list[SpanSplit]) -> SpanSplit:
    """The rows of several files, of a question that stands in two of them the first."""
    rows: dict[str, tuple[str, str, str, list[tuple[str, int]], str]] = {}
    for part in parts:
        for row in zip(part.ids, part.texts, part.contexts, part.answers, part.titles, strict=True):
            rows.setdefault(row[0], row)
    return _split(parts[0].name, rows.values(), parts[0].may_be_empty)


def _from_hub(task: Task, need_train: bool) -> SpanSources:
    empty = "no_ans_exact" in task.metrics

    def read(name: str) -> SpanSplit:
        data = hub_split(task, name, instead="pass --data-dir with SQuAD's own JSON files")
        return _split(name, (_hub_row(row) for row in data), empty)

    train = read("train") if need_train else None
    return SpanSources(
        task, train, None, {"validation": read("validation")}, f"Hugging Face hub {task.hub_id}"
    )


def _hub_row(row: Mapping[str, Any]) -> tuple[str, str, str, list[tuple[str, int]], str]:
    found = list(zip(row["answers"]["text"], row["answers"]["answer_start"], strict=True))
    return str(row["id"]), str(row["question"]), str(row["context"]), found, str(row["title"])
