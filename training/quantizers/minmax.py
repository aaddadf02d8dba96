"""Symmetric uniform weights: the largest magnitude maps to the largest code.

Source: Q8BERT (2019), section 3; TernaryBERT's 8-bit weights (released code).
"""

from __future__ import annotations

import torch
from torch import Tensor

from qexport.formats import max_code

__all__ = ["minmax"]


@torch.no_grad()
def minmax(weight: Tensor, granularity: str, bits: int = 8) -> tuple[Tensor, Tensor]:
    """Quantise to whole numbers in -(2**(bits - 1) - 1) .. 2**(bits - 1) - 1.

    Args:
        weight: float32 [..., K]; leading axes are rows.
        granularity: "row" or "matrix".
        bits: 2..8; 2 gives {-1, 0, 1}.
    Returns:
        codes float32 [..., K]; scale float32 [...] ("row") or [1] ("matrix"), 0 where all weights are 0.
    """
    top = max_code(bits)
    if granularity == "row":
        scale = weight.abs().amax(-1) / top
        step = scale.unsqueeze(-1)
    else:
        scale = (weight.abs().amax() / top).reshape(1)
        step = scale
    codes = torch.round(weight / step.clamp(min=torch.finfo(torch.float32).tiny)).clamp(-top, top)
    return codes, scale
