"""SQuAD files: layout, answers that are elsewhere, articles and paragraphs held out, windows with answers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tiny_models import tiny_tokenizer
from tiny_squad import question, squad_file, write_questions

from qexport.errors import DataError, QexportError, UsageError
from qexport.training.data import encode, load_task_data
from qexport.training.spans import EncodedSpans, SpanSplit, encode_spans
from qexport.training.squad import read_squad


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Three questions: one with its answer elsewhere, one without an answer."""
    context = "the film is good and the plot is bad"
    asked = [
        question("a", context, "good"),
        question("b", context, "bad"),
        question("c", context, impossible=True),
    ]
    asked[1]["answers"][0]["answer_start"] = 3
    return squad_file(tmp_path / "mixed.json", [("films", [{"context": context, "qas": asked}])])


def test_answers_that_are_elsewhere_are_not_learned_from(mixed: Path) -> None:
    split, left_out = read_squad(mixed, "train", may_be_empty=False, learn=True)
    assert (split.ids, split.texts, split.titles) == (["a"], ["the film"], ["films"])
    assert split.answers == [[("good", 12)]]
    assert left_out == (
        ", 1 question left out whose answers do not stand where the file says, 1 question left out that have "
        "no answer"
    )
    judged, left_out = read_squad(mixed, "validation", may_be_empty=True, learn=False)
    assert (judged.ids, judged.labels.tolist(), left_out) == (["a", "b", "c"], [1, 1, 0], "")


def test_take_and_digest_follow_the_answers(mixed: Path) -> None:
    split, _ = read_squad(mixed, "validation", may_be_empty=True, learn=False)
    part = split.take(np.array([2, 0]))
    assert (part.ids, part.answers, part.may_be_empty) == (["c", "a"], [[], [("good", 12)]], True)
    assert part.digest != split.digest == split.take(np.arange(3)).digest


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not valid JSON"),
        ("[]", "the file has no 'data'"),
        ('{"data": {}}', "'data' of the file must be a list, got dict"),
        ('{"data": [{"paragraphs": [{"qas": []}]}]}', "paragraph 0 of article 0 has no 'context'"),
        ('{"data": [{"paragraphs": [{"context": "x", "qas": [{"question": "y"}]}]}]}', "has no 'id'"),
        ('{"data": []}', "holds no questions; give"),
    ],
)
def test_other_layouts_are_one_sentence(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "q.json"
    path.write_text(content)
    with pytest.raises(DataError, match=message) as caught:
        read_squad(path, "train", may_be_empty=False, learn=True)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        '{"data": null}',
        '{"data": [{"paragraphs": null}]}',
        '{"data": [{"paragraphs": [{"context": "x", "qas": null}]}]}',
    ],
)
def test_nulls_in_own_files_are_one_sentence(content: str, tmp_path: Path) -> None:
    path = tmp_path / "q.json"
    path.write_text(content)
    with pytest.raises(DataError, match=str(path)):
        load_task_data(None, train_file=path, eval_file=path)


def test_own_files_say_whether_answers_may_be_empty(tmp_path: Path) -> None:
    plain = write_questions(tmp_path / "plain.json", 2, seed=1)
    other = write_questions(tmp_path / "other.json", 2, seed=2)
    data = load_task_data(None, train_file=plain, eval_file=other)
    assert (data.task.name, data.task.kind, data.task.metrics) == ("custom", "span", ("f1", "exact_match"))
    assert (len(data.train or []), len(data.evals["validation"]), data.tuning) == (16, 16, None)
    assert data.source.startswith("own files: plain.json, other.json; ")  # some contexts are alike by chance
    partly = write_questions(tmp_path / "partly.json", 4, seed=3, empty=0.5)
    data = load_task_data(None, train_file=partly, eval_file=partly)
    assert data.task.metrics[2:] == ("has_ans_f1", "has_ans_exact", "no_ans_exact")
    assert "paragraphs stand in both files" in data.source
    assert isinstance(data.train, SpanSplit) and isinstance(data.tuning, SpanSplit)
    assert len(data.train) + len(data.tuning) == 32 and len(data.tuning) >= 3
    assert not set(data.train.contexts) & set(data.tuning.contexts)


def test_articles_are_held_out_whole_and_alike_for_verify(tmp_path: Path) -> None:
    path = write_questions(tmp_path / "train.json", 10)
    data = load_task_data("squad", train_file=path, eval_articles=0.2)
    train, validation = data.train, data.evals["validation"]
    assert isinstance(train, SpanSplit) and isinstance(validation, SpanSplit)
    assert (len(set(train.titles)), len(set(validation.titles))) == (8, 2)
    assert not set(train.titles) & set(validation.titles)
    assert data.source == "own file: train.json; validation is 2 of its 10 articles, which are not trained on"
    again = load_task_data("squad", eval_file=path, eval_articles=0.2, need_train=False)
    assert again.evals["validation"].digest == validation.digest


def test_a_folder_of_parts_says_that_it_is_one(tmp_path: Path) -> None:
    write_questions(tmp_path / "train-v1.1-part.json", 2, seed=1)
    write_questions(tmp_path / "train-v1.1-part2.json", 1, seed=2)
    write_questions(tmp_path / "dev-v1.1.json", 1, seed=3)
    data = load_task_data("squad", data_dir=tmp_path)
    assert len(data.train or []) == 24
    assert data.source == (
        "SQuAD files: train-v1.1-part.json; train-v1.1-part2.json (24 questions, parts of the official "
        "split); dev-v1.1.json"
    )
    write_questions(tmp_path / "train-v1.1.json", 1, seed=4)
    whole = load_task_data("squad", data_dir=tmp_path)
    assert whole.source == "SQuAD files: train-v1.1.json; dev-v1.1.json"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task_name": "squad", "data_dir": Path("absent")}, "data folder absent does not exist"),
        ({"task_name": "squad_v2", "data_dir": Path()}, "has no dev-v2.0.json"),
        (
            {"task_name": "squad", "train_file": Path("absent.json"), "eval_file": Path("x.json")},
            "does not exist",
        ),
        ({"task_name": "squad", "train_file": Path("one.json")}, "need --eval, or --eval-articles"),
        (
            {"task_name": "squad", "train_file": Path("one.json"), "eval_articles": 0.5},
            "at least two articles",
        ),
        (
            {"task_name": "squad", "train_file": Path("one.json"), "eval_articles": 2.0},
            "between 0 and 1, got 2",
        ),
        ({"task_name": "squad", "eval_file": Path("one.json")}, "needs --data"),
        ({"task_name": "sst2", "eval_articles": 0.5}, "--eval-articles is for question answering"),
    ],
)
def test_options_that_do_not_fit_are_one_sentence(
    options: dict[str, object], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_questions(tmp_path / "one.json", 1)
    with pytest.raises(QexportError, match=message):
        load_task_data(**options)  # type: ignore[arg-type]


def test_windows_cover_the_context_and_hold_the_answer_where_it_is_whole(tmp_path: Path) -> None:
    context = "the plot " * 10 + "is very good so " + "the film " * 10
    path = squad_file(
        tmp_path / "q.json", [("t", [{"context": context, "qas": [question("a", context, "very good")]}])]
    )
    split, _ = read_squad(path, "validation", may_be_empty=False, learn=True)
    encoded = encode_spans(split, tiny_tokenizer(), 17)  # [CLS] the film [SEP], 12 tokens of 44, [SEP]
    assert encoded.questions is not None
    seen = set()
    for ids, types, places, (first, last) in zip(
        encoded.input_ids,
        encoded.token_type_ids or [],
        encoded.questions.offsets,
        encoded.labels,
        strict=True,
    ):
        assert len(ids) <= 17 and ids[0] == 2 and ids[-1] == 3
        inside = places[:, 0] >= 0
        assert inside.tolist() == [False] * 4 + [True] * (len(ids) - 5) + [False]
        np.testing.assert_array_equal(types, [0] * 4 + [1] * (len(ids) - 4))
        seen |= set(places[inside, 0].tolist())
        whole = places[inside, 0].min() <= context.index("very") and places[inside, 1].max() >= context.index(
            " so"
        )
        assert bool(first) == whole
        if whole:
            assert context[places[first, 0] : places[last, 1]] == "very good"
    assert len(seen) == 44
    assert encoded.labels.any(axis=1).sum() >= 2  # half of a window is in the next one


def test_evaluation_rows_keep_offsets_and_training_rows_do_not(tmp_path: Path) -> None:
    path = write_questions(tmp_path / "q.json", 2)
    data = load_task_data("squad", train_file=path, eval_file=path)
    assert data.train is not None
    train, validation = (
        encode(split, tiny_tokenizer(), 32) for split in (data.train, data.evals["validation"])
    )
    assert isinstance(train, EncodedSpans) and train.questions is None
    assert isinstance(validation, EncodedSpans) and len(validation.questions or []) == 16
    with pytest.raises(UsageError, match=r"a question of 2 tokens leaves no room.*windows of 5 tokens"):
        encode(data.train, tiny_tokenizer(), 5)


def test_hub_rows_become_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    class Hub:
        @staticmethod
        def load_dataset(name: str, *, split: str) -> list[dict[str, object]]:
            answers = {"text": ["good"], "answer_start": [12]}
            row = {"id": split, "question": "the film", "context": "the film is good", "title": name}
            return [{**row, "answers": answers}]

    monkeypatch.setattr("importlib.import_module", lambda name: Hub)
    data = load_task_data("squad")
    split = data.evals["validation"]
    assert isinstance(split, SpanSplit)
    assert (split.ids, split.titles, split.answers) == (["validation"], ["rajpurkar/squad"], [[("good", 12)]])
    assert json.dumps(data.source) == '"Hugging Face hub rajpurkar/squad"'
