"""BinaryBERT (Bai et al., ACL 2021): binary weights by splitting a trained ternary network of half the width.

The half-width network keeps the best half of the teacher's heads and neurons (DynaBERT's ranking). It is
trained in float, then ternarised and trained twice: layers first, then logits. Each ternary matrix is split
into two binary ones that compute the same, which gives as many binary weights as the teacher has weights,
and these are trained in the same two steps. From the ternary steps on the half-width float network is the
teacher.

As published (`--as-published`): one scale per matrix, one activation scale per batch tensor after a clip to
+-2.5, a float position table, and a word embedding that is split too: two binary tables. By default the word
embedding has one binary table, since with two of them no file of BERT-base stays below 16 MiB. Activations of
4 bits (1-1-4) have learned steps, as in lsq. Every difference: docs/methods.md.
"""

from __future__ import annotations

from qexport.training.recipes.base import Losses, Optimisation, Recipe, Stage
from qexport.training.recipes.lsq import STEPS

__all__ = ["BINARYBERT"]

_LAYERS = Losses(hidden=1.0, attention=1.0)
_PREDICTION = Losses(logits=1.0)

BINARYBERT = Recipe(
    name="binarybert",
    summary="binary weights by splitting a ternary network of half the width, in five stages",
    source="arXiv 2012.15701, sections 3.1-3.3; the half-width start: arXiv 2004.04037",
    losses=Losses(hidden=1.0, attention=1.0, logits=1.0),
    optimisation=Optimisation(epochs=2, lr=5e-5),
    default_bits="1-1-8",
    weight_bits=(1,),
    embedding_bits=(1, 2, 8),
    activation_bits=(4, 8),
    quant={"weight_quantizer": "bwn", "split_weights": True},
    published={
        "granularity": "matrix",
        "activations": "dynamic-tensor",
        "activation_clip": 2.5,
        "asymmetric": "feed-forward",
        "position_bits": 32,
        "split_embedding": True,
    },
    published_revision=2,  # 2: inputs of the feed-forward part are asymmetric
    low_activations={"activations": "static", "learned_activations": True, "activation_clip": 0.0},
    steps=STEPS,
    # rates of the released scripts: 2e-5, then 1e-5 for ternary, 5e-5 for binary, 2.5 times that for layers
    stages=(
        Stage(name="half width", start="half-width", losses=Losses(hidden=0.1, logits=1.0), lr=0.4, epochs=3),
        Stage(name="ternary layers", start="ternary", losses=_LAYERS, teacher="half width", lr=0.5, epochs=2),
        Stage(name="ternary prediction", start="previous", losses=_PREDICTION, teacher="half width", lr=0.2,
              epochs=2),
        Stage(name="binary layers", start="split", losses=_LAYERS, teacher="half width", lr=2.5, epochs=2),
        Stage(name="binary prediction", start="previous", losses=_PREDICTION, teacher="half width", epochs=2),
    ),
)  # fmt: skip
