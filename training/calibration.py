"""Initial thresholds of a student with learned steps: weights from themselves, activations from one batch.

Source: KDLSQ-BERT (arXiv 2101.05938), Algorithm 1, or the initial value of LSQ (arXiv 1902.08153);
activations are those of the float model.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from qexport.training.attention import AttentionQuantizers
from qexport.training.data import Encoded, pad
from qexport.training.exact import ExactGELU, ExactLayerNorm
from qexport.training.quantizers import LearnedAsymmetricActivation
from qexport.training.quantizers.learned import LearnedActivation, ThresholdRule, fitted_threshold
from qexport.training.student import QuantEmbedding, QuantLinear, quantized_modules

__all__ = ["calibrate", "initialise_thresholds", "learned_offsets", "learned_thresholds"]


def calibrate(
    model: nn.Module, rows: Encoded, *, count: int, seed: int, pad_id: int, rule: ThresholdRule
) -> None:
    """`initialise_thresholds` on `count` rows drawn at random.

    Args:
        model: a student whose latent weights are those of a float model.
        rows: training rows.
        count: rows in the batch.
        seed: of the draw; the random state of torch is left alone.
        pad_id: id of the padding token.
        rule: see `initialise_thresholds`.
    """
    drawn = np.random.default_rng(seed).permutation(len(rows))[:count]
    accepted = inspect.signature(model.forward).parameters
    arrays = pad(rows, drawn.tolist(), pad_id=pad_id)
    features = {name: torch.from_numpy(array) for name, array in arrays.items() if name in accepted}
    initialise_thresholds(model, features, rule=rule)


@torch.no_grad()
def initialise_thresholds(
    model: nn.Module, features: Mapping[str, Tensor], *, rule: ThresholdRule = fitted_threshold
) -> None:
    """Set every learned threshold of `model`, in place; nothing else changes, not even the random state.

    Args:
        model: a student whose latent weights are those of a float model; its mode is kept.
        features: one batch, inputs of the model by name.
        rule: from the values of a tensor to its threshold, see `threshold_rule`.
    Raises:
        UsageError: a truncation that is not in 0..1.
    """
    modules = list(quantized_modules(model).values())
    was_training = model.training
    for module in modules:
        if isinstance(module, QuantLinear | QuantEmbedding) and module.learns_steps:
            module.set_threshold(rule)
    try:
        _observe(modules, rule)
        model.train(False)
        for part in model.modules():
            if isinstance(part, ExactGELU | ExactLayerNorm):
                part.train()  # in float, without grids; neither draws random numbers
        model(**features)
    finally:
        _observe(modules, None)
        model.train(was_training)


def _observe(
    modules: list[QuantLinear | QuantEmbedding | AttentionQuantizers], rule: ThresholdRule | None
) -> None:
    for module in modules:
        module.observing = rule
        for site in module.sites() if isinstance(module, AttentionQuantizers) else ():
            if isinstance(site, LearnedActivation):
                site.observing = rule


def learned_thresholds(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """The thresholds of weights and those of activations, each once, in the order of the model."""
    weights = [
        module.weight_threshold
        for module in model.modules()
        if isinstance(module, QuantLinear | QuantEmbedding) and module.learns_steps
    ]
    activations = [module.threshold for module in model.modules() if isinstance(module, LearnedActivation)]
    return weights, activations


def learned_offsets(model: nn.Module) -> list[nn.Parameter]:
    """Where learned asymmetric ranges begin, in the order of the model."""
    return [module.offset for module in model.modules() if isinstance(module, LearnedAsymmetricActivation)]
