"""TernaryBERT (Zhang et al., EMNLP 2020): ternary weights and embeddings, 8-bit activations, distillation.

As published (`--as-published`; the released PyTorch code): TWN with one scale per matrix and one per
embedding row, symmetric activations with one dynamic scale for each batch tensor after a clip to +-2.5,
float position table. qexport's defaults change what deployment needs: one scale per output row, one
activation scale per token (a sentence's answer then does not depend on its batch), no clip, and an 8-bit
position table. Learning rate and schedule are those of the released scripts. Every difference:
docs/methods.md.
"""

from __future__ import annotations

from qexport.training.recipes.base import Losses, Optimisation, Recipe

__all__ = ["TERNARYBERT", "TERNARYBERT_LAT"]

_LOSSES = Losses(hidden=1.0, attention=1.0, logits=1.0)
_OPTIMISATION = Optimisation(epochs=3, lr=2e-5)
_PUBLISHED = {
    "granularity": "matrix",
    "activations": "dynamic-tensor",
    "activation_clip": 2.5,
    "weight_clip": 2.5,
    "position_bits": 32,
}

TERNARYBERT = Recipe(
    name="ternarybert",
    summary="ternary weights by TWN (threshold 0.7 mean|w|), "
    "distilled from hidden states, attention scores and logits",
    source="arXiv 2009.12812, sections 3.1-3.3",
    losses=_LOSSES,
    optimisation=_OPTIMISATION,
    default_bits="2-2-8",
    weight_bits=(2, 8),
    quant={"weight_quantizer": "twn"},
    published={**_PUBLISHED, "weight_quantizer": "twn"},
)

TERNARYBERT_LAT = Recipe(
    name="ternarybert-lat",
    summary="TernaryBERT with loss-aware ternarisation (curvature from Adam's second moment)",
    source="arXiv 2009.12812, section 3.1; Hou and Kwok 2018",
    losses=_LOSSES,
    optimisation=_OPTIMISATION,
    default_bits="2-2-8",
    weight_bits=(2, 8),
    quant={"weight_quantizer": "lat"},
    published={**_PUBLISHED, "weight_quantizer": "lat"},
)
