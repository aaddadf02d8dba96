"""Recipe: what a method is made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from qexport.errors import UsageError
from qexport.formats import parse_bits
from qexport.training.config import TrainConfig
from qexport.training.quant_config import QuantConfig

__all__ = ["Losses", "Optimisation", "Recipe"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Losses:
    """Weights of the terms of the training loss; 0 leaves a term out."""

    hidden: float = 0.0
    """Sum over embedding output and layers of the MSE between hidden states."""
    attention: float = 0.0
    """Sum over layers of the MSE between masked attention scores."""
    logits: float = 0.0
    """Soft cross-entropy with the teacher's logits (MSE for regression)."""
    label: float = 0.0
    """Cross-entropy with the labels (MSE for regression)."""

    @property
    def distils(self) -> bool:
        """Whether a teacher is needed."""
        return self.hidden > 0 or self.attention > 0 or self.logits > 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Optimisation:
    """Defaults of the optimiser."""

    epochs: float
    lr: float
    batch_size: int = 32
    warmup: float = 0.1
    weight_decay: float = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """A method by name."""

    name: str
    summary: str
    """One line for `--help` and the method table."""
    source: str
    """Paper, and where the released code differs."""
    losses: Losses
    optimisation: Optimisation
    default_bits: str = "32-32-32"
    weight_bits: tuple[int, ...] = ()
    """Widths of weights and embeddings that the method defines; empty: nothing is quantised."""
    quant: Mapping[str, Any] = field(default_factory=dict)
    """Fields of QuantConfig that are qexport's defaults for this method."""
    published: Mapping[str, Any] = field(default_factory=dict)
    """Fields of QuantConfig as in the paper's released code, taken by `--as-published`."""

    def quant_config(self, config: TrainConfig) -> QuantConfig | None:
        """The student's quantisation for this run, or None for a float model.

        Raises:
            UsageError: widths the method does not define, or options that have no meaning for it.
        """
        if not self.weight_bits:
            for option, value in (
                ("--bits", config.bits),
                ("--activations", config.activations),
                ("--granularity", config.granularity),
                ("--position-bits", config.position_bits),
                ("--activation-clip", config.activation_clip),
                ("--as-published", config.as_published or None),
            ):
                if value is not None and value != "32-32-32":
                    raise UsageError(
                        f"method {self.name} trains a float model; {option} {value} has no meaning for it"
                    )
            return None
        text = config.bits or self.default_bits
        bits = parse_bits(text)
        allowed = ", ".join(map(str, self.weight_bits))
        if not {bits.weight, bits.embedding} <= set(self.weight_bits) or bits.activation != 8:
            raise UsageError(
                f"method {self.name} defines {allowed} bits for weights and embeddings and 8 for "
                f"activations, got --bits {text}"
            )
        values = {**self.quant, **(self.published if config.as_published else {})}
        for name in ("activations", "granularity", "activation_clip", "position_bits"):
            if getattr(config, name) is not None:
                values[name] = getattr(config, name)
        return QuantConfig(method=self.name, bits=text, **values)
