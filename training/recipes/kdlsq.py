"""KDLSQ-BERT (Jin et al. 2021, arXiv 2101.05938): learned steps, distillation and labels together."""

from __future__ import annotations

import dataclasses

from qexport.training.recipes.base import Losses
from qexport.training.recipes.lsq import LSQ

__all__ = ["KDLSQ"]

KDLSQ = dataclasses.replace(
    LSQ,
    name="kdlsq",
    summary="learned steps, distilled from hidden states, attention scores and logits, with the labels",
    source="arXiv 2101.05938, section 3",
    losses=Losses(hidden=1.0, attention=1.0, logits=1.0, label=1.0),
)
