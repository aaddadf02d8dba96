"""Asymmetric activations: codes 0..2**bits - 1 and a whole zero point, for values such as GELU's output.

    step = (high - low) / (2**bits - 1)                  low <= 0 <= high
    zero = clip(round_half_even(-low / step), 0, 2**bits - 1)
    code = clip(round_half_even(x / step) + zero, 0, 2**bits - 1),  value (code - zero) * step

GELU gives -0.17 at least and several units at most: symmetric codes leave almost half of them unused there.

Source: TernaryBERT (arXiv 2009.12812), section 3.2, min-max; BinaryBERT (arXiv 2012.15701), released code,
for the second feed-forward matrix; LSQ+ (arXiv 2004.09576), learned step and offset. Theirs is a real
offset, value = code * step + low; with a whole zero point, which ONNX's QuantizeLinear has, 0 stays 0 and
levels lie at most half a step from theirs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from qexport.training.quantizers.activation import ActivationQuantizer
from qexport.training.quantizers.learned import (
    THRESHOLD_FLOOR,
    LearnedActivation,
    ThresholdRule,
    gradient_factor,
)
from qexport.training.quantizers.straight_through import straight_through

__all__ = ["AsymmetricActivation", "LearnedAsymmetricActivation", "asymmetric_codes", "range_of"]


def range_of(x: Tensor) -> tuple[Tensor, Tensor]:
    """Smallest and largest value of the whole tensor, and 0 if that is beyond: float32 scalars."""
    low, high = torch.aminmax(x)
    return low.clamp(max=0.0), high.clamp(min=0.0)


def _step_and_zero(low: Tensor, high: Tensor, top: int) -> tuple[Tensor, Tensor]:
    """Step and zero point, float32 scalars, as ONNX's DynamicQuantizeLinear has them; 1 and 0 for zeros."""
    step = (high - low) / top
    step = torch.where(step > 0, step, 1.0)
    return step, torch.round((-low / step).clamp(0, top))


def asymmetric_codes(x: Tensor, step: Tensor, zero: Tensor, top: int) -> Tensor:
    """Codes less their zero point, as float32: whole numbers in -zero..top - zero.

    Args:
        x: float32 [...].
        step: float32 scalar greater than 0.
        zero: float32 scalar, a whole number in 0..top.
        top: largest code, 255 for 8 bits.
    """
    return torch.minimum(torch.maximum(torch.round(x / step), -zero), top - zero)


class AsymmetricActivation(ActivationQuantizer):
    """Finds a range and rounds.

    `mode` is dynamic-tensor, the range of the whole tensor at run time, or static, moving averages of the
    smallest and the largest value seen in training.
    """

    low: Tensor
    high: Tensor

    def __init__(self, mode: str, *, bits: int = 8, clip: float = 0.0, ema: float = 0.99) -> None:
        super().__init__("asymmetric", bits=bits, clip=clip, ema=ema)
        self.mode, self.top = mode, (1 << bits) - 1
        if mode == "static":
            self.register_buffer("low", torch.zeros(()))
            self.register_buffer("high", torch.zeros(()))

    def extra_repr(self) -> str:
        return f"asymmetric {super().extra_repr()}"

    def stored_scale(self) -> Tensor:
        """The step of a static quantiser, float32 scalar; 0 when nothing was seen."""
        return (self.high - self.low) / self.top

    def stored_zero(self) -> int:
        """The zero point of a static quantiser, 0..top."""
        return int(_step_and_zero(self.low, self.high, self.top)[1])

    @torch.no_grad()
    def find_range(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Step and zero point for `x`; in training mode a static quantiser first updates its averages."""
        if self.mode != "static":
            return _step_and_zero(*range_of(x), self.top)
        unseen = not bool(self.high > self.low)
        if self.training or unseen:
            for average, seen in zip((self.low, self.high), range_of(x), strict=True):
                average.copy_(seen if unseen else average * self.ema + seen * (1 - self.ema))
        return _step_and_zero(self.low, self.high, self.top)

    @torch.no_grad()
    def codes(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Codes less their zero point, float32 whole numbers of the shape of `x`, and the step."""
        x = x.float()
        if self.clip > 0:
            x = x.clamp(-self.clip, self.clip)
        step, zero = self.find_range(x)
        return asymmetric_codes(x, step, zero, self.top), step

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Fake-quantise: codes * step; the gradient is straight-through, zero outside the clip."""
        codes, step = self.codes(x.detach())
        return straight_through(x, codes.mul_(step), self.clip)


class _LearnedRange(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, threshold: Tensor, offset: Tensor, top: int, factor: float) -> Tensor:
        step, zero = _learned_step_and_zero(threshold, offset, top)
        ctx.save_for_backward(x, step, zero)
        ctx.top, ctx.factor = top, factor
        return asymmetric_codes(x.float(), step, zero, top).mul_(step)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        x, step, zero = ctx.saved_tensors
        ratio = x.float() / step
        below, above = ratio < -zero, ratio > ctx.top - zero
        inside = ~(below | above)
        rounding = (torch.round(ratio) - ratio) * inside / ctx.top
        span = ((rounding + above) * gradient).sum() * ctx.factor
        start = (~inside * gradient).sum() * ctx.factor
        return (gradient * inside).to(x.dtype), span, start, None, None


_apply: Callable[..., Tensor] = _LearnedRange.apply


def _learned_step_and_zero(threshold: Tensor, offset: Tensor, top: int) -> tuple[Tensor, Tensor]:
    step = threshold.clamp(min=THRESHOLD_FLOOR) / top
    return step, torch.round((-offset / step).clamp(0, top))


class LearnedAsymmetricActivation(LearnedActivation):
    """A stored step and a stored zero point, both learned (LSQ+).

    The parameters are the length of the range, `threshold`, and where it begins, `offset`. With v = x / step
    the gradient of the output is

        for threshold   (round(v) - v) / top inside the range, 0 below, 1 above
        for offset      0 inside the range, 1 outside
        for x           1 inside the range, 0 outside
    """

    def __init__(self, *, bits: int, gradient_scale: bool = True) -> None:
        super().__init__(bits=bits, top=(1 << bits) - 1, gradient_scale=gradient_scale)
        self.offset = nn.Parameter(torch.zeros(()))

    def extra_repr(self) -> str:
        return f"asymmetric {super().extra_repr()}"

    def stored_zero(self) -> int:
        """The zero point, 0..top."""
        return int(_learned_step_and_zero(self.threshold.detach(), self.offset.detach(), self.top)[1])

    @torch.no_grad()
    def observe(self, x: Tensor, rule: ThresholdRule) -> None:
        """Begin with the rule's thresholds of values above 0 and of those below, within what was seen."""
        values = x.float().reshape(-1)
        low, high = range_of(values)
        high = torch.minimum(rule(values.clamp(min=0.0), self.top), high)
        low = torch.maximum(-rule(-values.clamp(max=0.0), self.top), low)
        self.offset.copy_(low)
        self.threshold.copy_((high - low).clamp(min=THRESHOLD_FLOOR))

    @torch.no_grad()
    def codes(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Codes less their zero point, float32 whole numbers of the shape of `x`, and the step."""
        step, zero = _learned_step_and_zero(self.threshold, self.offset, self.top)
        return asymmetric_codes(x.float(), step, zero, self.top), step

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Fake-quantise: codes * step; no gradient to x beyond the range."""
        if self.observing is not None:
            self.observe(x, self.observing)
            return x
        factor = gradient_factor(x.numel(), self.top) if self.gradient_scale else 1.0
        return _apply(x, self.threshold, self.offset, self.top, factor)
