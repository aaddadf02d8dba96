"""What targets inside this process share: nothing to prepare, nothing to start, nothing to end."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from qexport.errors import UsageError
from qexport.serving.evaluate import Runner
from qexport.serving.native import Library
from qexport.serving.session import Batch
from qexport.serving.targets.protocol import Clock, Facts, Job, Measure, Say

__all__ = ["LocalPlace", "LocalTarget"]


class LocalTarget(ABC):
    """Base of targets that open a file in this process; a subclass has name, modes, versions and open."""

    name: str
    modes: tuple[str, ...]

    def row_limit(self, mode: str) -> int | None:
        """All rows."""
        return None

    def clock(self, mode: str) -> Clock:
        """The host's."""
        return "host"

    def library(self) -> Library | None:
        """Nothing of ours."""
        return None

    def check(self) -> None:
        """Nothing to check: what it needs is a dependency of qexport."""
        return None

    def prepare(self, say: Say) -> dict[str, Any]:
        """Nothing to fetch."""
        self.check()
        return dict(self.versions())

    @abstractmethod
    def versions(self) -> dict[str, str]:
        """Runtime name -> version."""

    @abstractmethod
    def open(self, model: Path, *, mode: str, threads: int) -> Runner:
        """Load `model` (a folder or an .onnx file)."""

    def start(self, say: Say) -> LocalPlace:
        """This process."""
        return LocalPlace(self)


class LocalPlace:
    """This process, where a target opens files."""

    def __init__(self, target: LocalTarget) -> None:
        self.target = target

    def facts(self) -> Facts:
        """The versions; the machine is that of the report."""
        return Facts(versions=self.target.versions())

    def open(self, model: Path, *, mode: str, threads: int) -> Runner:
        """As the target does."""
        return self.target.open(model, mode=mode, threads=threads)

    def time(
        self, jobs: Mapping[str, Job], batch: Batch, *, rounds: int, warmup: int
    ) -> Mapping[str, npt.NDArray[np.float64]]:
        """Never called: the host times what runs in its process."""
        raise UsageError(f"target {self.target.name} has no clock of its own")

    def measures(self) -> list[Measure]:
        """None."""
        return []

    def close(self) -> None:
        """Nothing to end."""
