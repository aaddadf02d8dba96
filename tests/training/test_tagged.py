"""Tagged rows: label order, samples, windows, the hub, and what judges them."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tiny_models import tiny_tokenizer
from tiny_tags import write_conll

from qexport.errors import DataError, UsageError
from qexport.training.data import encode, load_task_data
from qexport.training.judge import judge_of
from qexport.training.tagged import TaggedEncoded, TaggedSplit

LABELS = ("O", "B-LOC", "B-PER", "I-PER")


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    return {
        "train_file": write_conll(tmp_path / "train.conll", 10, seed=1),
        "eval_file": write_conll(tmp_path / "dev.conll", 6, seed=2),
    }


def perfect(encoded: TaggedEncoded, tags: int) -> np.ndarray:
    """Logits [n, S, C] whose largest is the right tag at every judged piece."""
    joined = np.zeros((len(encoded), int(encoded.lengths().max()), tags), np.float32)
    for row, labels in enumerate(encoded.tags):
        joined[row, np.flatnonzero(labels >= 0), labels[labels >= 0]] = 3.0
    return joined


def test_labels_are_those_of_the_files_or_of_the_model(files: dict[str, Path]) -> None:
    data = load_task_data("ner", **files)
    assert data.task.labels == LABELS
    assert "(IOB2)" in data.source
    turned = load_task_data("ner", **files, labels=LABELS[::-1])
    assert turned.task.labels == LABELS[::-1]
    assert isinstance(data.train, TaggedSplit)
    assert isinstance(turned.train, TaggedSplit)
    np.testing.assert_array_equal(turned.train.labels, 3 - data.train.labels)
    assert turned.fingerprint != data.fingerprint
    assert load_task_data("ner", **files).fingerprint == data.fingerprint
    with pytest.raises(DataError, match=r"train.conll, line 6: tag 'B-PER' is not among those"):
        load_task_data("ner", **files, labels=("O", "B-LOC"))


def test_sample_keeps_whole_sentences(files: dict[str, Path]) -> None:
    part = load_task_data("ner", **files, train_samples=4).train
    assert isinstance(part, TaggedSplit)
    assert [len(tags) for tags in part.tags] == [len(words) for words in part.words]
    assert len(part) == 4


@pytest.mark.parametrize("max_length", [64, 6])
def test_right_tags_score_1_when_sentences_take_several_windows(
    files: dict[str, Path], max_length: int
) -> None:
    data = load_task_data("ner", **files)
    split = data.evals["validation"]
    encoded = encode(split, tiny_tokenizer(), max_length)
    assert isinstance(encoded, TaggedEncoded)
    assert (len(encoded) > len(split)) == (max_length == 6)
    judge = judge_of(data.task, split, encoded)
    joined = perfect(encoded, len(LABELS))
    assert judge.score(joined, {}) == {"entity_f1": 1.0, "entity_precision": 1.0, "entity_recall": 1.0}
    row, piece = (int(array[0]) for array in np.nonzero(joined[:, :, 1]))  # the first LOC becomes O
    joined[row, piece] = 0.0
    entities = sum(tag.startswith("B-") for tag in judge.label_texts or ())
    assert judge.score(joined, {})["entity_recall"] == 1 - 1 / entities
    assert len(judge.texts) == len(judge.items) == len(judge.label_texts or ())


def test_options_of_texts_are_refused(files: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="leave --text-pair-column out"):
        load_task_data("ner", **files, text_pair_column="b")
    with pytest.raises(UsageError, match="give --data and --eval"):
        load_task_data("ner")
    old = tmp_path / "iob1.conll"
    old.write_text("good I-PER\nfilm O\n")
    with pytest.raises(DataError, match=r"train.conll has tags in IOB2, .*iob1.conll in IOB1"):
        load_task_data("ner", **{**files, "eval_file": old})


def test_hub_rows_have_their_names(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC", "B-MISC", "I-MISC"]

    class Rows(dict[str, Any]):
        column_names = ("tokens", "ner_tags")
        features = {"ner_tags": SimpleNamespace(feature=SimpleNamespace(names=names))}  # noqa: RUF012

    def load_dataset(name: str, *, split: str) -> Rows:
        assert name == "lhoestq/conll2003"
        return Rows(tokens=[["EU", "calls"], [split]], ner_tags=[[3, 0], [1]])

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    data = load_task_data("conll2003")
    assert data.task.labels == tuple(names)
    assert data.train is not None
    assert (data.train.texts, data.train.labels.tolist()) == (["EU calls", "train"], [3, 0, 1])
    assert list(data.evals) == ["validation"]
