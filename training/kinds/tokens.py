"""Token classification: one tag a word, from the logits of its first piece."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers import AutoModelForTokenClassification

from qexport.serving.word_pieces import IGNORED
from qexport.training.encoded import Encoded
from qexport.training.kinds.base import Kind, Named
from qexport.training.tagged import TaggedEncoded
from qexport.training.tasks import Task

__all__ = ["TOKENS", "Tokens"]


class Tokens(Kind):
    """A tag for each word."""

    name = "tokens"
    outputs = ("logits",)
    architecture = "ForTokenClassification"
    model = "token classifier"
    auto_class = AutoModelForTokenClassification

    def settings(self, task: Task) -> dict[str, Any]:
        """Number and names of the tags."""
        return {
            "num_labels": len(task.labels),
            "id2label": dict(enumerate(task.labels)),
            "label2id": {name: index for index, name in enumerate(task.labels)},
        }

    def misfit(self, config: Any, task: Task) -> str:
        """Another number of tags."""
        if config.num_labels == len(task.labels):
            return ""
        return f"has {config.num_labels} tags, task {task.name} has {len(task.labels)}"

    def labels(self, encoded: Encoded, indices: Sequence[int], width: int) -> Tensor:
        """int64 [B, width], -100 where a piece is not judged."""
        assert isinstance(encoded, TaggedEncoded)
        out = np.full((len(indices), width), IGNORED, dtype=np.int64)
        for row, index in enumerate(indices):
            out[row, : len(encoded.tags[index])] = encoded.tags[index]
        return torch.from_numpy(out)

    def read(self, found: Any, features: Named) -> dict[str, Tensor]:
        """The logits, float32 [B, S, C]."""
        return {"logits": found.logits}

    def label_loss(self, named: Named, labels: Tensor) -> Tensor:
        """Cross-entropy, mean over the judged pieces; labels [B, S]."""
        return functional.cross_entropy(named["logits"].flatten(0, 1), labels.flatten(), ignore_index=IGNORED)

    def logits_loss(self, student: Named, teacher: Named, *, features: Named, temperature: float) -> Tensor:
        """Soft cross-entropy, mean over the tokens that are not padding and over the tags."""
        real = features["attention_mask"] != 0
        ours, theirs = student["logits"][real], teacher["logits"][real]
        soft = functional.softmax(theirs / temperature, dim=-1)
        return -(soft * functional.log_softmax(ours / temperature, dim=-1)).mean()


TOKENS = Tokens()
