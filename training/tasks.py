"""Task: what a data set asks of a model: its columns, labels, metrics and maximum length.

Label names and their order are those of `nyu-mll/glue` on the Hugging Face hub, so that the `id2label` of a
student agrees with other fine-tuned checkpoints. Metrics are GLUE's own (Wang et al. 2019, table 1) and
SQuAD's (Rajpurkar et al. 2016, 2018); `main_metric` and `max_length` follow the training scripts of
TernaryBERT, BinaryBERT and BiT.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from qexport.errors import UnknownNameError, UsageError

__all__ = ["TASKS", "Task", "custom_task", "fold_name", "get_task"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A task on texts, their words, pairs of texts, or questions about a text."""

    name: str
    """Registered name such as "sst2", or the one given to `custom_task`."""
    kind: Literal["classification", "regression", "span", "tokens", "embedding"]
    """Classes, one real number, the place of an answer in a text, a tag for each word, or a vector; see
    `qexport.training.kinds`."""
    labels: tuple[str, ...]
    """Class or tag names in id order; empty where there are none, and where the files tell the tags."""
    columns: tuple[str] | tuple[str, str]
    """Text column(s), as the hub (or the user's file) names them."""
    metrics: tuple[str, ...]
    """All metrics that are reported; see METRICS in training/metrics.py, ENTITY_METRICS in
    training/entity_metrics.py."""
    main_metric: str
    """The metric by which checkpoints are selected; one of `metrics`."""
    max_length: int = 128
    """Tokens kept of a sentence or pair, special tokens included."""
    eval_splits: tuple[str, ...] = ("validation",)
    """Evaluation splits; the first one selects checkpoints."""
    label_column: str = "label"
    """Column of the label on the hub, or in the user's file."""
    hub_id: str | None = None
    """Data set on the Hugging Face hub."""
    hub_config: str | None = None
    """Its configuration."""
    glue_folder: str | None = None
    """Folder of the task in GLUE's own download, such as "SST-2"."""
    hub_labels: tuple[str, ...] = ()
    """The hub's names of `labels`, where they differ."""
    glue_columns: tuple[str] | tuple[str, str] = ("sentence",)
    """Text column(s) in the header of GLUE's own files; CoLA has no header and uses column numbers from 0."""
    glue_writes: Literal["names", "ids"] = "ids"
    """How GLUE's own files write a class."""
    glue_label: str = "label"
    """Label column in GLUE's own files."""

    @property
    def num_labels(self) -> int:
        """Width of the logits: classes or tags, 1 for regression, 2 (first, last token) for a span."""
        return {"regression": 1, "span": 2}.get(self.kind, len(self.labels))


def _glue(
    name: str,
    folder: str,
    labels: tuple[str, ...],
    columns: tuple[str] | tuple[str, str],
    metrics: tuple[str, ...],
    main_metric: str,
    *,
    max_length: int = 128,
    eval_splits: tuple[str, ...] = ("validation",),
    glue_columns: tuple[str] | tuple[str, str] | None = None,
    glue_label: str = "label",
    glue_writes: Literal["names", "ids"] = "ids",
) -> Task:
    return Task(
        name=name,
        kind="classification" if labels else "regression",
        labels=labels,
        columns=columns,
        metrics=metrics,
        main_metric=main_metric,
        max_length=max_length,
        eval_splits=eval_splits,
        hub_id="nyu-mll/glue",
        hub_config=name,
        glue_folder=folder,
        glue_columns=columns if glue_columns is None else glue_columns,
        glue_label=glue_label,
        glue_writes=glue_writes,
    )


def _squad(name: str, hub_id: str, metrics: tuple[str, ...]) -> Task:
    return Task(
        name=name, kind="span", labels=(), columns=("question", "context"), metrics=metrics,
        main_metric="f1", max_length=384, hub_id=hub_id, label_column="answers",
    )  # fmt: skip


_PAIR = ("sentence1", "sentence2")
_CONLL_2003 = ("O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC", "B-MISC", "I-MISC")
_NLI = ("entailment", "not_entailment")

_ALL = (
    _glue(
        "cola", "CoLA", ("unacceptable", "acceptable"), ("sentence",), ("matthews",), "matthews",
        max_length=64, glue_columns=("3",), glue_label="1",
    ),
    _glue("sst2", "SST-2", ("negative", "positive"), ("sentence",), ("accuracy",), "accuracy", max_length=64),
    _glue(
        "mrpc", "MRPC", ("not_equivalent", "equivalent"), _PAIR, ("accuracy", "f1", "acc_and_f1"), "accuracy",
        glue_columns=("#1 String", "#2 String"), glue_label="Quality",
    ),
    _glue("stsb", "STS-B", (), _PAIR, ("pearson", "spearman", "corr"), "corr", glue_label="score"),
    _glue(
        "qqp", "QQP", ("not_duplicate", "duplicate"), ("question1", "question2"),
        ("accuracy", "f1", "acc_and_f1"), "accuracy", glue_label="is_duplicate",
    ),
    _glue(
        "mnli", "MNLI", ("entailment", "neutral", "contradiction"), ("premise", "hypothesis"),
        ("accuracy",), "accuracy", eval_splits=("validation_matched", "validation_mismatched"),
        glue_columns=_PAIR, glue_label="gold_label", glue_writes="names",
    ),
    _glue("qnli", "QNLI", _NLI, ("question", "sentence"), ("accuracy",), "accuracy", glue_writes="names"),
    _glue("rte", "RTE", _NLI, _PAIR, ("accuracy",), "accuracy", glue_writes="names"),
    _glue("wnli", "WNLI", ("not_entailment", "entailment"), _PAIR, ("accuracy",), "accuracy"),
    Task(
        name="rotten_tomatoes", kind="classification", labels=("negative", "positive"), columns=("text",),
        metrics=("accuracy",), main_metric="accuracy", max_length=64,
        hub_id="cornell-movie-review-data/rotten_tomatoes", hub_labels=("neg", "pos"),
    ),
    _squad("squad", "rajpurkar/squad", ("f1", "exact_match")),
    _squad(
        "squad_v2", "rajpurkar/squad_v2",
        ("f1", "exact_match", "has_ans_f1", "has_ans_exact", "no_ans_exact"),
    ),
    Task(
        name="ner", kind="tokens", labels=(), columns=("tokens",), label_column="ner_tags",
        metrics=("entity_f1", "entity_precision", "entity_recall"), main_metric="entity_f1",
    ),
    Task(
        name="conll2003", kind="tokens", labels=_CONLL_2003, columns=("tokens",), label_column="ner_tags",
        metrics=("entity_f1", "entity_precision", "entity_recall"), main_metric="entity_f1",
        hub_id="lhoestq/conll2003",
    ),
    Task(
        name="embedding", kind="embedding", labels=(), columns=_PAIR, label_column="score",
        metrics=("spearman", "pearson"), main_metric="spearman",
    ),
)  # fmt: skip

TASKS = MappingProxyType({task.name: task for task in _ALL})
"""Every registered task by name."""


def fold_name(name: str) -> str:
    """Drop case, hyphens, underscores and blanks, so that "SST-2", "sst_2" and "sst2" are one name."""
    return "".join(character for character in name.casefold() if character not in "-_ ")


def get_task(name: str) -> Task:
    """Look up a task; "SST-2", "sts-b" and "rotten-tomatoes" are accepted spellings.

    Raises:
        UnknownNameError: no such task; the message names the nearest.
    """
    folded = fold_name(name)
    for task in TASKS.values():
        if fold_name(task.name) == folded:
            return task
    raise UnknownNameError("task", name, TASKS)


def custom_task(
    *,
    labels: Sequence[str] = (),
    columns: tuple[str] | tuple[str, str] = ("text",),
    label_column: str = "label",
    regression: bool = False,
    max_length: int = 128,
    name: str = "custom",
) -> Task:
    """Describe the user's own data.

    Args:
        labels: class names in id order, at least two and all different; empty for regression.
        columns: the text column, or the two columns of a pair.
        label_column: where the label is.
        regression: the label is a number.
        max_length: tokens kept, special tokens included.
        name: how reports call it.
    Returns:
        Metrics: accuracy and F1 of class 1 for two classes, accuracy and macro F1 for more, Pearson, Spearman
        and their mean for regression. Checkpoints are selected by accuracy or by that mean.
    Raises:
        UsageError: fewer than two labels, the same label twice, or labels given for regression.
    """
    names = tuple(labels)
    if regression:
        if names:
            raise UsageError(f"a regression task has no label names, got {', '.join(names)}; leave them out")
        metrics: tuple[str, ...] = ("pearson", "spearman", "corr")
        return Task(
            name=name, kind="regression", labels=(), columns=columns, metrics=metrics, main_metric="corr",
            max_length=max_length, label_column=label_column,
        )  # fmt: skip
    if len(names) < 2:
        raise UsageError(
            f"a classification task needs at least two labels, got {list(names)}; add rows of another class, "
            "or pass --regression when the label is a number to predict"
        )
    if len(set(names)) != len(names):
        raise UsageError(f"label names must all be different, got {list(names)}; remove the repeated one")
    f1 = "f1" if len(names) == 2 else "f1_macro"
    return Task(
        name=name, kind="classification", labels=names, columns=columns, metrics=("accuracy", f1),
        main_metric="accuracy", max_length=max_length, label_column=label_column,
    )  # fmt: skip
