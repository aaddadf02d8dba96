"""Tensors as JSON, and places that are driven by commands: what Node and the browser have in common.

A command is {"op": ..., ...}; see js/engine.mjs for what each answers.
"""

from __future__ import annotations

import base64
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from qexport.errors import UnsupportedModelError
from qexport.serving.feeds import feeds_for
from qexport.serving.session import KNOWN_INPUTS, Batch
from qexport.serving.targets.protocol import Job, Measure

__all__ = ["CommandPlace", "CommandRunner", "from_wire", "to_wire"]

_TYPES: dict[str, np.dtype[Any]] = {
    "float32": np.dtype("<f4"), "float64": np.dtype("<f8"), "int64": np.dtype("<i8"),
    "int32": np.dtype("<i4"), "int8": np.dtype("i1"), "uint8": np.dtype("u1"), "bool": np.dtype("?"),
}  # fmt: skip


def to_wire(array: npt.NDArray[Any]) -> dict[str, Any]:
    """An array as {type, dims, data}: base64 of its little-endian bytes."""
    kind = next(name for name, dtype in _TYPES.items() if dtype == array.dtype.newbyteorder("<"))
    data = np.ascontiguousarray(array, _TYPES[kind]).tobytes()
    return {"type": kind, "dims": list(array.shape), "data": base64.b64encode(data).decode("ascii")}


def from_wire(tensor: Mapping[str, Any]) -> npt.NDArray[Any]:
    """The array of a {type, dims, data}."""
    flat: npt.NDArray[Any] = np.frombuffer(base64.b64decode(tensor["data"]), _TYPES[tensor["type"]])
    return np.array(flat.reshape(tensor["dims"]))


class CommandRunner:
    """One file in one engine."""

    def __init__(self, place: CommandPlace, engine: str, key: str, inputs: list[str]) -> None:
        self.place, self.engine, self.key, self.inputs = place, engine, key, inputs

    def run(self, batch: Batch) -> dict[str, npt.NDArray[Any]]:
        """Every output of one batch, by name."""
        feeds = {name: to_wire(value) for name, value in feeds_for(self.inputs, batch).items()}
        found = self.place.call({"op": "run", "engine": self.engine, "key": self.key, "feeds": feeds})
        return {name: from_wire(tensor) for name, tensor in found.items()}


class CommandPlace(ABC):
    """A place that answers commands: `call` sends one, `engine` names what runs a mode."""

    def __init__(self) -> None:
        self._open: dict[tuple[str, str], CommandRunner] = {}

    @abstractmethod
    def call(self, command: Mapping[str, Any]) -> Any:
        """The answer to one command.

        Raises:
            TargetLost: the other side ended or did not answer.
            UnsupportedModelError: it answered with an error.
        """

    @abstractmethod
    def engine(self, mode: str, threads: int) -> str:
        """Name of the engine of a mode: "wasm-1", "webgpu", "native-2"."""

    @abstractmethod
    def address(self, model: Path) -> str:
        """How the other side reads a file: a path or a URL."""

    def open(self, model: Path, *, mode: str, threads: int) -> CommandRunner:
        """Load an .onnx file; one that is open already is used again.

        Raises:
            UnsupportedModelError: this runtime cannot load it.
        """
        engine, key = self.engine(mode, threads), hashlib.sha256(str(model).encode()).hexdigest()[:16]
        if (engine, key) not in self._open:
            command = {"op": "open", "engine": engine, "key": key, "url": self.address(model)}
            try:
                answer = self.call(command)
            except UnsupportedModelError as error:
                raise UnsupportedModelError(f"{mode} cannot load {model} ({error})") from error
            foreign = [name for name in answer["inputs"] if name not in KNOWN_INPUTS]
            if foreign:
                raise UnsupportedModelError(
                    f"{model} has the input {foreign[0]}; inputs must be among {', '.join(KNOWN_INPUTS)}"
                )
            self._open[engine, key] = CommandRunner(self, engine, key, answer["inputs"])
        return self._open[engine, key]

    def time(
        self, jobs: Mapping[str, Job], batch: Batch, *, rounds: int, warmup: int
    ) -> dict[str, npt.NDArray[np.float64]]:
        """Milliseconds by the other side's performance.now, in turns there."""
        listed, names = [], set()
        for name, job in jobs.items():
            runner = self.open(job.model, mode=job.mode, threads=job.threads)
            listed.append({"name": name, "engine": runner.engine, "key": runner.key})
            names |= set(runner.inputs)
        feeds = {name: to_wire(value) for name, value in feeds_for(sorted(names), batch).items()}
        return self.turns(listed, feeds, rounds=rounds, warmup=warmup)

    def turns(
        self, jobs: Sequence[Mapping[str, str]], feeds: Mapping[str, Any], *, rounds: int, warmup: int
    ) -> dict[str, npt.NDArray[np.float64]]:
        """Milliseconds of each job in each round; one command a round, so that no command takes long.

        Args:
            jobs: name, engine and key of each.
            feeds: input -> tensor, see `to_wire`.
            rounds, warmup: timed rounds, and rounds before them.
        """
        times: dict[str, list[float]] = {job["name"]: [] for job in jobs}
        for index in range(-warmup, rounds):
            command = {"op": "round", "jobs": jobs, "feeds": feeds, "first": max(0, index)}
            for name, taken in self.call(command).items():
                if index >= 0:
                    times[name].append(taken)
        return {name: np.asarray(taken, np.float64) for name, taken in times.items()}

    def measures(self) -> list[Measure]:
        """None."""
        return []
