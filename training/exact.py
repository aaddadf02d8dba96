"""Softmax, GELU and LayerNorm whose results are the same bits in every engine, for a student's evaluation.

An activation is rounded to 8 bits again and again, and one unit in the last place of a float, which two
libraries may well differ by, is then a whole code somewhere, and other codes behind it. These three therefore
have a definition that leaves a library no choice, that of the exported operators (docs/operators): inputs of
exp and erf are rounded to a grid, their results to another one whose boundaries no result comes near, and
LayerNorm adds up whole numbers. In training mode the modules are those of PyTorch, which are faster
and within a small part of an 8-bit code.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from transformers.activations import GELUActivation

from qexport.formats import (
    GELU_INPUT_STEPS,
    GELU_OUTPUT_STEPS,
    LARGEST_POWER,
    LARGEST_VARIANCE,
    NORM_MEAN_STEPS,
    NORM_RANGE,
    ROOT_STEPS,
    SCORE_STEPS,
    SMALLEST_MAGNITUDE,
    SMALLEST_VARIANCE,
)

__all__ = [
    "ExactGELU",
    "ExactLayerNorm",
    "exact_average",
    "exact_gelu",
    "exact_layer_norm",
    "exact_softmax",
    "use_exact",
]


def _powers(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Whole exponentials float32 [..., S] of scores rounded to 1 / SCORE_STEPS, and their sum [..., 1]."""
    steps = torch.round((scores - scores.amax(-1, keepdim=True)) * SCORE_STEPS)
    powers = torch.round(torch.exp(steps / SCORE_STEPS) * LARGEST_POWER)
    return powers, powers.sum(-1, keepdim=True)


def exact_softmax(scores: Tensor) -> Tensor:
    """Softmax over the last axis: scores rounded to 1 / SCORE_STEPS, whole exponentials, one division.

    Args:
        scores: float32 [..., S], S below 15,000: the sum of the exponentials then has no rounding.
    Returns:
        float32 [..., S], not negative; a row adds up to 1 but for the rounding of its values.
    """
    powers, total = _powers(scores)
    return powers / total


def exact_average(scores: Tensor, values: Tensor) -> Tensor:
    """Values averaged by the softmax of the scores; the sum of products in float64.

    Args:
        scores: float32 [..., S, T], as in `exact_softmax`.
        values: float32 [..., T, D].
    Returns:
        float32 [..., S, D].
    """
    powers, total = _powers(scores)
    return (powers.double() @ values.double()).float() / total


def exact_gelu(x: Tensor) -> Tensor:
    """GELU of x rounded to 1 / GELU_INPUT_STEPS, itself rounded to 1 / GELU_OUTPUT_STEPS; float32 [...]."""
    h = torch.round(x * GELU_INPUT_STEPS)
    erf = torch.erf(h * (1 / (GELU_INPUT_STEPS * math.sqrt(2))))
    return torch.round(h * (erf + 1)) / GELU_OUTPUT_STEPS  # h (1 + erf) counts halves of the input's steps


def exact_layer_norm(x: Tensor, weight: Tensor, bias: Tensor, epsilon: float) -> Tensor:
    """LayerNorm over the last axis; the sums of a row are sums of whole numbers.

    Args:
        x: float32 [..., K], K up to 1024 (and more in practice: see `qexport.formats.NORM_RANGE`).
        weight, bias: float32 [K].
        epsilon: rounded to float32, as ONNX stores it.
    """
    share = 1 / x.shape[-1]
    largest = x.abs().amax(-1, keepdim=True).clamp(min=SMALLEST_MAGNITUDE)
    stretch = (largest * (1 / NORM_RANGE)).reciprocal()
    n = x * stretch
    mean = torch.round(n * NORM_MEAN_STEPS).sum(-1, keepdim=True) * (share / NORM_MEAN_STEPS)
    variance = torch.round(n * n).sum(-1, keepdim=True) * share - mean * mean
    variance = (variance + stretch * epsilon * stretch).clamp(SMALLEST_VARIANCE, LARGEST_VARIANCE)
    steps = variance * ROOT_STEPS
    root = torch.round(torch.round(steps).sqrt())  # then one step of Newton's method, towards 1 / deviation
    return (n - mean) * (weight * 8) * (root / (root * root + steps)) + bias


class ExactGELU(nn.Module):
    """GELU, in evaluation mode the exact one; float32 [...] -> float32 [...]."""

    def forward(self, input: Tensor) -> Tensor:
        """GELU of every value."""
        return nn.functional.gelu(input) if self.training else exact_gelu(input)


class ExactLayerNorm(nn.LayerNorm):
    """LayerNorm over the last axis, in evaluation mode the exact one; float32 [..., K] to [..., K]."""

    def __init__(self, norm: nn.LayerNorm) -> None:
        """Take over the parameters of `norm`."""
        nn.Module.__init__(self)
        self.normalized_shape, self.eps = norm.normalized_shape, norm.eps
        self.elementwise_affine = norm.elementwise_affine
        self.weight, self.bias = norm.weight, norm.bias

    def forward(self, input: Tensor) -> Tensor:
        """Normalise every vector."""
        if self.training:
            return super().forward(input)
        return exact_layer_norm(input, self.weight, self.bias, self.eps)


def use_exact(model: nn.Module) -> None:
    """Put the modules above in place of every LayerNorm, and of every GELU between two layers of an encoder.

    The GELU of a task's head stays: what it feeds is not quantised. Parameters and their names are kept.
    """
    for name, module in list(model.named_modules()):
        replacement: nn.Module | None = None
        if type(module) is nn.LayerNorm and len(module.normalized_shape) == 1 and module.bias is not None:
            replacement = ExactLayerNorm(module)
        elif type(module) is GELUActivation:
            parent = model.get_submodule(name.rpartition(".")[0])
            if type(parent).__name__.endswith(("Intermediate", "FFN")):
                replacement = ExactGELU()
        if replacement is not None:
            replacement.train(module.training)
            model.set_submodule(name, replacement)
