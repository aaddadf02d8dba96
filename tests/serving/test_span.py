"""Answers out of start and end logits: the best span of all windows, the empty answer, agreement."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest
from tiny_models import tiny_tokenizer

from qexport.errors import DataError, ShapeError, UsageError
from qexport.serving.evaluate import EvalRows, Evaluated
from qexport.serving.kinds import get_kind, kind_of_graph
from qexport.serving.kinds.span import MAX_ANSWER, N_BEST, SPAN, Questions, answer
from qexport.serving.parity import compare_engines

CONTEXT = "".join(f"w{number:02d} " for number in range(60))  # word i is characters 4 i to 4 i + 3


def window(first: int, count: int) -> np.ndarray:
    """Offsets of [CLS], one token of a question, [SEP], `count` words of the context, [SEP]."""
    words = [(4 * word, 4 * word + 3) for word in range(first, first + count)]
    return np.array([(-1, -1)] * 3 + words + [(-1, -1)], np.int32)


def logits(rows: int, width: int, values: dict[tuple[int, int, int], float]) -> np.ndarray:
    """Zeros but for {(row, token, 0 for start or 1 for end): value}."""
    out = np.zeros((rows, width, 2), np.float32)
    for place, value in values.items():
        out[place] = value
    return out


def questions(*owners: int, may_be_empty: bool = False) -> Questions:
    """Windows of 40 words, the second and further ones of a question 20 words on."""
    starts = [20 * owners[:index].count(owner) for index, owner in enumerate(owners)]
    return Questions(
        contexts=[CONTEXT] * (max(owners) + 1), owner=np.array(owners),
        offsets=[window(start, 40) for start in starts], may_be_empty=may_be_empty,
    )  # fmt: skip


def test_the_best_span_of_all_windows_is_the_answer() -> None:
    joined = logits(
        3, 44, {(0, 5, 0): 4, (0, 6, 1): 4, (1, 10, 0): 5, (1, 12, 1): 5, (2, 3, 0): 1, (2, 3, 1): 1}
    )
    found = SPAN.decode(questions(0, 0, 1), joined, np.arange(3), {})
    assert found.texts == ["w27 w28 w29", "w00"]  # token 10 of the second window is word 20 + 7
    assert (found.begin.tolist(), found.end.tolist()) == ([108, 0], [119, 3])
    assert (found.score.tolist(), found.window.tolist()) == ([10, 2], [1, 2])


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({(0, 9, 0): 9, (0, 4, 1): 8}, "w06"),  # an end before its start is none
        ({(0, 1, 0): 9, (0, 43, 1): 9, (0, 7, 0): 1, (0, 7, 1): 1}, "w04"),  # outside of the context
        ({(0, 3, 0): 9, (0, 3 + MAX_ANSWER, 1): 9, (0, 3 + MAX_ANSWER, 0): 1}, "w30"),  # one token too long
        ({(0, 3, 0): 9, (0, 2 + MAX_ANSWER, 1): 9}, " ".join(f"w{i:02d}" for i in range(MAX_ANSWER))),
    ],
)
def test_spans_that_cannot_be_are_passed_over(
    values: dict[tuple[int, int, int], float], expected: str
) -> None:
    assert SPAN.decode(questions(0), logits(1, 44, values), np.arange(1), {}).texts == [expected]


def test_only_the_largest_starts_and_ends_are_looked_at() -> None:
    joined = np.zeros((1, 44, 2), np.float32)
    joined[0, 3:43, 0] = np.arange(40, 0, -1)  # starts fall, ends are all behind them
    joined[0, 23:43, 1] = 100.0
    joined[0, 3:5, 1] = 50.0
    found = SPAN.decode(questions(0), joined, np.arange(1), {})
    assert found.texts[0].startswith("w00") and found.tokens[0].tolist() == [3, 23]
    joined[0, 23:43, 0], joined[0, 23:43, 1] = (
        30.0,
        -1.0,
    )  # the 20 largest starts are now 3..12 and some of 23..42
    assert N_BEST == 20 and SPAN.decode(questions(0), joined, np.arange(1), {}).texts == ["w00"]


def test_the_empty_answer_needs_more_than_the_threshold_in_every_window() -> None:
    items = questions(0, 0, may_be_empty=True)
    joined = logits(
        2, 44, {(0, 0, 0): 4, (0, 0, 1): 4, (1, 0, 0): 3, (1, 0, 1): 2, (0, 5, 0): 2, (0, 5, 1): 1}
    )
    assert SPAN.decode(items, joined, np.arange(2), {}).texts == [""]  # 5, the least, exceeds 3 by 2
    assert SPAN.decode(items, joined, np.arange(2), {"null_threshold": 1.9}).texts == [""]
    found = SPAN.decode(items, joined, np.arange(2), {"null_threshold": 2.1})
    assert (found.texts, found.empty_margin.tolist()) == (["w02"], [2.0])
    must = SPAN.decode(questions(0, 0), joined, np.arange(2), {"null_threshold": 0.0})
    assert must.texts == ["w02"]  # a task whose questions all have answers


def test_a_part_of_the_rows_answers_the_questions_that_are_whole() -> None:
    joined = logits(2, 44, {(0, 5, 0): 4, (0, 5, 1): 4, (1, 6, 0): 4, (1, 6, 1): 4})
    found = SPAN.decode(questions(0, 0, 1, 2), joined, np.array([0, 2]), {})
    assert (found.items.tolist(), found.texts, found.owners.tolist()) == ([1], ["w03"], [0, 1])


def test_outputs_are_joined_with_zeros_at_padding() -> None:
    ids = np.ones((2, 3), np.int64)
    named = {name: np.full((2, 3), value) for name, value in (("start_logits", 1.0), ("end_logits", 2.0))}
    mask = np.array([[1, 1, 1], [1, 0, 0]])
    joined = SPAN.join(named, {"input_ids": ids, "attention_mask": mask})
    assert joined.dtype == np.float32
    np.testing.assert_array_equal(joined[1], [[1, 2], [0, 0], [0, 0]])
    with pytest.raises(ShapeError, match=r"end_logits must have the shape \[2, 3\]"):
        SPAN.join({**named, "end_logits": np.zeros((2, 4))}, {"input_ids": ids})


def test_a_graph_is_what_its_outputs_are(tmp_path: object) -> None:
    from pathlib import Path

    shapes = {"start_logits": ["batch", "sequence"], "end_logits": ["batch", "sequence"]}
    assert kind_of_graph(Path("m.onnx"), ["input_ids"], shapes) is SPAN is get_kind("span")
    logits_2d = {"logits": ["batch", 2]}
    assert kind_of_graph(Path("m.onnx"), ["input_ids"], logits_2d).name == "classification"
    assert kind_of_graph(Path("m.onnx"), ["input_ids"], logits_2d, "regression").name == "regression"


def test_engines_agree_where_their_answers_are_the_same_text() -> None:
    items = questions(0, 0, 1)
    batches = [{"input_ids": np.ones((3, 44), np.int64), "attention_mask": np.ones((3, 44), np.int64)}]
    rows = EvalRows(
        task="squad", kind="span", batches=batches, labels=np.zeros((3, 2), np.int64), items=items,
        texts=["who?", "what?"], label_texts=["w02", "w03"], main_metric="f1",
        metrics=lambda *_: {}, interval=lambda *_: (0, 0), paired_drop=lambda *_: None,  # type: ignore[arg-type, return-value]
    )  # fmt: skip
    assert (rows.n_rows, rows.n_items) == (3, 2)
    theirs = logits(3, 44, {(0, 5, 0): 4, (0, 5, 1): 4, (2, 6, 0): 4, (2, 6, 1): 4})
    ours = theirs.copy()
    ours[2, 7] = 5.0
    every = np.arange(3)
    a, b = (Evaluated(side, every, SPAN.decode(items, side, every, {}), {}) for side in (ours, theirs))
    found = compare_engines(rows, "native", a, "student", b)
    assert (found.rows, found.agreement, found.worst_row) == (2, 0.5, 1)
    (row,) = found.first_disagreements
    assert (row.row, row.ours_text, row.theirs_text, row.label_text) == (1, "w04", "w03", "w03")
    assert found.mean_abs == pytest.approx(10 / (3 * 44 * 2))
    broken = ours.copy()
    broken[0] = np.nan
    c = Evaluated(broken, every, SPAN.decode(items, broken, every, {}), {})
    assert compare_engines(rows, "native", c, "student", b).agreement == 0.0


class _Session:
    """A model of windows of 12 tokens whose logits are 9 at "great" and `empty` at [CLS], else 0."""

    kind, batch_size, max_length, config = SPAN, 2, 12, {"pad_token_id": 0}

    def __init__(self, empty: float = 0.0, **decoding: float) -> None:
        self.tokenizer, self.empty, self.decoding = tiny_tokenizer(), empty, decoding
        self.shapes: list[tuple[int, ...]] = []

    def run(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        ids = batch["input_ids"]
        self.shapes.append(ids.shape)
        logits = np.where(ids == self.tokenizer.token_to_id("great"), 9.0, 0.0)
        logits[:, 0] = self.empty
        return {name: logits.astype(np.float32) for name in SPAN.outputs}


def test_a_long_context_is_read_in_parts() -> None:
    session: Any = _Session()
    text = "the film is very so " * 5 + "the plot is great"
    found = answer(session, "the plot", text)  # 29 tokens, 7 to a window, a new one each 3
    assert (found.text, found.start, found.end) == ("great", len(text) - 5, len(text))
    assert session.shapes == [(2, 12)] * 4 + [(1, 10)]
    assert found.score == pytest.approx((np.exp(9) / (np.exp(9) + 5)) ** 2)  # its window has 5 of them


def test_no_answer_is_given_by_models_that_may_say_so() -> None:
    texts = ("the plot", "the film is very so")
    assert answer(cast(Any, _Session(5.0)), *texts).text != ""
    assert answer(cast(Any, _Session(5.0, null_threshold=11.0)), *texts).text != ""
    found = answer(cast(Any, _Session(5.0, null_threshold=9.0)), *texts)
    assert (found.text, found.start, found.end) == ("", None, None)
    assert found.score == pytest.approx((np.exp(5) / (np.exp(5) + 5)) ** 2)


def test_empty_texts_and_questions_without_room_are_one_sentence() -> None:
    session: Any = _Session()
    with pytest.raises(DataError, match="the context is empty"):
        answer(session, "the film", " ")
    with pytest.raises(DataError, match="the question is empty"):
        answer(session, "", "the film")
    with pytest.raises(UsageError, match=r"a question of 9 tokens leaves no room.*windows of 12 tokens"):
        answer(session, "film " * 9, "the film")
