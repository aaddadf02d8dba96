"""QuantConfig: the `quantization_config` of a student's config.json."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from qexport.errors import UnsupportedModelError, UsageError
from qexport.formats import (
    ACTIVATION_MODES,
    ASYMMETRIC,
    GRANULARITIES,
    TERNARY_SOLVERS,
    Bits,
    max_code,
    parse_bits,
)

__all__ = ["QUANT_METHOD", "WEIGHT_QUANTIZERS", "QuantConfig"]

QUANT_METHOD = "qexport"
"""Value of `quant_method` in config.json, the name registered with transformers."""

WEIGHT_QUANTIZERS = ("twn", "lat", "minmax", "lsq", "bwn")
"""Families of weight quantisers, see training/quantizers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantConfig:
    """What is quantised in a student, and how. Everything the forward pass depends on is here."""

    method: str
    """The recipe that made it, e.g. ternarybert."""
    bits: str
    """W-E-A notation: encoder weights, word embedding, activations."""
    weight_quantizer: str = "twn"
    """Ternary rule: twn (threshold 0.7 mean|w|) or lat (loss-aware); other widths always use minmax. Or lsq:
    learned steps at every width. Or bwn: binary at 1 bit (sign times mean|w|), twn at 2."""
    ternary_solver: str = "alternating"
    """Of the rule lat: alternating (approximate) or exact."""
    granularity: str = "row"
    """Scales of a weight matrix [N, K]: row [N] or matrix [1]."""
    embedding_granularity: str = "row"
    """Scales of the word embedding [V, D]: row [V] or matrix [1]."""
    activations: str = "dynamic-token"
    """Scale of activations: dynamic-token, dynamic-tensor or static."""
    activation_clip: float = 0.0
    """Clip activations to [-c, c] first; 0 for no clip."""
    activation_ema: float = 0.99
    """Decay of the moving average behind static scales, updated in training only."""
    asymmetric: str = "none"
    """Matrices whose inputs have a zero point: none, feed-forward (what reads GELU's output) or all. Not for
    scales a token."""
    weight_clip: float = 0.0
    """Clip latent weights to [-c, c], with zero gradient outside; 0 for no clip."""
    position_bits: int = 8
    """Bits of the position table: 8 (one scale per row) or 32."""
    quantize_probabilities: bool = True
    """Quantise attention probabilities."""
    quantize_values: bool = True
    """Quantise attention values."""
    quantize_head: bool = False
    """Quantise the last task layer too."""
    split_weights: bool = False
    """A matrix is the sum of two binary ones: ternary weight splitting. Needs 1-bit weights."""
    split_embedding: bool = False
    """The word embedding is the sum of two binary tables. Needs a 1-bit embedding."""
    kept_heads: int = 0
    """Attention heads of a layer, the first ones of the architecture's; 0 for all."""
    kept_neurons: int = 0
    """Neurons of a feed-forward part, the first ones of the architecture's; 0 for all."""
    ghosts: int = 0
    """Ghost modules of each attention head and neuron fold; 0 for none."""
    ghost_kernel: int = 3
    """Tokens that a ghost looks at, odd."""
    ghost_gain: bool = True
    """Each channel of a ghost has a learned factor."""
    learned_activations: bool = False
    """Steps of static activations are learned, else they are moving averages."""
    gradient_scale: bool = True
    """Scale the gradient of learned steps by 1 / sqrt(values * largest code), as LSQ does."""
    unsigned_probabilities: bool = True
    """Learned steps below 8 bits: probabilities take codes 0..2**bits - 1, else the upper half of the
    symmetric ones."""

    def __post_init__(self) -> None:
        bits = parse_bits(self.bits)
        if 1 in (bits.weight, bits.embedding) and self.weight_quantizer != "bwn":
            raise UsageError(f"{self.method}: 1-bit weights are not defined for this method, got {self.bits}")
        if (self.split_weights and bits.weight != 1) or (self.split_embedding and bits.embedding != 1):
            raise UsageError(f"{self.method}: only 1-bit weights are split in two, got {self.bits}")
        if self.split_embedding and not self.split_weights:
            raise UsageError(
                f"{self.method}: the embedding is split only with the matrices; set split_weights"
            )
        if min(self.kept_heads, self.kept_neurons) < 0 or bool(self.kept_heads) != bool(self.kept_neurons):
            raise UsageError(
                "kept_heads and kept_neurons must both be given, or both be 0; got "
                f"{self.kept_heads} and {self.kept_neurons}"
            )
        if self.ghosts < 0 or self.ghost_kernel < 1 or self.ghost_kernel % 2 == 0:
            raise UsageError(
                f"ghosts must be 0 or more and ghost_kernel odd, got {self.ghosts} and {self.ghost_kernel}"
            )
        if bits.activation not in (8, 32) and not (self.learns_activations and bits.activation > 1):
            raise UsageError(
                f"{self.method}: activations must have 8 or 32 bits, or 2 to 8 where their steps are learned "
                f"(static), got {self.bits} with {self.activations}"
            )
        if self.learns_activations and self.activation_clip:
            raise UsageError(
                f"{self.method} learns where activations are clipped, so --activation-clip "
                f"{self.activation_clip:g} has no meaning for it; leave it out"
            )
        for name, value, allowed in (
            ("weight_quantizer", self.weight_quantizer, WEIGHT_QUANTIZERS),
            ("ternary_solver", self.ternary_solver, TERNARY_SOLVERS),
            ("granularity", self.granularity, GRANULARITIES),
            ("embedding_granularity", self.embedding_granularity, GRANULARITIES),
            ("activations", self.activations, ACTIVATION_MODES),
            ("asymmetric", self.asymmetric, ASYMMETRIC),
            ("position_bits", self.position_bits, (8, 32)),
        ):
            if value not in allowed:
                raise UsageError(f"{name} must be one of {', '.join(map(str, allowed))}, got '{value}'")
        if self.asymmetric != "none" and (self.activations == "dynamic-token" or bits.activation == 32):
            raise UsageError(
                f"--asymmetric {self.asymmetric} needs quantised activations with one range for a tensor; "
                f"give --activations static or dynamic-tensor, got {self.bits} with {self.activations}"
            )
        if self.quantize_probabilities != self.quantize_values:
            raise UsageError(
                "quantize_probabilities and quantize_values must be the same, they feed one product; got "
                f"{self.quantize_probabilities} and {self.quantize_values}"
            )

    @property
    def wea(self) -> Bits:
        """The parsed `bits`."""
        return parse_bits(self.bits)

    @property
    def learns_activations(self) -> bool:
        """Whether the steps of activations are parameters."""
        return self.learned_activations and self.activations == "static"

    @property
    def largest_probability_code(self) -> int:
        """Of learned steps: 127 for 8 bits, as everywhere; below, see `unsigned_probabilities`."""
        bits = self.wea.activation
        return max_code(bits) if bits >= 8 or not self.unsigned_probabilities else (1 << bits) - 1

    def table_rule(self, table: str) -> tuple[str, str]:
        """Weight quantiser and granularity of an embedding table; that of positions has a scale per row.

        Steps are learned for the words only.
        """
        if table == "word_embeddings":
            return self.weight_quantizer, self.embedding_granularity
        return ("minmax" if self.weight_quantizer == "lsq" else self.weight_quantizer), "row"

    def to_dict(self) -> dict[str, Any]:
        """For config.json, with `quant_method`."""
        return {"quant_method": QUANT_METHOD, **dataclasses.asdict(self)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> QuantConfig:
        """Read what `to_dict` wrote.

        Raises:
            UnsupportedModelError: another quantisation tool's config, or a field this version does not know.
        """
        plain = dict(values)
        method = plain.pop("quant_method", None)
        if method != QUANT_METHOD:
            raise UnsupportedModelError(
                f"config.json: quantization_config.quant_method must be '{QUANT_METHOD}', got {method!r}; "
                "this folder was not written by qexport train"
            )
        known = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(set(plain) - known)
        if unknown:
            raise UnsupportedModelError(
                f"config.json: quantization_config has unknown field {unknown[0]!r}; "
                "the student was written by a newer qexport, upgrade with pip install -U qexport"
            )
        return cls(**plain)
