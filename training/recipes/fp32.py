"""Plain fine-tuning of a float encoder: the teacher of every other method."""

from __future__ import annotations

from qexport.training.recipes.base import Losses, Optimisation, Recipe

__all__ = ["FP32"]

FP32 = Recipe(
    name="fp32",
    summary="fine-tune a float teacher from any supported encoder (--model)",
    source="Devlin et al. 2019, section 4.1: 3 epochs, linear decay after 10 % warm-up",
    losses=Losses(label=1.0),
    optimisation=Optimisation(epochs=3, lr=5e-5),
)
