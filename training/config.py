"""TrainConfig: everything one training run depends on."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qexport.errors import UsageError
from qexport.formats import (
    ACTIVATION_MODES,
    ASYMMETRIC,
    GRANULARITIES,
    INITIAL_STEPS,
    TERNARY_SOLVERS,
    parse_bits,
)

__all__ = ["TrainConfig"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """One training run: a teacher (`fp32`) or a low-bit student.

    The text under a field is its help on the command line. Where a field is None and its text names no other
    default, the method's own holds (training/recipes).
    """

    method: str
    """Method: fp32, ternarybert, ternarybert-lat, q8bert, lsq, lsq-kd, kdlsq, binarybert, ghostbert or
    tinybert."""
    output: Path
    """Folder for the trained model, Hugging Face layout."""
    task: str | None = None
    """Registered task such as sst2, ner (tagged words) or embedding (sentence vectors); or give your own
    files with --data and --eval."""
    model: str | None = None
    """Encoder to start from: folder, hub id, or minilm (the packaged all-MiniLM-L6-v2); default: the teacher,
    or minilm where there is none."""
    teacher: str | None = None
    """Fine-tuned float model, folder or hub id: what is distilled and, without --model, where the student
    starts."""
    bits: str | None = None
    """Bits of weights - word embedding - activations, such as 2-2-8; 2 is ternary, 1 binary."""
    activations: str | None = None
    """Scales of activations: dynamic-token (one per token), dynamic-tensor (one per batch) or static (an
    average of the training, then fixed)."""
    granularity: str | None = None
    """Scales of a weight matrix: row (one per output) or matrix (one)."""
    embedding_granularity: str | None = None
    """Scales of the word embedding: row (one per word) or matrix (one); default: row, and matrix for lsq,
    lsq-kd and kdlsq and for q8bert with --as-published."""
    solver: str | None = None
    """How ternarybert-lat finds ternary weights: alternating (approximate, the default) or exact (a sort of
    every matrix in each step, slower)."""
    activation_clip: float | None = None
    """Clip activations to [-c, c] before they are quantised; 0 for no clip; TernaryBERT as published: 2.5."""
    asymmetric: str | None = None
    """Matrices whose inputs have a range that is not symmetric, with a zero point: none, feed-forward (those
    that read GELU's output) or all; needs --activations static or dynamic-tensor; default: none, and
    feed-forward for binarybert with --as-published."""
    position_bits: int | None = None
    """Bits of the position embedding: 8 or 32."""
    initial_step: str | None = None
    """Methods with learned steps: where steps begin, truncation (Algorithm 1 of KDLSQ-BERT, see --truncation)
    or mean (LSQ: 2 * mean |x| / sqrt(largest code)); default: truncation."""
    truncation: float | None = None
    """Methods with learned steps: the part of the values that lies beyond the clipping threshold at the start
    (Algorithm 1 of KDLSQ-BERT), half of it on each side; default: for each threshold what leaves the least
    squared error, and 0.05 with --as-published."""
    width: float | None = None
    """ghostbert: share of the attention heads and of the neurons that is kept; default: 0.5."""
    ghosts: int | None = None
    """ghostbert: ghost modules of each kept head; default: as many as make up for the heads that were cut,
    at least 1."""
    ghost_kernel: int | None = None
    """ghostbert: tokens that a ghost module looks at, an odd number; default: 3."""
    as_published: bool = False
    """Quantise as the paper's released code does instead of by qexport's defaults, as far as docs/methods.md
    says; single quantisation options still win."""

    layers: int | None = None
    """tinybert: layers of the student; default: 4."""
    hidden_size: int | None = None
    """tinybert: width of its hidden states, a multiple of --heads; default: 312."""
    intermediate_size: int | None = None
    """tinybert: neurons of the feed-forward part of its layers; default: 1200."""
    heads: int | None = None
    """tinybert: attention heads of its layers; default: 12."""

    data_dir: Path | None = None
    """Folder with GLUE's own TSV files or SQuAD's own JSON files."""
    train_file: Path | None = None
    """Own training file: CSV, TSV or JSONL, JSON in SQuAD's layout, for ner columns (CoNLL) or JSONL, for
    embedding also one text a line; needs --eval too."""
    eval_file: Path | None = None
    """Own evaluation file: as --data; for embedding pairs of texts with a score."""
    text_column: str | None = None
    """Column with the (first) text of the own files; default: a usual name such as text or sentence. Task
    ner: number of the word's column from 0, or key in JSONL. Task embedding: the text columns, by comma."""
    text_pair_column: str | None = None
    """Column with the second text of the own files; default: a usual name such as sentence2, for pairs."""
    label_column: str | None = None
    """Column with the label of the own files; default: label. Task ner: number of the tag's column from 0, -1
    for the last one, or key in JSONL. Task embedding: the score of a pair."""
    regression: bool = False
    """Labels of the own files are numbers to predict, not classes."""
    eval_articles: float | None = None
    """Question answering without --eval: evaluate on this part of the articles of --data, such as 0.1, and
    train on the others."""
    train_samples: int | None = None
    """Keep only so many training rows, drawn at random with --seed; default: all."""
    eval_samples: int | None = None
    """Keep only so many rows of each evaluation split, drawn at random with --seed; default: all."""

    augment: int | None = None
    """Add up to so many copies of each text of a training row, with other words in it (TinyBERT's data
    augmentation); default: none. TinyBERT takes 10 to 30, see docs/training.md."""
    augment_model: str | None = None
    """Masked language model that chooses those words, folder or hub id such as bert-base-uncased; default:
    where the training starts from, if it has the head for it."""
    augment_probability: float = 0.4
    """Probability that a copy has another word in the place of a word."""
    augment_candidates: int = 15
    """Words to choose from for each word."""
    glove: Path | None = None
    """GloVe vectors, a text file, for words of several tokens; default: those words stay."""

    epochs: float | None = None
    """Passes over the training rows; default: 3. In methods with stages of each one; default: see
    docs/methods.md."""
    max_steps: int | None = None
    """Stop after so many optimiser steps, in each stage; overrides --epochs."""
    lr: float | None = None
    """Peak learning rate; default: 2e-5 for ternarybert, ternarybert-lat and q8bert, 3e-5 for tinybert, 5e-5
    for the other methods. The stages of binarybert, ghostbert and tinybert take multiples of it."""
    weight_step_lr: float | None = None
    """Peak learning rate of learned steps of weights, and of the offsets of --asymmetric; default: 1e-3."""
    activation_step_lr: float | None = None
    """Peak learning rate of learned steps of activations; default: 3e-2."""
    batch_size: int | None = None
    """Rows in a forward pass of one process; default: 32."""
    eval_batch_size: int = 64
    """Rows in an evaluation batch."""
    gradient_accumulation: int = 1
    """Forward passes in an optimiser step."""
    warmup: float | None = None
    """Fraction of the steps over which the learning rate rises; after them it falls linearly to 0; default:
    0 for lsq, lsq-kd and kdlsq, 0.1 for the other methods."""
    weight_decay: float | None = None
    """Decoupled weight decay of matrices and embeddings; biases and LayerNorm have none; default: 0.01."""
    max_length: int | None = None
    """Longest sequence in tokens; default: the task's, 64 to 384. A model with fewer positions lowers it."""
    dropout: float | None = None
    """Dropout of hidden states and attention; default: the model's own."""
    seed: int = 42
    """Seed of shuffling, dropout, new task layers and drawn rows."""
    bf16: bool = False
    """bfloat16 autocast; fast where the CPU or GPU multiplies bfloat16."""
    threads: int | None = None
    """CPU threads of PyTorch; default: PyTorch's own choice."""
    group_by_length: bool = True
    """Batches of similar length: less padding, another order of rows than plain shuffling."""

    hidden_weight: float | None = None
    """Weight of the loss between hidden states; default: 1 for TernaryBERT, lsq-kd and kdlsq, by stage for
    binarybert, ghostbert and tinybert, else 0."""
    attention_weight: float | None = None
    """Weight of the loss between attention scores; default: 1 for TernaryBERT, lsq-kd and kdlsq, by stage
    for binarybert, ghostbert and tinybert, else 0."""
    logits_weight: float | None = None
    """Weight of the loss between logits (soft cross-entropy); default: 1 for TernaryBERT, lsq-kd and kdlsq,
    by stage for binarybert, ghostbert and tinybert, else 0."""
    label_weight: float | None = None
    """Weight of the loss with the true labels; default: 0 for TernaryBERT, lsq-kd, binarybert and
    tinybert, by stage for ghostbert, else 1."""
    temperature: float = 1.0
    """Temperature of the soft cross-entropy."""

    eval_steps: int | None = None
    """Optimiser steps between two evaluations, each with a checkpoint; default: one epoch."""
    early_stopping: int | None = None
    """Stop after so many evaluations in a row without a better main metric; default: never."""
    logging: str = "none"
    """Extra log: none or tensorboard."""
    logging_steps: int = 50
    """Optimiser steps between two lines of the log."""
    resume: bool = False
    """Go on from the newest checkpoint in the output folder."""
    force: bool = False
    """Start anew in a folder that exists; a finished model there is replaced when this run ends."""

    def __post_init__(self) -> None:
        if self.task is None and self.train_file is None:
            raise UsageError("give --task (a registered task) or --data (your own training file)")
        if self.bits is not None:
            parse_bits(self.bits)
        _one_of("--activations", self.activations, ACTIVATION_MODES)
        _one_of("--granularity", self.granularity, GRANULARITIES)
        _one_of("--embedding-granularity", self.embedding_granularity, GRANULARITIES)
        _one_of("--solver", self.solver, TERNARY_SOLVERS)
        _one_of("--asymmetric", self.asymmetric, ASYMMETRIC)
        _one_of("--initial-step", self.initial_step, INITIAL_STEPS)
        _one_of("--logging", self.logging, ("none", "tensorboard"))
        if self.position_bits not in (None, 8, 32):
            raise UsageError(f"--position-bits must be 8 or 32, got {self.position_bits}")
        if self.resume and self.force:
            raise UsageError("--resume goes on with a run and --force starts it anew; leave one of them out")
        if not 0 <= self.seed < 2**32:
            raise UsageError(f"--seed must be in 0..{2**32 - 1}, got {self.seed}")
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, float) and not math.isfinite(value):
                raise UsageError(f"--{field.name.replace('_', '-')} must be a finite number, got {value}")
        if self.warmup is not None and self.warmup > 1:
            raise UsageError(f"--warmup is a fraction of the steps, at most 1, got {self.warmup:g}")
        positive = (
            "epochs",
            "max_steps",
            "lr",
            "weight_step_lr",
            "activation_step_lr",
            "batch_size",
            "eval_batch_size",
            "gradient_accumulation",
            "max_length",
            "threads",
            "eval_steps",
            "early_stopping",
            "logging_steps",
            "temperature",
            "train_samples",
            "eval_samples",
            "layers",
            "hidden_size",
            "intermediate_size",
            "heads",
            "width",
            "ghosts",
            "augment",
            "augment_candidates",
        )
        for name in positive:
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise UsageError(f"--{name.replace('_', '-')} must be greater than 0, got {value}")
        for name in (
            "activation_clip",
            "warmup",
            "weight_decay",
            "hidden_weight",
            "attention_weight",
            "logits_weight",
            "label_weight",
            "dropout",
        ):
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise UsageError(f"--{name.replace('_', '-')} must be 0 or greater, got {value}")
        if self.width is not None and self.width > 1:
            raise UsageError(f"--width is a share of the heads, at most 1, got {self.width:g}")
        if self.ghost_kernel is not None and (self.ghost_kernel < 1 or self.ghost_kernel % 2 == 0):
            raise UsageError(f"--ghost-kernel must be odd and at least 1, got {self.ghost_kernel}")
        for name in ("augment_probability", "augment_candidates"):
            if not self.augment and getattr(self, name) != _DEFAULTS[name]:
                raise UsageError(
                    f"--{name.replace('_', '-')} {getattr(self, name):g} has no meaning without --augment; "
                    "give the number of copies"
                )
        if not 0 <= self.augment_probability <= 1:
            raise UsageError(f"--augment-probability must be in 0..1, got {self.augment_probability:g}")
        for option, given in (("--augment-model", self.augment_model), ("--glove", self.glove)):
            if given is not None and not self.augment:
                raise UsageError(
                    f"{option} {given} has no meaning without --augment; give the number of copies"
                )
        if self.truncation is not None and not 0 <= self.truncation < 1:
            raise UsageError(f"--truncation must be at least 0 and below 1, got {self.truncation:g}")
        if self.initial_step == "mean" and self.truncation is not None:
            raise UsageError(
                f"--initial-step mean cuts nothing off, so --truncation {self.truncation:g} has no meaning; "
                "leave one of them out"
            )

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values, paths as text."""
        plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self), default=str))
        return plain


_DEFAULTS = {field.name: field.default for field in dataclasses.fields(TrainConfig)}


def _one_of(option: str, value: str | None, allowed: tuple[str, ...]) -> None:
    if value is not None and value not in allowed:
        raise UsageError(f"{option} must be one of {', '.join(allowed)}, got '{value}'")
