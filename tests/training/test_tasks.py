"""The task registry: GLUE's labels in the hub's order, official metrics, spellings, the user's own tasks."""

from __future__ import annotations

import pytest

from qexport.errors import UnknownNameError, UsageError
from qexport.training.entity_metrics import ENTITY_METRICS
from qexport.training.metrics import METRICS
from qexport.training.tasks import TASKS, custom_task, get_task

# ClassLabel names of nyu-mll/glue, in id order: a student's id2label must agree with published checkpoints.
HUB_LABELS = {
    "cola": ("unacceptable", "acceptable"),
    "sst2": ("negative", "positive"),
    "mrpc": ("not_equivalent", "equivalent"),
    "stsb": (),
    "qqp": ("not_duplicate", "duplicate"),
    "mnli": ("entailment", "neutral", "contradiction"),
    "qnli": ("entailment", "not_entailment"),
    "rte": ("entailment", "not_entailment"),
    "wnli": ("not_entailment", "entailment"),
}


@pytest.mark.parametrize("name", HUB_LABELS)
def test_glue_task_has_the_hub_label_order(name: str) -> None:
    assert TASKS[name].labels == HUB_LABELS[name]
    assert (TASKS[name].hub_id, TASKS[name].hub_config) == ("nyu-mll/glue", name)


SENTENCE_TASKS = [name for name, task in TASKS.items() if task.kind in ("classification", "regression")]


@pytest.mark.parametrize("name", SENTENCE_TASKS)
def test_task_is_consistent(name: str) -> None:
    task = TASKS[name]
    assert task.name == name
    assert task.main_metric in task.metrics
    assert set(task.metrics) <= set(METRICS)
    assert task.num_labels == (len(task.labels) or 1)
    assert (task.kind == "regression") == (task.labels == ())
    assert len(task.glue_columns) == len(task.columns)
    assert task.max_length == (64 if name in ("cola", "sst2", "rotten_tomatoes") else 128)


def test_tasks_of_words_and_vectors_have_their_metrics() -> None:
    for name, metrics in (("ner", ENTITY_METRICS), ("conll2003", ENTITY_METRICS), ("embedding", METRICS)):
        assert set(TASKS[name].metrics) <= set(metrics)
        assert TASKS[name].main_metric in TASKS[name].metrics
    assert (TASKS["conll2003"].num_labels, TASKS["conll2003"].labels[0]) == (9, "O")


def test_main_metrics_are_those_checkpoints_are_selected_by() -> None:
    mains = {name: TASKS[name].main_metric for name in SENTENCE_TASKS}
    others = {name: metric for name, metric in mains.items() if metric != "accuracy"}
    assert others == {"cola": "matthews", "stsb": "corr"}
    assert TASKS["mnli"].eval_splits == ("validation_matched", "validation_mismatched")


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("sst-2", "sst2"),
        ("SST-2", "sst2"),
        ("sts-b", "stsb"),
        ("STS_B", "stsb"),
        ("Rotten-Tomatoes", "rotten_tomatoes"),
    ],
)
def test_get_task_accepts_spelling(spelling: str, name: str) -> None:
    assert get_task(spelling) is TASKS[name]


def test_get_task_suggests_the_nearest_when_unknown() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown task 'sst3'; did you mean 'sst2'\?"):
        get_task("sst3")


def test_registry_cannot_be_changed() -> None:
    with pytest.raises(TypeError):
        TASKS["sst2"] = TASKS["cola"]  # type: ignore[index]


def test_custom_task_metrics_follow_the_number_of_classes() -> None:
    assert custom_task(labels=("a", "b")).metrics == ("accuracy", "f1")
    assert custom_task(labels=("a", "b", "c")).metrics == ("accuracy", "f1_macro")
    regression = custom_task(regression=True)
    assert (regression.main_metric, regression.num_labels, regression.kind) == ("corr", 1, "regression")


@pytest.mark.parametrize(
    ("labels", "regression", "message"),
    [
        ((), False, "at least two labels"),
        (("a",), False, "at least two labels"),
        (("a", "b", "a"), False, "must all be different"),
        (("a", "b"), True, "no label names"),
    ],
)
def test_custom_task_refuses(labels: tuple[str, ...], regression: bool, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        custom_task(labels=labels, regression=regression)
