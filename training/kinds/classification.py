"""Sequence classification and regression, one prediction a row."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import AutoModelForSequenceClassification

from qexport.training.distill import label_loss, logits_loss
from qexport.training.kinds.base import Kind, Named
from qexport.training.tasks import Task

__all__ = ["CLASSIFICATION", "REGRESSION", "Classification", "Regression"]


class Classification(Kind):
    """One of several classes."""

    name = "classification"
    outputs = ("logits",)
    architecture = "ForSequenceClassification"
    model = "sequence classifier"
    auto_class = AutoModelForSequenceClassification
    regression = False

    def settings(self, task: Task) -> dict[str, Any]:
        """Number and names of the classes."""
        return {
            "num_labels": task.num_labels,
            "id2label": dict(enumerate(task.labels)),
            "label2id": {name: index for index, name in enumerate(task.labels)},
            "problem_type": "single_label_classification",
        }

    def misfit(self, config: Any, task: Task) -> str:
        """Another number of outputs."""
        if config.num_labels == task.num_labels:
            return ""
        return f"has {config.num_labels} outputs, task {task.name} has {task.num_labels}"

    def read(self, found: Any, features: Named) -> dict[str, Tensor]:
        """The logits, float32 [B, C]."""
        return {"logits": found.logits}

    def label_loss(self, named: Named, labels: Tensor) -> Tensor:
        """Cross-entropy, or the mean squared error of a regression; labels [B]."""
        return label_loss(named["logits"], labels, regression=self.regression)

    def logits_loss(self, student: Named, teacher: Named, *, features: Named, temperature: float) -> Tensor:
        """Soft cross-entropy, or the mean squared difference of a regression."""
        return logits_loss(
            student["logits"], teacher["logits"], temperature=temperature, regression=self.regression
        )


class Regression(Classification):
    """One number."""

    name = "regression"
    regression = True
    soft = False

    def settings(self, task: Task) -> dict[str, Any]:
        """One output."""
        return {"num_labels": 1, "problem_type": "regression"}


CLASSIFICATION = Classification()
REGRESSION = Regression()
