"""The attention of a student: quantisers of its two products, and the function that transformers calls.

In training mode it fake-quantises, in evaluation mode it computes with whole numbers, as the exported
operator does.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from qexport.training.exact import exact_average, exact_softmax
from qexport.training.quant_config import QuantConfig
from qexport.training.quantizers import (
    ActivationQuantizer,
    AsymmetricActivation,
    LearnedAsymmetricActivation,
)
from qexport.training.quantizers.learned import LearnedActivation, ThresholdRule

__all__ = [
    "ATTENTION_NAME",
    "MASKED_SCORE",
    "AttentionQuantizers",
    "activation_quantizer",
    "integer_matmul",
    "qexport_attention",
]

ATTENTION_NAME = "qexport"
"""Name under which the attention function is registered with transformers."""

MASKED_SCORE = -10000.0
"""Added to the scores of padding keys, as in BERT and TernaryBERT."""

_EXACT = 2**24  # float32 holds every whole number up to here


def integer_matmul(a: Tensor, b: Tensor, bound: int) -> Tensor:
    """a @ b.T for whole numbers held in float32, exact, rounded once to float32 at the end.

    Args:
        a: float32 [..., M, K].
        b: float32 [..., N, K].
        bound: largest |a| times largest |b|; where the sum over K could reach 2**24, K is split into blocks.
    Returns:
        float32 [..., M, N], the int32 accumulator converted to float.
    """
    k = a.shape[-1]
    with torch.autocast(a.device.type, enabled=False):  # bfloat16 would round the sums
        if k * bound < _EXACT:
            return a @ b.transpose(-1, -2)
        block = _EXACT // (bound + 1)
        total = torch.zeros((), dtype=torch.int32, device=a.device)
        for start in range(0, k, block):
            part = a[..., start : start + block] @ b[..., start : start + block].transpose(-1, -2)
            total = total + part.to(torch.int32)
        return total.float()


def activation_quantizer(
    config: QuantConfig, mode: str | None = None, *, top: int | None = None, asymmetric: bool = False
) -> ActivationQuantizer:
    """The quantiser of one activation.

    Args:
        config: of the student.
        mode: how the scale is found; default: the student's.
        top: largest code of a learned step; default: that of a symmetric code.
        asymmetric: with a zero point.
    """
    bits = config.wea.activation
    if config.learns_activations:
        if asymmetric:
            return LearnedAsymmetricActivation(bits=bits, gradient_scale=config.gradient_scale)
        return LearnedActivation(bits=bits, top=top, gradient_scale=config.gradient_scale)
    kind = AsymmetricActivation if asymmetric else ActivationQuantizer
    return kind(mode or config.activations, bits=bits, clip=config.activation_clip, ema=config.activation_ema)


class AttentionQuantizers(nn.Module):
    """Quantisers of the four inputs of the two attention products; sites that stay float hold None."""

    def __init__(self, config: QuantConfig) -> None:
        super().__init__()
        value_mode = "dynamic-sequence" if config.activations == "dynamic-token" else config.activations
        top = config.largest_probability_code
        self.query, self.key = activation_quantizer(config), activation_quantizer(config)
        self.probabilities = activation_quantizer(config, top=top) if config.quantize_probabilities else None
        self.value = activation_quantizer(config, value_mode) if config.quantize_values else None
        self.observing: ThresholdRule | None = None
        """While thresholds are initialised, how: attention is then computed in float."""

    def sites(self) -> list[ActivationQuantizer]:
        """The quantisers that there are."""
        found = (self.query, self.key, self.probabilities, self.value)
        return [site for site in found if site is not None]


def qexport_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[Tensor, Tensor]:
    """Attention for transformers' AttentionInterface.

    Quantised where `module.qexport_attention` holds quantisers.

    Args:
        query, key, value: float32 [B, H, S, D].
        attention_mask: bool [B, 1, 1, S], true for real tokens, or None when nothing is masked.
    Returns:
        context float32 [B, S, H, D]; masked scores before the softmax float32 [B, H, S, S], which
        transformers hands out as `attentions`: distillation compares scores, not probabilities
        (TernaryBERT, section 3.3).
    """
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    sites: AttentionQuantizers | None = getattr(module, "qexport_attention", None)
    integer = sites is not None and not module.training and sites.observing is None
    if sites is None:
        scores = (query @ key.transpose(-1, -2)) * scaling
    elif integer:
        (q, q_scale), (k, k_scale) = sites.query.codes(query), sites.key.codes(key)
        k_row = k_scale.transpose(-1, -2) if k_scale.dim() else k_scale
        scores = integer_matmul(q, k, sites.query.top * sites.key.top) * k_row * (q_scale * scaling)
    else:
        scores = (sites.query(query) @ sites.key(key).transpose(-1, -2)) * scaling
    if attention_mask is not None:
        scores = scores + torch.where(attention_mask, 0.0, MASKED_SCORE)
    context = _context(sites, scores, value, attention_mask, dropout, integer, module.training)
    return context.transpose(1, 2).contiguous(), scores


def _context(
    sites: AttentionQuantizers | None,
    scores: Tensor,
    value: Tensor,
    mask: Tensor | None,
    dropout: float,
    integer: bool,
    training: bool,
) -> Tensor:
    """Values averaged by the softmax of the scores, float32 [B, H, S, D]."""
    if sites is None or sites.probabilities is None or sites.value is None:
        if integer:
            return exact_average(scores, value)
        probabilities = functional.softmax(scores, dim=-1, dtype=torch.float32)
        return functional.dropout(probabilities, p=dropout, training=training).to(value.dtype) @ value
    if integer:
        p, p_scale = sites.probabilities.codes(exact_softmax(scores))
        v, v_scale = sites.value.codes(value, mask)
        acc = integer_matmul(p, v.transpose(-1, -2), sites.probabilities.top * sites.value.top)
        return acc * (p_scale * v_scale)
    probabilities = functional.softmax(scores, dim=-1, dtype=torch.float32)
    dropped = functional.dropout(probabilities, p=dropout, training=training)
    context: Tensor = sites.probabilities(dropped) @ sites.value(value, mask)
    return context


def _key_mask(attention_mask: Tensor | None = None, **_: Any) -> Tensor | None:
    """Bool [B, 1, 1, S] from the tokenizer's mask [B, S]; what `qexport_attention` reads."""
    return None if attention_mask is None else attention_mask[:, None, None, :].bool()


AttentionInterface.register(ATTENTION_NAME, qexport_attention)
AttentionMaskInterface.register(ATTENTION_NAME, _key_mask)
