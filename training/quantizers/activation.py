"""Symmetric 8-bit activations: scale per token, per tensor or frozen; codes in -127..127.

Source: TernaryBERT's released code (symmetric, dynamic, per tensor, optional clip); Q8BERT (2019), section 3
(moving average of the largest magnitude). The numerics are shared with the ONNX operators, docs/operators.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from qexport.formats import max_code
from qexport.training.quantizers.straight_through import straight_through

__all__ = ["SCALE_FLOOR", "ActivationQuantizer", "activation_codes"]

SCALE_FLOOR = 1.2e-32
"""Smallest scale, so that a tensor of zeros divides by something; the codes are then all 0."""


def activation_codes(x: Tensor, scale: Tensor, top: int) -> Tensor:
    """Whole numbers round(x / scale) in -top..top, as float32; rounds half to even.

    Args:
        x: float32 [...].
        scale: float32, broadcasts to x, greater than 0.
        top: largest code, 127 for 8 bits.
    """
    return torch.round(x / scale).clamp_(-top, top)


class ActivationQuantizer(nn.Module):
    """Finds a scale and rounds.

    `mode` is one of
        dynamic-token     one scale for each vector along the last axis, shape [..., 1]
        dynamic-tensor    one scale for the whole tensor, padding included (as published)
        dynamic-sequence  x [B, H, S, D]: one scale for each sentence and head, over the tokens that `mask`
                          keeps, shape [B, H, 1, 1]
        static            one number, a moving average of max|x| / top seen in training
    """

    scale: Tensor

    def __init__(self, mode: str, *, bits: int = 8, clip: float = 0.0, ema: float = 0.99) -> None:
        super().__init__()
        self.mode, self.bits, self.clip, self.ema = mode, bits, clip, ema
        self.top = max_code(bits)
        if mode == "static":
            self.register_buffer("scale", torch.zeros(()))  # 0: nothing seen yet

    def extra_repr(self) -> str:
        return f"{self.mode}, bits={self.bits}, clip={self.clip}"

    def stored_scale(self) -> Tensor:
        """The scale of a static quantiser, float32 scalar; 0 when nothing was seen."""
        return self.scale

    @torch.no_grad()
    def find_scale(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """The scale for `x`; in training mode a static quantiser first updates its average.

        Args:
            x: float32 [...], already clipped.
            mask: bool [B, 1, 1, S], true where a token is real; read by dynamic-sequence only.
        """
        if self.mode == "static":
            if self.training or not bool(self.scale > 0):
                seen = (x.abs().amax() / self.top).clamp(min=SCALE_FLOOR)
                first = not bool(self.scale > 0)
                self.scale.copy_(seen if first else self.scale * self.ema + seen * (1 - self.ema))
            return self.scale
        if self.mode == "dynamic-token":
            largest = x.abs().amax(-1, keepdim=True)
        elif self.mode == "dynamic-sequence":
            kept = x.abs() if mask is None else x.abs() * mask.transpose(-1, -2)
            largest = kept.amax((-2, -1), keepdim=True)
        else:
            largest = x.abs().amax()
        return (largest / self.top).clamp(min=SCALE_FLOOR)

    @torch.no_grad()
    def codes(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Codes as float32 whole numbers, shape of `x`, and the scale."""
        x = x.float()
        if self.clip > 0:
            x = x.clamp(-self.clip, self.clip)
        scale = self.find_scale(x, mask)
        return activation_codes(x, scale, self.top), scale

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Fake-quantise: codes * scale; the gradient is straight-through, zero outside the clip."""
        codes, scale = self.codes(x.detach(), mask)
        return straight_through(x, codes.mul_(scale), self.clip)
