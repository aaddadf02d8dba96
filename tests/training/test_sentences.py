"""Plain texts of any columns, and scored pairs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tiny_models import tiny_tokenizer

from qexport.errors import DataError
from qexport.training.data import encode, load_task_data
from qexport.training.rows import read_rows
from qexport.training.sentences import ScoredPairs, read_plain_texts, scored_pairs

Write = Callable[[str, str], Path]

PAIRS = "sentence1\tsentence2\tscore\na b\tc d\t5.0\nc d\te f\t0.5\ne f\ta b\t2\n"


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(name: str, content: str) -> Path:
        path = tmp_path / name
        path.write_text(content, encoding="utf-8")
        return path

    return write


def test_texts_of_all_usual_columns_come_once(write: Write) -> None:
    assert read_plain_texts("train", write("a.tsv", PAIRS)).texts == ["a b", "c d", "e f"]
    assert read_plain_texts("train", write("a.tsv", PAIRS), "sentence2").texts == ["c d", "e f", "a b"]
    named = write("b.csv", "title,body\nx,y\nz,x\n")
    assert read_plain_texts("train", named, "title, body").texts == ["x", "y", "z"]


def test_text_file_has_one_text_a_line(write: Write) -> None:
    assert read_plain_texts("train", write("a.txt", "one\n\n two \none\n")).texts == ["one", "two"]


def test_pairs_share_texts_and_keep_their_scores(write: Write) -> None:
    path = write("dev.tsv", PAIRS)
    pairs = scored_pairs("validation", path, read_rows(path))
    assert pairs.sentences == ["a b", "c d", "e f"]
    assert pairs.places.tolist() == [[0, 1], [1, 2], [2, 0]]
    assert pairs.labels.tolist() == [5.0, 0.5, 2.0]
    part = pairs.take(np.array([2]))
    assert (part.sentences, part.places.tolist()) == (["e f", "a b"], [[0, 1]])
    assert part.digest != pairs.digest
    assert pairs.alone().texts == pairs.sentences


def test_stsb_stands_in_for_what_is_not_given(write: Write, tmp_path: Path) -> None:
    home = tmp_path / "glue" / "STS-B"
    home.mkdir(parents=True)
    for name, text in (("train.tsv", "t"), ("dev.tsv", "d")):
        rows = (f"{text} {n}\t{text} {n + 1}\t{n}" for n in range(3))
        (home / name).write_text("sentence1\tsentence2\tscore\n" + "\n".join(rows) + "\n")
    data = load_task_data("embedding", data_dir=tmp_path / "glue")
    assert data.train is not None
    assert data.train.texts == ["t 0", "t 1", "t 2", "t 3"]
    assert isinstance(data.evals["validation"], ScoredPairs)
    assert len(data.evals["validation"]) == 3
    own = load_task_data(
        "embedding", data_dir=tmp_path / "glue", train_file=write("my.txt", "one\ntwo\n"), eval_samples=2
    )
    assert own.train is not None
    assert own.train.texts == ["one", "two"]
    assert len(own.evals["validation"]) == 2
    encoded = encode(own.evals["validation"], tiny_tokenizer(), 16, tmp_path / "cache")
    assert len(encoded) == len(own.evals["validation"].sentences)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("name", "content", "columns", "message"),
    [
        ("a.csv", "x,y\n1,2\n", None, r"no column with a usual name .* 'x', 'y'; name the text columns"),
        ("a.csv", "text\nx\n", "body", r"a.csv has no column 'body'"),
        ("a.txt", "x\n", "text", r"one text a line and has no columns"),
        ("a.txt", " \n", None, r"a.txt holds no texts"),
        ("a.jsonl", '{"text": "x"}\n{"text": 3}\n', None, r"line 2: column 'text' must hold text, got 3"),
    ],
)
def test_texts_that_cannot_be_read_are_refused(
    write: Write, name: str, content: str, columns: str | None, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        read_plain_texts("train", write(name, content), columns)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "sentence1\tsentence2\tscore\na\tb\tx\nc\td\t1\n",
            r"line 2: column 'score' must hold a finite number",
        ),
        ("sentence1\tsentence2\na\tb\nc\td\n", r"no column 'score', .* needs pairs of texts and a score"),
        ("sentence1\tsentence2\tscore\na\tb\t1\n", r"at least two pairs to rank, got 1"),
    ],
)
def test_pairs_that_cannot_be_ranked_are_refused(write: Write, content: str, message: str) -> None:
    path = write("dev.tsv", content)
    with pytest.raises(DataError, match=message):
        scored_pairs("validation", path, read_rows(path))
