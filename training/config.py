"""TrainConfig: everything one training run depends on."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qexport.errors import UsageError
from qexport.formats import ACTIVATION_MODES, GRANULARITIES, parse_bits

__all__ = ["TrainConfig"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """One training run: a teacher (`fp32`) or a low-bit student.

    Fields that are None take the method's own default, see training/recipes.
    """

    method: str
    """Registered method: fp32, ternarybert, ternarybert-lat, q8bert."""
    output: Path
    """Folder of the trained model, Hugging Face layout."""
    task: str | None = None
    """Registered task such as sst2; None for the user's own files."""
    model: str | None = None
    """Encoder to start from: folder, hub id, or "minilm" (the packaged all-MiniLM-L6-v2); methods without a teacher."""
    teacher: str | None = None
    """Fine-tuned FP32 folder (or hub id): distillation target and, without `model`, the student's start."""
    bits: str | None = None
    """Bits of weights - embeddings - activations, W-E-A such as 2-2-8."""
    activations: str | None = None
    """dynamic-token, dynamic-tensor or static; see docs/methods.md."""
    granularity: str | None = None
    """Scales of a weight matrix: row (one per output) or matrix (one)."""
    activation_clip: float | None = None
    """Clip activations to [-c, c] before quantising; 0 for no clip. TernaryBERT as published: 2.5."""
    position_bits: int | None = None
    """Bits of the position embedding table: 8 or 32."""
    as_published: bool = False
    """Take every quantiser setting from the paper's released code instead of qexport's deployable defaults."""

    data_dir: Path | None = None
    """Folder with GLUE's own TSV files."""
    train_file: Path | None = None
    """Own training file: CSV, TSV or JSONL."""
    eval_file: Path | None = None
    """Own evaluation file."""
    text_column: str | None = None
    """Column with the (first) text of the own files."""
    text_pair_column: str | None = None
    """Column with the second text of the own files."""
    label_column: str | None = None
    """Column with the label of the own files."""
    regression: bool = False
    """Labels of the own files are numbers to predict, not classes."""
    train_samples: int | None = None
    """Use a random part of the training rows, drawn with `seed`."""
    eval_samples: int | None = None
    """Use a random part of the evaluation rows, drawn with `seed`."""

    epochs: float | None = None
    """Passes over the training rows."""
    max_steps: int | None = None
    """Stop after this many optimiser steps; overrides `epochs`."""
    lr: float | None = None
    """Peak learning rate."""
    batch_size: int | None = None
    """Sentences per process and forward pass."""
    eval_batch_size: int = 64
    """Sentences per evaluation batch."""
    gradient_accumulation: int = 1
    """Forward passes per optimiser step."""
    warmup: float | None = None
    """Part of the steps with rising learning rate, then linear decay to 0."""
    weight_decay: float | None = None
    """Decoupled weight decay of matrices; biases and LayerNorm have none."""
    max_length: int | None = None
    """Longest sequence in tokens; default from the task."""
    dropout: float | None = None
    """Dropout of hidden states and attention; None keeps the model's own."""
    seed: int = 42
    """Seed of shuffling, dropout, head initialisation and sampling."""
    bf16: bool = False
    """bfloat16 autocast; fast where the CPU or GPU multiplies bf16."""
    threads: int | None = None
    """CPU threads of PyTorch; None leaves its own choice."""
    group_by_length: bool = True
    """Batches of similar length: less padding, other batch order than plain shuffling."""

    hidden_weight: float | None = None
    """Weight of the hidden-state loss."""
    attention_weight: float | None = None
    """Weight of the attention-score loss."""
    logits_weight: float | None = None
    """Weight of the soft cross-entropy with the teacher's logits."""
    label_weight: float | None = None
    """Weight of the loss with the true labels."""
    temperature: float = 1.0
    """Temperature of the soft cross-entropy."""

    eval_steps: int | None = None
    """Evaluate and checkpoint every so many optimiser steps; None: once per epoch."""
    early_stopping: int | None = None
    """Stop after this many evaluations without a better main metric."""
    logging: str = "none"
    """Extra log writer: none or tensorboard."""
    logging_steps: int = 50
    """Optimiser steps between two lines of the log."""
    resume: bool = False
    """Go on from the newest checkpoint in the output folder."""
    force: bool = False
    """Replace an existing output folder."""

    def __post_init__(self) -> None:
        if self.task is None and self.train_file is None:
            raise UsageError("give --task (a registered task) or --data (your own training file)")
        if self.bits is not None:
            parse_bits(self.bits)
        _one_of("--activations", self.activations, ACTIVATION_MODES)
        _one_of("--granularity", self.granularity, GRANULARITIES)
        _one_of("--logging", self.logging, ("none", "tensorboard"))
        if self.position_bits not in (None, 8, 32):
            raise UsageError(f"--position-bits must be 8 or 32, got {self.position_bits}")
        positive = ("epochs", "max_steps", "lr", "batch_size", "eval_batch_size", "gradient_accumulation",
                    "max_length", "threads", "eval_steps", "early_stopping", "logging_steps", "temperature",
                    "train_samples", "eval_samples")  # fmt: skip
        for name in positive:
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise UsageError(f"--{name.replace('_', '-')} must be greater than 0, got {value}")
        for name in ("activation_clip", "warmup", "weight_decay", "hidden_weight", "attention_weight",
                     "logits_weight", "label_weight", "dropout"):  # fmt: skip
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise UsageError(f"--{name.replace('_', '-')} must be 0 or greater, got {value}")

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values, paths as text."""
        plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self), default=str))
        return plain


def _one_of(option: str, value: str | None, allowed: tuple[str, ...]) -> None:
    if value is not None and value not in allowed:
        raise UsageError(f"{option} must be one of {', '.join(allowed)}, got '{value}'")
