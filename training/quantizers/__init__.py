"""Weight and activation quantisers, one family per file.

A weight quantiser is a function `(weight, granularity) -> (codes, scale)`: `weight` float32 [N, K]; `codes`
float32 [N, K] holding whole numbers; `scale` float32 [N] for granularity "row", [1] for "matrix"; the
quantised weight is `codes * scale`. The latent weight stays float32 and receives the gradient
(straight-through estimator).
"""

from __future__ import annotations

from qexport.training.quantizers.activation import ActivationQuantizer, activation_codes
from qexport.training.quantizers.asymmetric import AsymmetricActivation, LearnedAsymmetricActivation
from qexport.training.quantizers.bwn import binary_weight_network, split_ternary
from qexport.training.quantizers.lat import SOLVERS, loss_aware_ternary, loss_aware_ternary_exact
from qexport.training.quantizers.minmax import minmax
from qexport.training.quantizers.straight_through import straight_through
from qexport.training.quantizers.twn import ternary_weight_network

__all__ = [
    "SOLVERS",
    "ActivationQuantizer",
    "AsymmetricActivation",
    "LearnedAsymmetricActivation",
    "activation_codes",
    "binary_weight_network",
    "loss_aware_ternary",
    "loss_aware_ternary_exact",
    "minmax",
    "split_ternary",
    "straight_through",
    "ternary_weight_network",
]
