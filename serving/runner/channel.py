"""A program that runs somewhere and is spoken to through its standard streams."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol, cast

from qexport.errors import EnvironmentProblem, MissingToolError
from qexport.serving.complaints import Complaints
from qexport.serving.guard import Guard

__all__ = ["Channel", "Ended", "ProcessChannel"]


@dataclass(frozen=True, slots=True)
class Ended:
    """How a program ended."""

    code: int | None
    """Its exit code, negative for a signal; None where the connection was lost before it was known."""
    errors: str
    """What it wrote to standard error."""


class Channel(Protocol):
    """A running program; every method may raise OSError where the connection is lost."""

    @property
    def stdin(self) -> BinaryIO:
        """What it reads: `write`, `flush` and `close` are used."""

    @property
    def stdout(self) -> BinaryIO:
        """What it writes: `read` and `readline` are used."""

    def wait(self, timeout: float) -> Ended:
        """Wait for its end, and end it when that takes longer than `timeout` seconds."""

    def kill(self) -> None:
        """End it now; raises nothing."""


class ProcessChannel:
    """A child process, in a session of its own so that a Ctrl-C reaches it through us only; ends with us.

    Args:
        command: what to start.
        environment: its variables; None for ours.
        folders: removed when this process is killed while the child runs.
    Raises:
        MissingToolError: there is no such program.
        EnvironmentProblem: it cannot be started.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        environment: Mapping[str, str] | None = None,
        folders: Sequence[str] = (),
    ) -> None:
        self._guard = Guard(*folders)
        self._complaints = Complaints()
        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=self._complaints.file, env=environment, start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            self._guard.release()
            self._complaints.close()
            if isinstance(error, FileNotFoundError):
                raise MissingToolError(
                    f"there is no program {command[0]}", f"apt-get install {Path(command[0]).name}"
                ) from error
            raise EnvironmentProblem(f"{command[0]} does not start ({error}); install it again") from error
        self._guard.watch(self._process.pid)
        self.stdin = cast(BinaryIO, self._process.stdin)
        self.stdout = cast(BinaryIO, self._process.stdout)
        self._ended: Ended | None = None

    def wait(self, timeout: float) -> Ended:
        """Its exit code and what it complained about; a process that does not end in time is killed."""
        if self._ended is None:
            with contextlib.suppress(OSError):
                self.stdin.close()
            try:
                code = self._process.wait(timeout)
            except subprocess.TimeoutExpired:
                self._signal()
                code = self._process.wait()
            self._guard.release()
            self.stdout.close()
            self._ended = Ended(code, self._complaints.text())
            self._complaints.close()
        return self._ended

    def kill(self) -> None:
        """End it and what it started."""
        if self._ended is None:
            self._signal()
            self.wait(10.0)

    def _signal(self) -> None:
        with contextlib.suppress(OSError):
            os.killpg(self._process.pid, signal.SIGKILL)
