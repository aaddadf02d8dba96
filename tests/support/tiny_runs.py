"""Training runs on the reviews that conftest.py makes: their settings, their reports, and stopping them."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

from qexport.training.config import TrainConfig

Files = tuple[Path, Path]


def config(files: Files, output: Path, **values: Any) -> TrainConfig:
    """A run on training and evaluation file; what `values` do not say is made for tiny models."""
    defaults: dict[str, Any] = {
        "method": "fp32",
        "train_file": files[0],
        "eval_file": files[1],
        "batch_size": 16,
        "lr": 3e-3,
        "dropout": 0.0,
        "threads": 1,
        "logging_steps": 4,
    }
    return TrainConfig(output=output, **{**defaults, **values})


def report(folder: Path) -> dict[str, Any]:
    """qexport_train.json of a finished run."""
    values: dict[str, Any] = json.loads((folder / "qexport_train.json").read_text())
    return values


class StopAt:
    """For `say`: a Ctrl-C at the first line that begins so; the lines are kept."""

    def __init__(self, mark: str) -> None:
        self.mark, self.lines, self.sent = mark, list[str](), False

    def __call__(self, line: str) -> None:
        self.lines.append(line)
        if line.startswith(self.mark) and not self.sent:
            self.sent = True
            os.kill(os.getpid(), signal.SIGINT)
