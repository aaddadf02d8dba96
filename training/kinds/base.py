"""Kind: the head of one kind of task, its labels in a batch and its loss terms, in PyTorch.

What the outputs mean, how engines are compared and how text is answered is the other side,
`qexport.serving.kinds`; metrics come with the rows (`qexport.training.judge`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from qexport.training.data import Encoded
from qexport.training.tasks import Task

__all__ = ["Kind", "Named"]

Named = Mapping[str, Tensor]
"""Outputs of a model by the names that its ONNX file gives them."""


class Kind(ABC):
    """One kind of task, as models are made and trained for it; has no state."""

    name: ClassVar[str]
    """As in `Task.kind`."""
    outputs: ClassVar[tuple[str, ...]]
    """Names of the outputs, in the order of the ONNX graph; the same as on the serving side."""
    architecture: ClassVar[str]
    """End of the class names of transformers that have this head: "ForSequenceClassification"."""
    model: ClassVar[str]
    """What a model with this head is called in messages: "sequence classifier"."""
    soft: ClassVar[bool] = True
    """Whether `logits_loss` is a soft cross-entropy, which has a temperature."""
    labelled: ClassVar[bool] = True
    """Whether rows have labels to learn from; without, only a teacher teaches."""
    auto_class: ClassVar[Any]
    """transformers' class that loads one: AutoModelForSequenceClassification."""

    def heads(self, architecture: str) -> bool:
        """Whether a class of transformers with this name has the head."""
        return architecture.endswith(self.architecture)

    def settings(self, task: Task) -> dict[str, Any]:
        """What config.json of a model for `task` says about its head: num_labels, id2label, label2id."""
        return {}

    def misfit(self, config: Any, task: Task) -> str:
        """Why a teacher with this configuration cannot teach `task`, "" when it can.

        Its head is the right one. The text follows "the teacher NAME" and ends before the way out: "has 3
        outputs, task sst2 has 2".
        """
        return ""

    def labels(self, encoded: Encoded, indices: Sequence[int], width: int) -> Tensor:
        """Labels of a batch, axis 0 the rows.

        Args:
            encoded: the rows.
            indices: which of them, in order.
            width: tokens of the batch, for kinds with a label for each token.
        """
        return torch.from_numpy(encoded.labels[list(indices)])

    @abstractmethod
    def read(self, found: Any, features: Named) -> dict[str, Tensor]:
        """The outputs by name; what is traced for the ONNX file, too.

        Args:
            found: what the transformers model returned.
            features: what it was fed, int64 [B, S] each: input_ids, attention_mask.
        """

    def join(self, named: Named) -> Tensor:
        """All outputs in one tensor, float32 [B, ...], as `join` of the serving side gives them."""
        return named[self.outputs[0]]

    @abstractmethod
    def label_loss(self, named: Named, labels: Tensor) -> Tensor:
        """Loss with the true labels, a scalar."""

    @abstractmethod
    def logits_loss(self, student: Named, teacher: Named, *, features: Named, temperature: float) -> Tensor:
        """Loss with the teacher's outputs, a scalar."""
