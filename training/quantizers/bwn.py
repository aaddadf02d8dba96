"""Binary weights, and the exact split of ternary weights into two binary ones.

Source: BinaryBERT (Bai et al. 2021), section 3.2, as in its released code; Rastegari et al. 2016 for the
binary rule. The coefficient a of the split is that of the code: the printed formula has the two index sets of
its numerator the wrong way round, and its halves then do not add up.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qexport.training.quantizers.twn import ternary_weight_network

__all__ = ["binary_weight_network", "split_ternary"]


@torch.no_grad()
def binary_weight_network(weight: Tensor, granularity: str) -> tuple[Tensor, Tensor]:
    """Binarise: the sign of a weight times the mean magnitude. A weight of 0 counts as positive.

    Args:
        weight: float32 [..., K]; leading axes are rows.
        granularity: "row" or "matrix".
    Returns:
        codes float32 [..., K] in {-1, 1}; scale float32 [...] ("row") or [1] ("matrix").
    """
    magnitude = weight.abs()
    scale = magnitude.mean(-1) if granularity == "row" else magnitude.mean().reshape(1)
    return torch.where(weight < 0, -1.0, 1.0), scale


@torch.no_grad()
def split_ternary(weight: Tensor, granularity: str) -> tuple[Tensor, Tensor]:
    """Two latent weights that add up to `weight` and whose binary values add up to its ternary ones.

    With I the weights that TWN keeps, J the positive and K the other ones that it sets to 0, and t its scale:

        first  = a w       on I,    w + b  on J,    b      on K
        second = (1-a) w   on I,    -b     on J,    w - b  on K
        a = (sum_I |w| + sum_K |w| - sum_J |w|) / (2 sum_I |w|)
        b = (n t - sum |w|) / (2 (|J| + |K|))

    Both binary scales are then t / 2. Where nothing is 0, or everything, a = 1/2 and b = 0.

    Args:
        weight: float32 [N, K], computed with in float64.
        granularity: "row" splits each row by its own a and b, "matrix" the whole by one pair.
    Returns:
        first, second: float32 [N, K].
    """
    codes, _ = ternary_weight_network(weight, granularity)
    shape = weight.shape
    w, kept = weight.double(), codes != 0
    if granularity == "matrix":
        w, kept = w.reshape(1, -1), kept.reshape(1, -1)
    magnitude = w.abs()
    positive = ~kept & (w > 0)
    rest = ~kept & ~positive

    def total(values: Tensor, where: Tensor) -> Tensor:
        return (values * where).sum(-1, keepdim=True)

    kept_sum, zeros = total(magnitude, kept), (~kept).sum(-1, keepdim=True)
    scale = kept_sum / kept.sum(-1, keepdim=True).clamp(min=1)
    tiny = torch.finfo(torch.float64).tiny
    a = (kept_sum + total(magnitude, rest) - total(magnitude, positive)) / (2 * kept_sum).clamp(min=tiny)
    b = (w.shape[-1] * scale - magnitude.sum(-1, keepdim=True)) / (2 * zeros).clamp(min=1)
    defined = (kept_sum > 0) & (zeros > 0)
    a, b = torch.where(defined, a, 0.5), torch.where(defined, b, 0.0)
    first = torch.where(kept, a * w, torch.where(positive, w + b, b))
    second = torch.where(kept, (1 - a) * w, torch.where(positive, -b, w - b))
    return first.reshape(shape).to(weight.dtype), second.reshape(shape).to(weight.dtype)
