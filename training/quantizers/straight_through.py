"""Straight-through estimator: the quantised value forward, the latent value's gradient backward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["straight_through"]


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, latent: Tensor, quantized: Tensor, clip: float) -> Tensor:
        ctx.clip = clip
        if clip > 0:
            ctx.save_for_backward(latent)
        return quantized

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = gradients
        if ctx.clip > 0:
            (latent,) = ctx.saved_tensors
            gradient = gradient * (latent.abs() < ctx.clip)
        return gradient, None, None


_apply: Callable[[Tensor, Tensor, float], Tensor] = _StraightThrough.apply


def straight_through(latent: Tensor, quantized: Tensor, clip: float = 0.0) -> Tensor:
    """`quantized` in the forward pass; its gradient goes to `latent` unchanged.

    Args:
        latent: any shape, the value that was quantised.
        quantized: same shape, computed without gradient.
        clip: with c > 0 the gradient is zero where |latent| >= c (zero at the bounds too, as in TernaryBERT's
            released code); 0 passes everything.
    """
    return _apply(latent, quantized, clip)
