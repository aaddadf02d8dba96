"""Our side of the runner's streams: batches out, outputs and times back, its end turned into one sentence."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import numpy as np
import numpy.typing as npt

from qexport.errors import (
    DiskFullError,
    EnvironmentProblem,
    QexportError,
    TargetLost,
    UnsupportedModelError,
)
from qexport.serving.feeds import feeds_for
from qexport.serving.runner import python_runner as stream
from qexport.serving.runner.channel import Channel
from qexport.serving.session import KNOWN_INPUTS, Batch

__all__ = ["RunnerClient"]

_HINTS: dict[int, tuple[type[QexportError], str]] = {
    2: (EnvironmentProblem, ""),
    stream.NO_RUNTIME: (EnvironmentProblem, "; give a libonnxruntime of that machine with ?ort=FILE"),
    21: (EnvironmentProblem, "; give the library for its own architecture"),
    22: (EnvironmentProblem, "; give a newer libonnxruntime with ?ort=FILE"),
    stream.NO_KERNELS: (EnvironmentProblem, "; use the stock mode there"),
    stream.NO_ISA: (EnvironmentProblem, "; leave isa out of the address"),
    stream.BAD_MODEL: (UnsupportedModelError, ""),
    stream.BAD_INPUT: (UnsupportedModelError, ""),
    stream.RUN_FAILED: (UnsupportedModelError, ""),
    stream.DISK_FULL: (DiskFullError, ""),
    30: (EnvironmentProblem, "; it needs more memory"),
    126: (
        EnvironmentProblem,
        "; its files may lie where programs must not run, name another folder in the address",
    ),
    127: (EnvironmentProblem, "; what it needs to start is missing there"),
}
"""Exit code -> class of the error, and the way out."""

_CUT_SHORT = {stream.OUTPUT_CLOSED, 255, None}
"""Ends that mean a lost connection."""


class RunnerClient:
    """A running runner with one file loaded.

    Args:
        channel: the program, just started.
        where: the target, for messages.
    Raises:
        TargetLost: it ended without a reason of its own.
        EnvironmentProblem: no libonnxruntime there, one of another architecture, no memory, no disk space.
        UnsupportedModelError: it cannot load the file.
    """

    def __init__(self, channel: Channel, where: str) -> None:
        self.where = where
        self.last: dict[str, Any] | None = None
        """What it said at its end: memory, clock, temperature; None before."""
        self._channel, self._open = channel, True
        try:
            with self._failures():
                if stream._take(channel.stdout, len(stream.MAGIC)) != stream.MAGIC:
                    raise ValueError("the first bytes are something else")
                self.facts = self._read_facts()
                """What it said at its start: versions, instruction set, load time, inputs and outputs."""
                channel.stdin.write(stream.MAGIC)
        except BaseException:  # Ctrl-C while it loads
            self.close()
            raise

    def _read_facts(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(bytes(stream.read_record(self._channel.stdout)[":facts"]))
        return found

    def run(self, batch: Batch) -> dict[str, npt.NDArray[Any]]:
        """Every output of the file for one batch."""
        return self.timed(batch)[0]

    def timed(
        self, batch: Batch, *, repeats: int = 1
    ) -> tuple[dict[str, npt.NDArray[Any]], npt.NDArray[np.float64]]:
        """Outputs of one batch, and the milliseconds of each run by the clock there, float64 [repeats].

        Raises:
            TargetLost, EnvironmentProblem, UnsupportedModelError: see the class.
        """
        if not self._open:
            raise TargetLost(f"{self.where} was closed")
        foreign = [name for name in self.facts["inputs"] if name not in KNOWN_INPUTS]
        if foreign:
            raise UnsupportedModelError(
                f"the file has an input '{foreign[0]}', so it is no text classifier; export it with "
                f"qexport to-onnx"
            )
        record = feeds_for(self.facts["inputs"], batch)
        if repeats != 1:
            record[":repeats"] = np.array([repeats], dtype=np.int64)
        with self._failures():
            stream.write_record(self._channel.stdin, record)
            found = stream.read_record(self._channel.stdout)
            times = np.asarray(found.pop(":ms"), dtype=np.float64)
        return found, times

    @contextlib.contextmanager
    def _failures(self) -> Any:
        try:
            yield
        except (OSError, EOFError, ValueError, KeyError, stream.StreamEnded) as error:
            raise self._failure(error) from error

    def _failure(self, error: Exception) -> QexportError:
        """What the end of the program says, as an error."""
        self._open = False
        if isinstance(error, (ValueError, KeyError)):
            self._channel.kill()
            return EnvironmentProblem(
                f"{self.where} sends something else than results ({error}); its login shell must "
                f"print nothing"
            )
        ended = self._channel.wait(10.0)
        lines = [line.strip() for line in ended.errors.splitlines() if line.strip()]
        own = [line for line in lines if line.startswith("qexport-runner: ")]
        said = (own or lines or [""])[-1].removeprefix("qexport-runner: ")
        if ended.code in _HINTS and not (ended.code == stream.BAD_INPUT and "ends in the middle" in said):
            kind, hint = _HINTS[ended.code]
            return kind(f"{self.where}: {said or 'the runner does not start'}{hint}")
        if ended.code in _CUT_SHORT or not ended.code or ended.code == stream.BAD_INPUT:
            reason = f" ({said})" if said else ""
            return TargetLost(
                f"the connection to {self.where} was lost while it ran{reason}; connect it and run again"
            )
        signal = -ended.code if ended.code < 0 else ended.code - 128 if ended.code > 128 else 0
        how = f"was ended by signal {signal}" if signal else f"ended with code {ended.code}"
        memory = ", it may have been out of memory" if signal == 9 else ""
        return TargetLost(f"the runner on {self.where} {how}{memory}{f' ({said})' if said else ''}")

    def finish(self) -> dict[str, Any]:
        """End it in good order; the facts it ends with: memory, clock, temperature.

        Raises:
            TargetLost, EnvironmentProblem: it ended before.
        """
        if self.last is None:
            with self._failures():
                stream.write_record(self._channel.stdin, {})
                self.last = self._read_facts()
                stream.read_record(self._channel.stdout)
            self._open = False
            self._channel.wait(10.0)
        return self.last

    def close(self) -> None:
        """End it, whatever it does; raises nothing."""
        if self._open:
            self._open = False
            self._channel.kill()
