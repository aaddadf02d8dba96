"""Learned steps: a clipping threshold that is trained together with the weights, for 2 to 8 bits.

The parameter is the threshold alpha, not the step: values beyond +-alpha take the last code, and

    step = alpha / top                       top = 2**(bits - 1) - 1, the largest code
    code = clip(round_half_even(x / step), -top, top)

so that a learning rate means the same at every width. Its gradient is that of LSQ, divided by top.

Source: LSQ (Esser et al. 2020, arXiv 1902.08153), equations 1 to 5; KDLSQ-BERT (arXiv 2101.05938), section 3,
with the symmetric levels and the threshold of its authors' released code; initial values by Algorithm 1 of
the same paper, or LSQ's own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from qexport.errors import UsageError
from qexport.training.quantizers.activation import ActivationQuantizer

__all__ = [
    "THRESHOLD_FLOOR",
    "TRUNCATIONS",
    "LearnedActivation",
    "ThresholdRule",
    "fitted_threshold",
    "gradient_factor",
    "learned_codes",
    "learned_step",
    "mean_threshold",
    "threshold_rule",
    "truncated_threshold",
]

THRESHOLD_FLOOR = 1e-6
"""Smallest threshold; an update that would go below it stops here."""

TRUNCATIONS = (0.0, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3)
"""Truncation ratios that `fitted_threshold` tries."""

FITTED_VALUES = 2**18
"""Values of one vector that `fitted_threshold` looks at."""

ThresholdRule = Callable[[Tensor, int], Tensor]
"""From values float32 [..., n] and the largest code to initial thresholds float32 [...]."""


def _step(threshold: Tensor, top: int) -> Tensor:
    return threshold.clamp(min=THRESHOLD_FLOOR) / top


class _LearnedStep(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, threshold: Tensor, low: int, high: int, clipped: bool, factor: float
    ) -> Tensor:
        step = _step(threshold, high)
        ctx.save_for_backward(x, step)
        ctx.low, ctx.high, ctx.clipped, ctx.factor = low, high, clipped, factor
        return torch.round(x.float() / step).clamp_(low, high).mul_(step)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        x, step = ctx.saved_tensors
        ratio = x.float() / step
        inside = (ratio >= ctx.low) & (ratio <= ctx.high)
        codes = torch.round(ratio).clamp_(ctx.low, ctx.high)
        terms = codes.sub_(ratio.mul_(inside)).mul_(gradient)  # LSQ: round(v / s) - v / s, or the last level
        found = terms.sum_to_size(step.shape) * (ctx.factor / ctx.high)
        passed = gradient * inside if ctx.clipped else gradient
        return passed.to(x.dtype), found, None, None, None, None


_apply: Callable[..., Tensor] = _LearnedStep.apply


def learned_step(
    x: Tensor, threshold: Tensor, high: int, *, low: int | None = None, clipped: bool, factor: float = 1.0
) -> Tensor:
    """Fake-quantise, with a gradient for the threshold.

    With v = x / step, the gradient of the output is, for the step (times 1 / high for the threshold),

        round(v) - v for low <= v <= high, low below, high above

    and for x it is 1; with `clipped` it is 0 where v is outside low .. high.

    Args:
        x: float32 [...].
        threshold: float32, broadcasts to x; a value below THRESHOLD_FLOOR counts as that.
        high: largest code; threshold / high is the step.
        low: smallest code; default: -high.
        clipped: whether values beyond the threshold get no gradient: so for activations, while weights keep
            theirs (KDLSQ-BERT, equations 8 and 9), since a weight would else never come back.
        factor: gradient scale of the step, see `gradient_factor`.
    Returns:
        float32 of the shape of x: code * step.
    """
    return _apply(x, threshold, -high if low is None else low, high, clipped, factor)


def gradient_factor(count: int, top: int) -> float:
    """LSQ's gradient scale for a step that `count` values share: 1 / sqrt(count * top)."""
    return 1 / math.sqrt(count * top)


@torch.no_grad()
def learned_codes(x: Tensor, threshold: Tensor, top: int) -> tuple[Tensor, Tensor]:
    """What is stored after export.

    Args:
        x: float32 [..., K].
        threshold: float32 [...] (one for each row) or [1].
        top: largest code.
    Returns:
        codes float32 [..., K] holding whole numbers in -top..top; step float32, shape of `threshold`.
    """
    step = _step(threshold, top)
    return torch.round(x / step.unsqueeze(-1)).clamp_(-top, top), step


def _cut(ordered: Tensor, truncation: float) -> Tensor:
    """Algorithm 1 on values that are sorted along the last axis."""
    n = ordered.shape[-1]
    first = min(round(truncation / 2 * n), (n - 1) // 2)
    last = min(n - first, n - 1)
    found = torch.maximum(ordered[..., first].abs(), ordered[..., last].abs())
    largest = torch.maximum(ordered[..., 0].abs(), ordered[..., -1].abs())
    return torch.where(found > 0, found, largest).clamp(min=THRESHOLD_FLOOR)


@torch.no_grad()
def truncated_threshold(x: Tensor, truncation: float) -> Tensor:
    """Algorithm 1 of KDLSQ-BERT: the magnitude at which the tails of the sorted values are cut off.

    Args:
        x: float32 [..., n]; each vector along the last axis gets its own threshold.
        truncation: the part of the values that is cut off, half of it on each side; the paper's gamma. 0
            keeps all, which gives max |x|.
    Returns:
        float32 [...]; where the values that are kept are all 0 it is max |x|, at least THRESHOLD_FLOOR.
    Raises:
        UsageError: `truncation` is not in 0..1.
    """
    if not 0 <= truncation < 1:
        raise UsageError(f"--truncation must be at least 0 and below 1, got {truncation:g}")
    return _cut(x.float().sort(dim=-1).values, truncation)


@torch.no_grad()
def fitted_threshold(x: Tensor, top: int) -> Tensor:
    """The threshold of Algorithm 1 whose truncation, out of TRUNCATIONS, leaves the least squared error.

    One ratio for all widths and tensors cannot be right: 0.05 costs 2 % of the energy of 8-bit weights, and a
    quarter of that of the 8-bit inputs of BERT's matrices, whose few large channels it cuts off; ternary
    weights want 0.2 (docs/decisions/initial-steps.md).

    Args:
        x: float32 [..., n]; each vector along the last axis gets its own threshold. Of a longer vector
            FITTED_VALUES values are looked at, drawn with a seed of their own.
        top: largest code.
    Returns:
        float32 [...].
    """
    x = x.float()
    if x.shape[-1] > FITTED_VALUES:
        generator = torch.Generator().manual_seed(0)
        drawn = torch.randint(x.shape[-1], (FITTED_VALUES,), generator=generator)
        x = x[..., drawn.to(x.device)]
    ordered = x.sort(dim=-1).values
    best = torch.zeros_like(ordered[..., 0])
    least = torch.full_like(best, math.inf)
    for truncation in TRUNCATIONS:
        threshold = _cut(ordered, truncation)
        codes, step = learned_codes(ordered, threshold, top)
        error = codes.mul_(step.unsqueeze(-1)).sub_(ordered).square_().sum(-1)
        best = torch.where(error < least, threshold, best)
        least = torch.minimum(error, least)
    return best


@torch.no_grad()
def mean_threshold(x: Tensor, top: int) -> Tensor:
    """LSQ's initial value (Esser et al. 2020): a step of 2 * mean |x| / sqrt(top).

    Args:
        x: float32 [..., n]; each vector along the last axis gets its own threshold.
        top: largest code, Q_P in the paper.
    Returns:
        float32 [...]: the threshold top * step, at least THRESHOLD_FLOOR; it may lie beyond max |x|.
    """
    return (2 * math.sqrt(top) * x.float().abs().mean(dim=-1)).clamp(min=THRESHOLD_FLOOR)


def threshold_rule(truncation: float | None, initial: str = "truncation") -> ThresholdRule:
    """How thresholds are initialised.

    Args:
        truncation: the ratio of Algorithm 1; None: the best one for each threshold. Of no account for "mean".
        initial: one of `qexport.formats.INITIAL_STEPS`.
    """
    if initial == "mean":
        return mean_threshold
    if truncation is None:
        return fitted_threshold
    return lambda x, top: truncated_threshold(x, truncation)


class LearnedActivation(ActivationQuantizer):
    """A stored scale that is learned; until `observe` has seen a value the threshold is 0."""

    def __init__(self, *, bits: int, top: int | None = None, gradient_scale: bool = True) -> None:
        """One threshold.

        Args:
            bits: width, 2 to 8.
            top: largest code; default: that of a symmetric code of `bits` bits.
            gradient_scale: scale the gradient of the step as LSQ does.
        """
        super().__init__("learned", bits=bits)
        self.mode = "static"  # what the exported file sees
        self.top = self.top if top is None else top
        self.gradient_scale = gradient_scale
        self.threshold = nn.Parameter(torch.zeros(()))
        self.observing: ThresholdRule | None = None
        """While thresholds are initialised, how: values pass as they are."""

    def extra_repr(self) -> str:
        return f"learned, bits={self.bits}, top={self.top}"

    def stored_scale(self) -> Tensor:
        """The step; 0 when no value was seen."""
        threshold = self.threshold.detach()
        return torch.where(threshold > 0, _step(threshold, self.top), 0.0)

    @torch.no_grad()
    def find_scale(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """The step."""
        return _step(self.threshold, self.top)

    @torch.no_grad()
    def observe(self, x: Tensor, rule: ThresholdRule) -> None:
        """Set the threshold from one tensor of any shape."""
        self.threshold.copy_(rule(x.reshape(-1), self.top))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Fake-quantise: codes * step; no gradient to x beyond the threshold."""
        if self.observing is not None:
            self.observe(x, self.observing)
            return x
        factor = gradient_factor(x.numel(), self.top) if self.gradient_scale else 1.0
        return learned_step(x, self.threshold, self.top, clipped=True, factor=factor)
