"""ScoredPairs: what sentence encoders are judged by, and the plain texts that they learn from.

Training needs texts only, from any columns of a file or one a line; the same text counts once. Evaluation
needs pairs of texts with a number for how alike they are, as STS-B has (Cer et al. 2017).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from qexport.errors import DataError, UsageError
from qexport.training.rows import Row, Split, listed, read_rows, read_text
from qexport.training.sources import from_glue_folder, from_hub
from qexport.training.tasks import TASKS, Task

__all__ = ["ScoredPairs", "load_sentences", "plain_texts", "read_plain_texts", "scored_pairs"]

_TEXT_COLUMNS = (
    "text", "sentence", "sentence1", "sentence2", "premise", "hypothesis", "question", "question1",
    "question2", "text_a", "text_b", "#1 String", "#2 String",
)  # fmt: skip
_SCORES = ("score", "label", "similarity_score")

Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class ScoredPairs(Split):
    """Pairs of texts; `labels` says how alike they are: float32, higher is more, only the order counts."""

    @property
    def sentences(self) -> list[str]:
        """Every text once, in the order of their first appearance: what is embedded."""
        return list(dict.fromkeys(text for pair in self._both() for text in pair))

    @property
    def places(self) -> Int64:
        """int64 [pairs, 2], places of both texts in `sentences`."""
        where = {text: number for number, text in enumerate(self.sentences)}
        return np.array([(where[a], where[b]) for a, b in self._both()], dtype=np.int64).reshape(-1, 2)

    def alone(self) -> Split:
        """The sentences, one a row: what a model is run on."""
        return Split(self.name, self.sentences, None, np.zeros(len(self.sentences), dtype=np.float32))

    def _both(self) -> list[tuple[str, str]]:
        return list(zip(self.texts, self.pairs or [], strict=True))

    def take(self, rows: Int64) -> ScoredPairs:
        """Return the given pairs, in the given order."""
        part = super().take(rows)
        return ScoredPairs(part.name, part.texts, part.pairs, part.labels)


def plain_texts(name: str, texts: Iterable[str]) -> Split:
    """Texts without those that are blank or came before."""
    found = list(dict.fromkeys(text.strip() for text in texts if text.strip()))
    return Split(name, found, None, np.zeros(len(found), dtype=np.float32))


def read_plain_texts(name: str, path: Path, columns: str | None = None) -> Split:
    """Read the texts of a file.

    Args:
        name: of the split.
        path: CSV, TSV or JSONL; any other suffix is a text file, one text a line.
        columns: which columns, by comma; default: all that have a usual name such as text or sentence1.
    Raises:
        DataError: missing, not UTF-8, no such column, no texts.
    """
    if path.suffix.lower() not in (".csv", ".tsv", ".jsonl", ".ndjson"):
        if columns is not None:
            raise DataError(
                f"{path} is read as one text a line and has no columns; leave --text-column out, or give a "
                "CSV, TSV or JSONL file"
            )
        found = plain_texts(name, read_text(path).splitlines())
    else:
        rows = read_rows(path)
        present = list(rows[0][1])
        wanted = (
            [column for column in _TEXT_COLUMNS if column in present]
            if columns is None
            else [column.strip() for column in columns.split(",")]
        )
        missing = [column for column in wanted if column not in present]
        if missing or not wanted:
            what = f"no column '{missing[0]}'" if missing else "no column with a usual name such as 'text'"
            raise DataError(
                f"{path} has {what}, its columns are {listed(present)}; name the text columns with "
                "--text-column, by comma"
            )
        found = plain_texts(name, (_text(path, line, column, row) for line, row in rows for column in wanted))
    if not found.texts:
        raise DataError(f"{path} holds no texts; give at least one")
    return found


def _text(path: Path, line: int, column: str, row: Mapping[str, Any]) -> str:
    value = row.get(column)
    if not isinstance(value, str):
        raise DataError(
            f"{path}, line {line}: column '{column}' must hold text, got {value!r}; correct the row"
        )
    return value


def scored_pairs(
    name: str,
    path: Path,
    rows: Sequence[Row],
    columns: tuple[str, str] | None = None,
    score: str | None = None,
) -> ScoredPairs:
    """Pairs of a file's rows.

    Args:
        name: of the split.
        path, rows: the file, for messages, and what `read_rows` gave.
        columns: the two text columns; default: sentence1 and sentence2.
        score: column of the number; default: score, label or similarity_score.
    Raises:
        DataError: fewer than two rows, a missing column, a text that is none, a score that is no number.
    """
    if len(rows) < 2:
        raise DataError(f"{path} must hold at least two pairs to rank, got {len(rows)}; give more")
    present = list(rows[0][1])
    texts = columns or ("sentence1", "sentence2")
    number = score or next((column for column in _SCORES if column in present), _SCORES[0])
    for option, column in (
        ("--text-column", texts[0]),
        ("--text-pair-column", texts[1]),
        ("--label-column", number),
    ):
        if column not in present:
            raise DataError(
                f"{path} has no column '{column}', its columns are {listed(present)}; evaluation needs pairs "
                f"of texts and a score, correct {option}"
            )
    values = []
    for line, row in rows:
        try:
            value = float(str(row.get(number)))
        except (TypeError, ValueError):
            value = float("nan")
        if not np.isfinite(value):
            raise DataError(
                f"{path}, line {line}: column '{number}' must hold a finite number, got {row.get(number)!r}; "
                "correct the row or leave it out"
            )
        values.append(value)
    firsts, seconds = ([_text(path, line, column, row) for line, row in rows] for column in texts)
    return ScoredPairs(name, firsts, seconds, np.array(values, dtype=np.float32))


_STSB = "stsb"


def load_sentences(
    task: Task,
    *,
    data_dir: Path | None,
    train_file: Path | None,
    eval_file: Path | None,
    text_column: str | None,
    text_pair_column: str | None,
    label_column: str | None,
    need_train: bool,
    labels: Sequence[str] | None,
    regression: bool,
) -> tuple[Task, Split | None, dict[str, Split], str]:
    """Read texts to learn from and pairs to be judged by; STS-B stands in for each that is not given.

    Args:
        task: comes back as it is.
        data_dir: GLUE's own files; without it STS-B is taken from the hub.
        train_file: see `read_plain_texts`.
        eval_file: CSV, TSV or JSONL, see `scored_pairs`.
        text_column: columns of the training file, by comma; with `text_pair_column` a column of both files.
        text_pair_column: second text column of both files.
        label_column: column of the score in the evaluation file.
        need_train: read the training texts too.
        labels, regression: have no meaning here.
    Raises:
        UsageError, DataError, MissingPackageError, EnvironmentProblem: see the message.
    """
    if regression:
        raise UsageError(f"task {task.name} has no labels to predict; leave --regression out")
    columns = text_column
    pair: tuple[str, str] | None = None
    if text_pair_column is not None:
        pair = (text_column or "sentence1", text_pair_column)
        columns = ",".join(pair)
    notes = []
    train: Split | None = None
    evals: dict[str, Split] = {}
    if need_train and train_file is not None:
        train = read_plain_texts("train", train_file, columns)
        notes.append(f"texts of {train_file.name}")
    if eval_file is not None:
        evals["validation"] = scored_pairs("validation", eval_file, read_rows(eval_file), pair, label_column)
        notes.append(f"pairs of {eval_file.name}")
    wanted = need_train and train is None
    if wanted or not evals:
        stsb = TASKS[_STSB]
        official, judged, source = (
            from_hub(stsb, need_train=wanted)
            if data_dir is None
            else from_glue_folder(stsb, data_dir, need_train=wanted)
        )
        if wanted and official is not None:
            train = plain_texts("train", (*official.texts, *(official.pairs or [])))
        if not evals:
            evals = {
                name: ScoredPairs(name, split.texts, split.pairs, split.labels)
                for name, split in judged.items()
            }
        notes.append(source)
    return task, train, evals, "; ".join(notes)
