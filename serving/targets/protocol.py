"""What a target is: the protocol that `verify`, and every target built in or added, keep to.

A target is a place where an ONNX file can be run: a session in this process, a browser, another machine. It
is stateless; `start` gives a `Place`, which holds processes and open files until it is closed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from qexport.serving.evaluate import Runner
from qexport.serving.native import Library
from qexport.serving.session import Batch

__all__ = ["Clock", "Facts", "Job", "Measure", "Place", "Say", "Target"]

Say = Callable[[str], None]
"""Takes one line of progress."""

Clock = Literal["host", "own", "none"]
"""Whose clock times a mode.

host: an ordinary ONNX Runtime session in this process. `verify` times it in turns with the baselines, and
    measures its load time and peak memory.
own: the place times it (`Place.time`), in turns with the baselines it is given. Such times stand beside those
    of the host in the report, and are never divided by them.
none: its time says nothing about a runtime (an evaluator, an emulator).
"""


@dataclass(frozen=True, slots=True)
class Job:
    """One file to time in one way."""

    model: Path
    """The .onnx file."""
    mode: str
    """One of the target's modes."""
    threads: int
    """Threads inside one operator; a mode that fixes its own number ignores it."""


@dataclass(frozen=True, slots=True)
class Measure:
    """One further number that a target measured, with its own unit."""

    name: str
    """What it is: "instructions per inference, 32 tokens"."""
    value: float
    """The number."""
    unit: str
    """Its unit: "instructions", "bytes", "s", "°C"."""
    detail: str = ""
    """How it was measured, in one line."""


@dataclass(frozen=True, slots=True)
class Facts:
    """The machine and the versions of a running place."""

    machine: dict[str, str] = field(default_factory=dict)
    """What -> value: processor, system, browser, ...; empty for this machine, which the report describes."""
    versions: dict[str, str] = field(default_factory=dict)
    """Runtime or tool -> version."""
    threads: dict[str, int] = field(default_factory=dict)
    """Mode -> threads, of the modes that fix their own number."""
    left_out: dict[str, str] = field(default_factory=dict)
    """Mode -> why it cannot run here; `verify` leaves it out and says so."""


class Place(Protocol):
    """A target that was started.

    Every method may raise `TargetLost` (it stopped answering), which loses this target and no other.
    """

    def facts(self) -> Facts:
        """Machine and versions, asked of the place itself."""

    def open(self, model: Path, *, mode: str, threads: int) -> Runner:
        """Load an .onnx file; `Runner.run` maps a batch to named outputs, numpy arrays.

        Raises:
            UnsupportedModelError: the file cannot be loaded there.
        """

    def time(
        self, jobs: Mapping[str, Job], batch: Batch, *, rounds: int, warmup: int
    ) -> Mapping[str, npt.NDArray[np.float64]]:
        """Milliseconds of each job in each round by the place's own clock; only for the clock "own".

        Every round runs every job once and starts with the next one, so that index i of every array comes
        from the same round.
        """

    def measures(self) -> list[Measure]:
        """Further numbers, after everything else ran; [] for none."""

    def close(self) -> None:
        """End processes, remove what was copied; called once, also after a failure. Raises nothing."""


class Target(Protocol):
    """One place that can run an ONNX file; stateless, so one instance serves every model."""

    @property
    def name(self) -> str:
        """Registered name: "stock"; or the whole address, "ssh://user@host"."""

    @property
    def modes(self) -> tuple[str, ...]:
        """Ways to run the file there, the ordinary one first; one engine name each: ("stock", ...)."""

    def row_limit(self, mode: str) -> int | None:
        """Rows that `verify` runs in this mode by default; None means all of them."""

    def clock(self, mode: str) -> Clock:
        """Whose clock times this mode."""

    def library(self) -> Library | None:
        """The kernel library that runs there in this process, with its instruction set; None for none."""

    def check(self) -> None:
        """Find out, before any work starts and within a second or two, whether the target can be used here.

        Raises:
            EnvironmentProblem: it cannot; `MissingToolError` holds the command that installs what is missing.
        """

    def prepare(self, say: Say) -> dict[str, Any]:
        """Fetch what `check` asks for, into QEXPORT_CACHE; `qexport target prepare NAME`.

        Returns:
            what is there now, for people: name -> value.
        Raises:
            EnvironmentProblem: it cannot be fetched.
        """

    def start(self, say: Say) -> Place:
        """Start it.

        Raises:
            EnvironmentProblem: it does not start; what it had started is ended.
        """
