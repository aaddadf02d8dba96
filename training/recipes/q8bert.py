"""Q8BERT (Zafrir et al. 2019): quantisation-aware fine-tuning without a teacher.

Weights are symmetric. Activations have a scale per token, with `--as-published` moving averages.
Query and key are quantised again after their projections; probabilities and values stay float; the task
layer is quantised. The paper's widths are 8-8-8; lower ones run as a baseline (later papers report that they
collapse at 2-2-8).
"""

from __future__ import annotations

from qexport.training.recipes.base import Losses, Optimisation, Recipe

__all__ = ["Q8BERT"]

Q8BERT = Recipe(
    name="q8bert",
    summary="8-bit quantisation-aware fine-tuning without a teacher (baseline)",
    source="arXiv 1910.06188, section 3",
    losses=Losses(label=1.0),
    optimisation=Optimisation(epochs=3, lr=2e-5),
    default_bits="8-8-8",
    weight_bits=(2, 3, 4, 5, 6, 7, 8),
    quant={
        "weight_quantizer": "minmax",
        "granularity": "row",
        "activations": "dynamic-token",
        "activation_ema": 0.9999,
        "quantize_probabilities": False,
        "quantize_values": False,
        "quantize_head": True,
    },
    published={"granularity": "matrix", "embedding_granularity": "matrix", "activations": "static"},
)
