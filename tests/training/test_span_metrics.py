"""Exact match and F1 of question answering against numbers worked out by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny_squad import question, squad_file

from qexport.errors import UnknownNameError
from qexport.serving.kinds.span import Answers
from qexport.training.span_metrics import (
    SpanScores,
    best_threshold,
    exact_match,
    f1_score,
    normalise_answer,
)
from qexport.training.squad import read_squad
from qexport.training.tasks import get_task


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The  Denver Broncos!", "denver broncos"),
        ("a man, an apple; the end", "man apple end"),
        ("Theatre", "theatre"),  # "the" only as a word
        ("a-b", "ab"),  # punctuation goes first, so that this "a" is no word
        ("U.S.", "us"),
        ("«café»", "«café»"),  # ASCII punctuation only
        ("the", ""),
        ("\ttwo\nlines ", "two lines"),
    ],
)
def test_answers_are_normalised_as_the_official_script_does(text: str, expected: str) -> None:
    assert normalise_answer(text) == expected


def test_exact_match_takes_any_of_the_right_answers() -> None:
    assert exact_match("the Broncos.", ["Denver Broncos", "broncos"]) == 1
    assert exact_match("Broncos of Denver", ["Denver Broncos", "broncos"]) == 0


@pytest.mark.parametrize(
    ("said", "right", "expected"),
    [
        ("Denver Broncos", ["Broncos"], 2 / 3),  # precision 1/2, recall 1
        ("the very very good film", ["very good"], 2 * (2 / 4) * 1 / (2 / 4 + 1)),  # a token counts once
        ("in 1843", ["1843", "in the year 1843"], 0.8),  # 2/3 of the first, 4/5 of the second
        ("Ada", ["Charles"], 0.0),
    ],
)
def test_f1_is_that_of_the_best_answer(said: str, right: list[str], expected: float) -> None:
    assert f1_score(said, right, empty_matches=False) == pytest.approx(expected)


def test_texts_without_tokens_match_in_version_2_only() -> None:
    assert f1_score("", [""], empty_matches=True) == 1
    assert f1_score("the", [""], empty_matches=True) == 1
    assert f1_score("Ada", [""], empty_matches=True) == 0
    assert f1_score("", ["Ada"], empty_matches=True) == 0
    assert f1_score("the", ["a"], empty_matches=False) == 0


def _answers(texts: list[str], margin: list[float] | None = None) -> Answers:
    count = len(texts)
    zeros = np.zeros(count, np.int64)
    return Answers(
        items=np.arange(count), texts=texts, begin=zeros, end=zeros, score=np.zeros(count),
        empty_score=np.array(margin or [0.0] * count), window=zeros, tokens=np.zeros((count, 2), np.int64),
        owners=np.arange(count),
    )  # fmt: skip


@pytest.fixture
def scores(tmp_path: Path) -> SpanScores:
    """Four questions of which two have answers."""
    context = "Ada wrote it in 1843 in London"
    asked = [
        question("1", context, "1843", "in 1843"),
        question("2", context, "Ada", "the"),  # "the" has no tokens and is ignored
        question("3", context, impossible=True),
        question("4", context, impossible=True),
    ]
    path = squad_file(tmp_path / "q.json", [("t", [{"context": context, "qas": asked}])])
    split, _ = read_squad(path, "validation", may_be_empty=True, learn=False)
    return SpanScores(get_task("squad_v2"), split)


def test_version_2_counts_answered_and_empty_questions_apart(scores: SpanScores) -> None:
    found = scores.metrics(_answers(["in 1843 London", "", "", "London"]))
    # 1: F1 of "in 1843" is 2 * (2/3) * 1 / (2/3 + 1) = 0.8; 2: 0; 3: 1; 4: 0
    assert found == pytest.approx(
        {"f1": 0.45, "exact_match": 0.25, "has_ans_f1": 0.4, "has_ans_exact": 0.0, "no_ans_exact": 0.5}
    )


def test_intervals_hold_the_value_and_a_drop_is_paired(scores: SpanScores) -> None:
    good, bad = _answers(["1843", "Ada", "", ""]), _answers(["1843", "Ada", "", "London"])
    low, high = scores.interval("exact_match", bad)
    assert low < 0.75 < high == 1.0
    assert scores.interval("exact_match", good) == (1.0, 1.0)
    drop = scores.paired_drop("exact_match", good, bad)
    assert (drop.drop, drop.low, drop.rows) == (0.25, 0.0, 4)
    assert 0.25 < drop.high <= 1.0
    assert scores.drop_method == "paired bootstrap of 4 questions"
    with pytest.raises(UnknownNameError, match="accuracy"):
        scores.interval("accuracy", good)


def test_articles_are_drawn_as_a_whole(tmp_path: Path) -> None:
    """Two right questions in each even article, two wrong ones in each odd: as wide as 10 draws."""
    articles = []
    for number in range(10):
        asked = [question(f"{number}-{row}", "Ada", "Ada") for row in range(2)]
        articles.append((f"title {number}", [{"context": "Ada", "qas": asked}]))
    split, _ = read_squad(
        squad_file(tmp_path / "q.json", articles), "validation", may_be_empty=False, learn=False
    )
    scores = SpanScores(get_task("squad"), split)
    assert scores.drop_method == "paired bootstrap of 10 articles"
    said = _answers(["Ada" if row // 2 % 2 == 0 else "no" for row in range(20)])
    values = scores._resampled("f1", [said], 4000, 0)[0]
    assert set(np.round(values * 10) / 10) == set(np.round(values, 12))  # always whole articles
    assert float(values.std()) == pytest.approx(np.sqrt(0.25 / 10), rel=0.05)


def test_the_threshold_is_where_training_questions_score_best(scores: SpanScores) -> None:
    # right answers with margins -3 and 0.2, questions without an answer with 0.5 and 4
    spans = _answers(["1843", "Ada", "it", "it"], [-3.0, 0.2, 0.5, 4.0])
    assert best_threshold(scores, spans) == {"null_threshold": pytest.approx(0.35)}
    never = _answers(["no", "no", "it", "it"], [-3.0, 0.2, 0.5, 4.0])
    assert best_threshold(scores, never) == {"null_threshold": -4.0}  # below all: always empty
