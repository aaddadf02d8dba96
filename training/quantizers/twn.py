"""Ternary weight networks: threshold 0.7 mean|w|, scale = mean of |w| above it.

Source: Li, Zhang and Liu 2016, equations 5 and 6; as used by TernaryBERT (2020), section 3.1.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["ternary_weight_network"]


@torch.no_grad()
def ternary_weight_network(weight: Tensor, granularity: str) -> tuple[Tensor, Tensor]:
    """Ternarise.

    Args:
        weight: float32 [..., K]; leading axes are rows.
        granularity: "row" (threshold and scale per row) or "matrix" (one of each).
    Returns:
        codes float32 [..., K] in {-1, 0, 1}; scale float32 [...] ("row") or [1] ("matrix"), 0 where all
        weights are 0.
    """
    magnitude = weight.abs()
    if granularity == "row":
        keep = (magnitude > 0.7 * magnitude.mean(-1, keepdim=True)).to(weight.dtype)
        scale = (magnitude * keep).sum(-1) / keep.sum(-1).clamp(min=1)
    else:
        keep = (magnitude > 0.7 * magnitude.mean()).to(weight.dtype)
        scale = ((magnitude * keep).sum() / keep.sum().clamp(min=1)).reshape(1)
    return keep.copysign_(weight), scale
