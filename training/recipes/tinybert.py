"""TinyBERT (Jiao et al., Findings of EMNLP 2020): a smaller float student, distilled in two stages.

First hidden states, through a learned projection to the teacher's width, and attention scores, then logits;
losses, rates and epochs are those of the released scripts. Layer m of M learns from layer m * N / M of the
teacher's N. The student starts from `--model`, such as a general TinyBERT, or is made of the teacher
(training/shrinking.py, our own design): distillation on a corpus, which the paper does first, is not part of
this method. Every difference: docs/methods.md.
"""

from __future__ import annotations

from qexport.training.recipes.base import Losses, Optimisation, Recipe, Stage, StudentSize

__all__ = ["TINYBERT"]

TINYBERT = Recipe(
    name="tinybert",
    summary="a smaller float student, distilled by layers, then by logits; a start for what quantises",
    source="arXiv 1909.10351, sections 3 and 4; task distillation only, the start is ours",
    losses=Losses(hidden=1.0, attention=1.0, logits=1.0),
    optimisation=Optimisation(epochs=3, lr=3e-5),
    size=StudentSize(layers=4, hidden_size=312, intermediate_size=1200, heads=12),
    stages=(
        Stage(name="layers", start="smaller", losses=Losses(hidden=1.0, attention=1.0), lr=5 / 3, epochs=10,
              schedule="constant", selects=False, projects=True),
        Stage(name="prediction", start="previous", losses=Losses(logits=1.0), epochs=3),
    ),
)  # fmt: skip
