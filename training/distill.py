"""Distillation losses between a student and a teacher, layer by layer of those that are compared.

Source: TernaryBERT (2020), section 3.3, with the conventions of its released code: padding positions are not
excluded, scores of masked keys count as 0 on both sides, the soft cross-entropy is a mean over sentences and
classes. Where the numbers of heads differ, their mean is compared: that is ours.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["attention_loss", "hidden_loss", "label_loss", "logits_loss"]

_MASKED = -100.0  # scores at or below are padding keys


def hidden_loss(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """Sum over the embedding output and all layers of the mean squared difference; tensors [B, S, D]."""
    return torch.stack([functional.mse_loss(s, t) for s, t in zip(student, teacher, strict=True)]).sum()


def attention_loss(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """Sum over layers of the mean squared difference of masked scores before the softmax.

    Args:
        student, teacher: float32 [B, H, S, S] of each layer; a score of -100 or less counts as 0. Where H is
            not the same for both, means over H are compared.
    """
    terms = []
    for s, t in zip(student, teacher, strict=True):
        s = torch.where(s <= _MASKED, torch.zeros_like(s), s)
        t = torch.where(t <= _MASKED, torch.zeros_like(t), t)
        if s.shape[1] != t.shape[1]:
            s, t = s.mean(1), t.mean(1)
        terms.append(functional.mse_loss(s, t))
    return torch.stack(terms).sum()


def logits_loss(
    student: Tensor, teacher: Tensor, *, temperature: float = 1.0, regression: bool = False
) -> Tensor:
    """Soft cross-entropy, mean over [B, C].

    Regression takes the mean squared difference instead: the softmax of a single logit is always 1.
    """
    if regression:
        return functional.mse_loss(student, teacher)
    soft = functional.softmax(teacher / temperature, dim=-1)
    return -(soft * functional.log_softmax(student / temperature, dim=-1)).mean()


def label_loss(logits: Tensor, labels: Tensor, *, regression: bool = False) -> Tensor:
    """Cross-entropy with class ids [B], or mean squared error with numbers [B]; logits [B, C]."""
    if regression:
        return functional.mse_loss(logits.squeeze(-1), labels.float())
    return functional.cross_entropy(logits, labels)
