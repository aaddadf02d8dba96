"""QuantConfig: the `quantization_config` of a student's config.json."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from qexport.errors import UnsupportedModelError, UsageError
from qexport.formats import ACTIVATION_MODES, GRANULARITIES, Bits, parse_bits

__all__ = ["QUANT_METHOD", "WEIGHT_QUANTIZERS", "QuantConfig"]

QUANT_METHOD = "qexport"
"""Value of `quant_method` in config.json, the name registered with transformers."""

WEIGHT_QUANTIZERS = ("twn", "lat", "minmax")
"""Families of weight quantisers, see training/quantizers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantConfig:
    """What is quantised in a student, and how. Everything the forward pass depends on is here."""

    method: str
    """The recipe that made it, e.g. ternarybert."""
    bits: str
    """W-E-A notation: encoder weights, word embedding, activations."""
    weight_quantizer: str = "twn"
    """Ternary rule: twn (threshold 0.7 mean|w|) or lat (loss-aware); other widths always use minmax."""
    granularity: str = "row"
    """Scales of a weight matrix [N, K]: row [N] or matrix [1]. The embedding always has one per row."""
    activations: str = "dynamic-token"
    """Scale of activations: dynamic-token, dynamic-tensor or static."""
    activation_clip: float = 0.0
    """Clip activations to [-c, c] first; 0 for no clip."""
    activation_ema: float = 0.99
    """Decay of the moving average behind static scales, updated in training only."""
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

    def __post_init__(self) -> None:
        bits = parse_bits(self.bits)
        if 1 in (bits.weight, bits.embedding):
            raise UsageError(f"{self.method}: 1-bit weights are not defined for this method, got {self.bits}")
        if bits.activation not in (8, 32):
            raise UsageError(f"{self.method}: activations must have 8 or 32 bits, got {self.bits}")
        for name, value, allowed in (
            ("weight_quantizer", self.weight_quantizer, WEIGHT_QUANTIZERS),
            ("granularity", self.granularity, GRANULARITIES),
            ("activations", self.activations, ACTIVATION_MODES),
            ("position_bits", self.position_bits, (8, 32)),
        ):
            if value not in allowed:
                raise UsageError(f"{name} must be one of {', '.join(map(str, allowed))}, got '{value}'")
        if self.quantize_probabilities != self.quantize_values:
            raise UsageError(
                "quantize_probabilities and quantize_values must be the same, they feed one product; got "
                f"{self.quantize_probabilities} and {self.quantize_values}"
            )

    @property
    def wea(self) -> Bits:
        """The parsed `bits`."""
        return parse_bits(self.bits)

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
