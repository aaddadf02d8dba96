"""LSQ (Esser et al. 2020) on BERT: learned steps for weights and activations, trained with the labels alone.

The quantiser is the one of KDLSQ-BERT (its rows "LSQ", "LSQ+KD" and "KDLSQ" differ in the losses only):
symmetric levels, a clipping threshold for each tensor, initial values by its Algorithm 1. As published
(`--as-published`; the authors' released code): one threshold for a matrix and one for the word embedding,
gradients of thresholds as plain sums, probabilities in codes 0..2**(b - 1) - 1, a float position table, 5 %
of the values truncated at the start. qexport's defaults: one threshold for each row of a matrix, the gradient
scale of LSQ, probabilities below 8 bits in codes 0..2**b - 1, an 8-bit position table, and for each threshold
the truncation that leaves the least squared error. Every difference: docs/methods.md.
"""

from __future__ import annotations

from qexport.training.recipes.base import LearnedSteps, Losses, Optimisation, Recipe

__all__ = ["LSQ", "OPTIMISATION", "PUBLISHED", "QUANT", "STEPS"]

QUANT = {
    "weight_quantizer": "lsq",
    "granularity": "row",
    "embedding_granularity": "matrix",
    "activations": "static",
    "learned_activations": True,
}
"""Fields of QuantConfig that the three methods share."""

PUBLISHED = {
    "granularity": "matrix",
    "gradient_scale": False,
    "unsigned_probabilities": False,
    "position_bits": 32,
}
"""What `--as-published` changes in them."""

OPTIMISATION = Optimisation(epochs=3, lr=5e-5, warmup=0.0)
"""Of the released scripts."""

STEPS = LearnedSteps(weight_lr=1e-3, activation_lr=3e-2, published_truncation=0.05)
"""Of the released scripts; the paper's own numbers are not legible."""

LSQ = Recipe(
    name="lsq",
    summary="learned steps of weights and activations, without a teacher; start it from a fine-tuned model",
    source="arXiv 1902.08153, sections 2-3; on BERT: arXiv 2101.05938, table 4",
    losses=Losses(label=1.0),
    optimisation=OPTIMISATION,
    default_bits="2-2-8",
    weight_bits=(2, 3, 4, 5, 6, 7, 8),
    activation_bits=(2, 3, 4, 5, 6, 7, 8),
    quant=QUANT,
    published=PUBLISHED,
    steps=STEPS,
)
