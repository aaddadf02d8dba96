"""Run: one training of a sweep, the key that tells it from others, its folder and its commands."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qexport.commands.export import OPTIONS as EXPORT_OPTIONS
from qexport.commands.train import OPTIONS as TRAIN_OPTIONS
from qexport.commands.verify import OPTIONS as VERIFY_OPTIONS
from qexport.graphs.config import ExportConfig
from qexport.sweep.settings import words
from qexport.training.config import TrainConfig
from qexport.training.recipes import get_recipe
from qexport.verification import VerificationConfig

__all__ = ["Run", "RunFolder", "expanded", "shell_line", "variables"]

KEY_FORMAT = 1
"""Part of every key: raised when the same settings would mean another run, whatever the method; what
`--as-published` of one method means has a number of its own, `Recipe.published_revision`."""

WITHOUT_EFFECT = frozenset({"data_dir", "threads", "eval_batch_size", "logging", "logging_steps"})
"""Options of `train` that say where and how it runs, not what comes out; no part of a run's key."""

_NOT_FOR_VERIFY = frozenset(
    {"model", "teacher", "task", "batch_size", "threads", "warmup", "max_length", "seed", "student"}
)
"""Options that train and verify both have with another meaning, or that verify finds out by itself."""


_VARIABLE = re.compile(r"\$(\w+)|\$\{(\w+)\}")


def variables(text: str) -> list[str]:
    """Names of the environment variables in a value such as "$GLUE/extra"."""
    return [first or second for first, second in _VARIABLE.findall(text)]


def expanded(words: Sequence[str]) -> list[str]:
    """The words with the values of environment variables in place of their names."""
    return [os.path.expandvars(word) for word in words]


def shell_line(words: Sequence[str]) -> str:
    """A command to paste into a shell that knows the variables in it."""
    return " ".join(["qexport", *(word if _VARIABLE.match(word) else shlex.quote(word) for word in words)])


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One row of the table."""

    method: str
    task: str
    """Registered task, or the name that the sweep gives to the user's own files."""
    bits: str
    """W-E-A; 32-32-32 where nothing is quantised."""
    seed: int
    options: Mapping[str, Any]
    """Fields of TrainConfig that the sweep sets, JSON values; without method, task, bits, seed, teacher."""
    teacher: Run | str | None
    """The run that trains its teacher, a folder, or None."""
    groups: tuple[str, ...]
    """Names of the grids that it belongs to."""
    quantised: bool
    """Whether the method takes --bits."""
    registered: bool
    """Whether --task knows the task; else its name is the sweep's own and its files are among the options."""
    varied: tuple[str, ...] = ()
    """Options that its grid gives several values, as "lr=0.0002"; shown to people, no part of the key."""

    @property
    def key(self) -> str:
        """12 hexadecimal digits: equal for equal settings, whatever the machine and the folders."""
        teacher = self.teacher.key if isinstance(self.teacher, Run) else self.teacher
        settings = {
            "format": KEY_FORMAT, "method": self.method, "task": self.task, "bits": self.bits,
            "seed": self.seed, "teacher": teacher,
            "options": {name: value for name, value in self.options.items() if name not in WITHOUT_EFFECT},
        }  # fmt: skip
        revision = get_recipe(self.method).published_revision if self.options.get("as_published") else 1
        if revision > 1:
            settings["published_revision"] = revision
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]

    @property
    def name(self) -> str:
        """Name of its folder: task-method-bits-seed-key."""
        bits = f"-{self.bits}" if self.quantised else ""
        return f"{self.task}-{self.method}{bits}-s{self.seed}-{self.key[:6]}"

    @property
    def title(self) -> str:
        """For people: "mrpc kdlsq 2-2-8 seed 42"."""
        return " ".join(
            [
                self.task,
                self.method,
                *([self.bits] if self.quantised else []),
                f"seed {self.seed}",
                *self.varied,
            ]
        )

    def grouped(self, groups: tuple[str, ...]) -> Run:
        """The same run as a member of these groups too."""
        return dataclasses.replace(self, groups=tuple(dict.fromkeys((*self.groups, *groups))))


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Where a run is kept, and the commands that make what is in it.

    The words of a command hold $VARIABLES as the file writes them; `expanded` puts their values in.
    """

    run: Run
    root: Path
    """Output folder of the sweep."""
    verify: Mapping[str, Any]
    """Fields of VerificationConfig that the sweep sets."""

    @property
    def path(self) -> Path:
        return self.root / self.run.name

    @property
    def model(self) -> Path:
        """The trained model."""
        return self.path / "model"

    @property
    def onnx(self) -> Path:
        """The exported folder."""
        return self.path / "onnx"

    @property
    def report(self) -> Path:
        """The verification's report."""
        return self.path / "report"

    @property
    def log(self) -> Path:
        """What the three commands printed."""
        return self.path / "log.txt"

    @property
    def teacher(self) -> str | None:
        """Folder of the teacher."""
        teacher = self.run.teacher
        return str(self.root / teacher.name / "model") if isinstance(teacher, Run) else teacher

    def train_words(self) -> list[str]:
        """`train ...`, without --resume or --force."""
        run = self.run
        values: dict[str, Any] = {
            "method": run.method, "task": run.task if run.registered else None,
            "bits": run.bits if run.quantised else None, "seed": run.seed, "teacher": self.teacher,
            **run.options, "output": self.model,
        }  # fmt: skip
        return ["train", *words(TrainConfig, values, TRAIN_OPTIONS)]

    def export_words(self) -> list[str]:
        """`to-onnx ...`, without --force."""
        return ["to-onnx", str(self.model), *words(ExportConfig, {"output": self.onnx}, EXPORT_OPTIONS)]

    def verify_words(self) -> list[str]:
        """`verify ...`: on stock ONNX Runtime, against the PyTorch student and teacher, without latency."""
        names = {field.name for field in dataclasses.fields(VerificationConfig)} - _NOT_FOR_VERIFY
        shared = {name: value for name, value in self.run.options.items() if name in names}
        if "eval_samples" in shared:
            shared["seed"] = self.run.seed  # the same rows as in training
        threads = self.run.options.get("threads")
        values: dict[str, Any] = {
            "task": self.run.task if self.run.registered else None, "student": self.model,
            "teacher": self.teacher or "none", "baseline": "none", "report": self.report,
            "targets": ["stock"], "latency": False, **({"threads": [threads]} if threads else {}),
            **shared, **self.verify,
        }  # fmt: skip
        return ["verify", str(self.onnx), *words(VerificationConfig, values, VERIFY_OPTIONS)]
