"""GhostBERT (Huang et al., ACL 2021): a narrower network whose missing features are made by ghost modules.

The best heads and neurons of the teacher are kept (DynaBERT's ranking), --width of them. Each kept head and
fold of neurons gets ghosts: depthwise convolutions over the tokens of what it writes, added to it. The float
network is distilled from the teacher, then fine-tuned with the labels; with --bits 2-2-8 or 8-8-8 a third
stage quantises it, distilled from its own float form. No code of the paper was released: what is its own and
what is ours, docs/methods.md.
"""

from __future__ import annotations

from qexport.training.recipes.base import Losses, Optimisation, Recipe, Stage

__all__ = ["GHOSTBERT"]

GHOSTBERT = Recipe(
    name="ghostbert",
    summary="part of the teacher's width, with ghost modules that make cheap copies of its features; float, "
    "or quantised after",
    source="ACL 2021, 2021.acl-long.509, sections 2-3, as far as docs/methods.md says",
    losses=Losses(hidden=1.0, attention=1.0, logits=1.0, label=1.0),
    optimisation=Optimisation(epochs=3, lr=5e-5),
    weight_bits=(2, 8),
    activation_bits=(8,),
    quant={"weight_quantizer": "twn"},
    published={"ghost_gain": False},
    ghosts=True,
    stages=(
        Stage(name="ghosts", start="ghosts", losses=Losses(hidden=0.1, logits=1.0), epochs=3),
        Stage(name="labels", start="previous", losses=Losses(label=1.0), lr=0.4, epochs=3),
        Stage(name="quantised", start="quantised", losses=Losses(hidden=1.0, attention=1.0, logits=1.0),
              teacher="labels", epochs=3, only_quantised=True),
    ),
)  # fmt: skip
