"""Recipe: what a method is made of."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from qexport.errors import UsageError
from qexport.formats import parse_bits
from qexport.training.config import TrainConfig
from qexport.training.quant_config import QuantConfig

__all__ = ["LearnedSteps", "Losses", "Optimisation", "Recipe", "Stage", "StudentSize"]

_FLOAT = "32-32-32"


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
class LearnedSteps:
    """How learned steps begin, and how fast their thresholds move."""

    weight_lr: float
    """Peak learning rate of the thresholds of weights."""
    activation_lr: float
    """Peak learning rate of the thresholds of activations."""
    published_truncation: float
    """Part of the values that lies beyond a threshold at the start (Algorithm 1 of KDLSQ-BERT)."""
    truncation: float | None = None
    """The same in this run; None: for each threshold the one that leaves the least squared error."""
    initial: str = "truncation"
    """One of `qexport.formats.INITIAL_STEPS`; "mean" has no truncation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StudentSize:
    """A smaller encoder."""

    layers: int
    hidden_size: int
    intermediate_size: int
    """Neurons of the feed-forward part of a layer."""
    heads: int
    """Attention heads of a layer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One training of a method that takes several; each is resumed and evaluated on its own."""

    name: str
    """Shown before each line of its progress, and in the report."""
    start: str
    """What its model is made of: a name of `STARTS` in training/stages.py."""
    losses: Losses
    teacher: str = ""
    """Name of the earlier stage whose model is distilled; empty: the teacher of the run."""
    lr: float = 1.0
    """Its peak learning rate, as a multiple of the run's."""
    epochs: float
    """Passes over the training rows, where the run says nothing else."""
    schedule: Literal["linear", "constant"] = "linear"
    """Of the learning rate after the warm-up; constant: without warm-up, unless the run asks for one."""
    selects: bool = True
    """Keep the model that evaluates best; else the last one: for a stage that leaves the task layer alone."""
    projects: bool = False
    """Learn a projection of hidden states even where student and teacher have the same width."""
    only_quantised: bool = False
    """Left out of a run whose student stays float."""


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
    embedding_bits: tuple[int, ...] = ()
    """Widths of embeddings, where they are others than those of weights."""
    activation_bits: tuple[int, ...] = (8,)
    """Widths of activations that the method defines."""
    quant: Mapping[str, Any] = field(default_factory=dict)
    """Fields of QuantConfig that are qexport's defaults for this method."""
    published: Mapping[str, Any] = field(default_factory=dict)
    """Fields of QuantConfig as in the paper's released code, taken by `--as-published`."""
    published_revision: int = 1
    """Part of the key of a sweep's run with `--as-published` where above 1. Raise it by one in the commit
    that makes the option train another model than before (`published` changed, or code that only it takes),
    so that finished rows of the old one are not taken for the new one."""
    ghosts: bool = False
    """Whether its student has ghost modules; its model is cut to --width even where nothing is quantised."""
    stages: tuple[Stage, ...] = ()
    """What is trained after what; empty: one training, with `losses`. Else `losses` has every term in use."""
    low_activations: Mapping[str, Any] = field(default_factory=dict)
    """Fields of QuantConfig that activations below 8 bits need, whatever `quant` and `published` say."""
    steps: LearnedSteps | None = None
    """For methods with learned steps."""
    size: StudentSize | None = None
    """For methods that make a smaller student: its size, where the run says nothing else."""

    def student_size(self, config: TrainConfig) -> StudentSize | None:
        """The size of the student to be made of the teacher, or None where the start has its size.

        Raises:
            UsageError: a size for a start that has one.
        """
        names = [field.name for field in dataclasses.fields(StudentSize)]
        given = {name: getattr(config, name) for name in names if getattr(config, name) is not None}
        if given and (self.size is None or config.model is not None):
            option = f"--{next(iter(given)).replace('_', '-')}"
            why = (
                f"method {self.name} does not change the size of its start, so {option} has no meaning for it"
                if self.size is None
                else f"the student has the size of its start {config.model}, so {option} has no meaning"
            )
            raise UsageError(f"{why}; leave it out" + (", or take tinybert" if self.size is None else ""))
        return None if self.size is None or config.model else dataclasses.replace(self.size, **given)

    def learned_steps(self, config: TrainConfig) -> LearnedSteps | None:
        """Initial values and rates of learned steps in this run, or None where the method has none.

        Raises:
            UsageError: an option of learned steps for a method without them.
        """
        given: dict[str, Any] = {
            field: value
            for field, value in (
                ("weight_lr", config.weight_step_lr),
                ("activation_lr", config.activation_step_lr),
                ("truncation", config.truncation),
                ("initial", config.initial_step),
            )
            if value is not None
        }
        learns = not self.low_activations or parse_bits(config.bits or self.default_bits).activation < 8
        if self.steps is not None and learns:
            if config.as_published and given.get("initial") != "mean":
                given.setdefault("truncation", self.steps.published_truncation)
            return dataclasses.replace(self.steps, **given)
        if given:
            widths = " with 8-bit activations" if self.steps else ""
            raise UsageError(
                f"method {self.name} has no learned steps{widths}, so --weight-step-lr, "
                "--activation-step-lr, --initial-step and --truncation have no meaning for it; leave them "
                "out, or take lsq, lsq-kd or kdlsq"
            )
        return None

    def quant_config(self, config: TrainConfig) -> QuantConfig | None:
        """The student's quantisation for this run, or None for a float model.

        Raises:
            UsageError: widths the method does not define, or options that have no meaning for it.
        """
        for name, number in (
            ("--width", config.width),
            ("--ghosts", config.ghosts),
            ("--ghost-kernel", config.ghost_kernel),
        ):
            if number is not None and not self.ghosts:
                raise UsageError(
                    f"method {self.name} has no ghost modules, so {name} {number:g} has no meaning for it; "
                    "leave it out, or take ghostbert"
                )
        text = config.bits or self.default_bits
        if not self.weight_bits or text == self.default_bits == _FLOAT:
            for option, value in (
                ("--bits", config.bits),
                ("--activations", config.activations),
                ("--granularity", config.granularity),
                ("--embedding-granularity", config.embedding_granularity),
                ("--solver", config.solver),
                ("--position-bits", config.position_bits),
                ("--activation-clip", config.activation_clip),
                ("--asymmetric", config.asymmetric),
                ("--as-published", (config.as_published and not self.published) or None),
            ):
                if value is not None and value != _FLOAT:
                    raise UsageError(
                        f"method {self.name} trains a float model; {option} {value} has no meaning for it"
                    )
            if not self.ghosts:
                return None
            values = {**self.quant, **(self.published if config.as_published else {})}
            return QuantConfig(method=self.name, bits=_FLOAT, position_bits=32, **values)
        bits = parse_bits(text)
        tables = self.embedding_bits or self.weight_bits
        if (
            bits.weight not in self.weight_bits
            or bits.embedding not in tables
            or bits.activation not in self.activation_bits
        ):
            words = ", ".join(map(str, tables))
            weights = ", ".join(map(str, self.weight_bits))
            acts = ", ".join(map(str, self.activation_bits))
            widths = f"{weights} bits for weights and " + (
                f"{words} for " if tables != self.weight_bits else ""
            )
            raise UsageError(
                f"method {self.name} defines {widths}embeddings and {acts} for activations, got --bits {text}"
            )
        values = {**self.quant, **(self.published if config.as_published else {})}
        if bits.activation < 8:
            values.update(self.low_activations)
        for name in (
            "activations", "granularity", "embedding_granularity", "activation_clip", "asymmetric",
            "position_bits",
        ):  # fmt: skip
            if getattr(config, name) is not None:
                values[name] = getattr(config, name)
        if config.asymmetric is None and values.get("activations", "dynamic-token") == "dynamic-token":
            values.pop("asymmetric", None)  # of the published form; a scale a token, when asked for, wins
        if config.solver is not None:
            if values.get("weight_quantizer") != "lat":
                raise UsageError(
                    f"method {self.name} has no loss-aware ternarisation, so --solver has no meaning for it; "
                    "leave it out, or take ternarybert-lat"
                )
            values["ternary_solver"] = config.solver
        return QuantConfig(method=self.name, bits=text, **values)
