"""LSQ with distillation and without labels: the row "LSQ+KD" of KDLSQ-BERT's ablation (arXiv 2101.05938)."""

from __future__ import annotations

import dataclasses

from qexport.training.recipes.base import Losses
from qexport.training.recipes.lsq import LSQ

__all__ = ["LSQ_KD"]

LSQ_KD = dataclasses.replace(
    LSQ,
    name="lsq-kd",
    summary="learned steps, distilled from hidden states, attention scores and logits",
    source="arXiv 2101.05938, sections 3.1-3.3 and table 4",
    losses=Losses(hidden=1.0, attention=1.0, logits=1.0),
)
