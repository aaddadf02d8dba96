"""Question answering: first and last token of the answer, start and end logits [B, S]."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import AutoModelForQuestionAnswering

from qexport.training.distill import logits_loss
from qexport.training.kinds.base import Kind, Named
from qexport.training.tasks import Task

__all__ = ["SPAN", "Span"]

_NO_LOGIT = -1e4  # of a padding token: its share of a softmax is 0 in float32 and bfloat16


class Span(Kind):
    """The place of an answer in a text."""

    name = "span"
    outputs = ("start_logits", "end_logits")
    architecture = "ForQuestionAnswering"
    model = "question answering model"
    auto_class = AutoModelForQuestionAnswering

    def settings(self, task: Task) -> dict[str, Any]:
        """Two logits a token."""
        return {"num_labels": task.num_labels}

    def read(self, found: Any, features: Named) -> dict[str, Tensor]:
        """Start and end logits, float32 [B, S] each."""
        return {name: getattr(found, name) for name in self.outputs}

    def join(self, named: Named) -> Tensor:
        """Both side by side, float32 [B, S, 2]."""
        return torch.stack([named[name] for name in self.outputs], dim=-1)

    def label_loss(self, named: Named, labels: Tensor) -> Tensor:
        """Mean of the two cross-entropies over the tokens of the window; labels int64 [B, 2]."""
        sides = zip(self.outputs, labels.unbind(-1), strict=True)
        losses = [functional.cross_entropy(named[name], places) for name, places in sides]
        return torch.stack(losses).mean()

    def logits_loss(self, student: Named, teacher: Named, *, features: Named, temperature: float) -> Tensor:
        """Sum of the two soft cross-entropies, each a sum over the real tokens and a mean over the rows.

        The papers' code takes the mean over the 384 tokens of a padded window instead; KDLSQ-BERT then gives
        this loss the weight 100. A sum does not depend on how long the padding is.
        """
        padding = features["attention_mask"] == 0
        terms = []
        for name in self.outputs:
            ours, theirs = (side[name].masked_fill(padding, _NO_LOGIT) for side in (student, teacher))
            terms.append(logits_loss(ours, theirs, temperature=temperature) * ours.shape[-1])
        return torch.stack(terms).sum()


SPAN = Span()
