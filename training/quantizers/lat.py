"""Loss-aware ternarisation (LAT): minimise sum_i D_i (alpha b_i - w_i)^2 over alpha > 0, b in {-1, 0, 1}.

D is the diagonal curvature of the loss, taken from Adam's second moment: D = sqrt(v) + eps.
Source: Hou and Kwok, "Loss-aware weight quantization of deep networks" (2018), section 3; the second option
of TernaryBERT.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["SOLVERS", "loss_aware_ternary", "loss_aware_ternary_exact"]


@torch.no_grad()
def loss_aware_ternary(
    weight: Tensor, granularity: str, curvature: Tensor, *, iterations: int = 10, tolerance: float = 1e-6
) -> tuple[Tensor, Tensor]:
    """Alternating solver, from b = sign(w).

    Args:
        weight: float32 [..., K]; leading axes are rows.
        granularity: "row" or "matrix".
        curvature: float32, same shape, not negative. A row whose curvature is 0 everywhere counts as flat.
        iterations: at most so many alternations.
        tolerance: stop when no scale moves by this fraction of itself or more.
    Returns:
        codes float32 [..., K] in {-1, 0, 1}; scale float32 [...] ("row") or [1] ("matrix").
    """
    shape = weight.shape
    if granularity == "matrix":
        weight, curvature = weight.reshape(1, -1), curvature.reshape(1, -1)
    flat = curvature.amax(-1, keepdim=True) <= 0
    curvature = torch.where(flat, torch.ones_like(curvature), curvature)
    magnitude = weight.abs()
    weighted = curvature * magnitude
    alpha = weighted.sum(-1, keepdim=True) / curvature.sum(-1, keepdim=True)
    keep = torch.empty_like(magnitude)
    product = torch.empty_like(magnitude)
    for _ in range(iterations + 1):
        # b is 1 where |w| > alpha / 2; alpha is then the weighted mean of the kept magnitudes
        torch.gt(magnitude, alpha * 0.5, out=keep)
        kept = torch.mul(weighted, keep, out=product).sum(-1, keepdim=True)
        mass = torch.mul(curvature, keep, out=product).sum(-1, keepdim=True)
        new = kept / mass.clamp_(min=torch.finfo(torch.float32).tiny)
        moved = (new - alpha).abs()
        alpha = new
        if bool((moved <= tolerance * alpha).all()):
            break
    codes = keep.copysign_(weight).reshape(shape)
    return codes, alpha.reshape(1) if granularity == "matrix" else alpha.squeeze(-1)


@torch.no_grad()
def loss_aware_ternary_exact(weight: Tensor, granularity: str, curvature: Tensor) -> tuple[Tensor, Tensor]:
    """Exact solver by one sort: keep the k largest |w| that maximise (sum D|w|)^2 / sum D.

    Arguments and results as `loss_aware_ternary`. A sort of every matrix in each step makes it several times
    slower than the alternating solver.
    """
    shape = weight.shape
    if granularity == "matrix":
        weight, curvature = weight.reshape(1, -1), curvature.reshape(1, -1)
    flat = curvature.amax(-1, keepdim=True) <= 0
    curvature = torch.where(flat, torch.ones_like(curvature), curvature)
    magnitude, order = weight.abs().sort(dim=-1, descending=True)
    ordered = curvature.gather(-1, order).double()
    gain, mass = (ordered * magnitude).cumsum(-1), ordered.cumsum(-1)
    mass = mass.clamp(min=torch.finfo(torch.float64).tiny)
    best = (gain.square() / mass).argmax(-1, keepdim=True)
    alpha = (gain.gather(-1, best) / mass.gather(-1, best)).to(weight.dtype)
    rank = torch.empty_like(order).scatter_(
        -1, order, torch.arange(order.shape[-1], device=order.device).expand_as(order)
    )
    codes = (torch.sign(weight) * (rank <= best)).reshape(shape)
    return codes, alpha.reshape(1) if granularity == "matrix" else alpha.squeeze(-1)


SOLVERS = {"alternating": loss_aware_ternary, "exact": loss_aware_ternary_exact}
"""Solvers by name: LATa and LATe of Hou and Kwok."""
