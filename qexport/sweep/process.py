"""Command: one child process of a run, so that its crash and Ctrl-C do no harm, and what asks it to stop."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType

import qexport
from qexport.errors import EnvironmentProblem, QexportError

__all__ = ["Command", "CommandFailed", "Stop", "log_tail"]

_PREFIX = "qexport: "
_LINE_EVERY_S = 60.0
_TAIL_BYTES = 20_000

# SIGTERM, which qexport takes as Ctrl-C: a child of a background shell begins with SIGINT ignored.
_STOPS = (signal.SIGTERM, signal.SIGTERM, getattr(signal, "SIGKILL", signal.SIGTERM))


class CommandFailed(QexportError):
    """A command of a run ended with an error; its text is that command's one sentence."""

    def __init__(self, sentence: str, code: int) -> None:
        super().__init__(sentence)
        self.code = code


class Stop:
    """How often Ctrl-C or `kill` asked the sweep to stop.

    The handler only counts, so it breaks nothing wherever it comes; who waits for children looks at `asked`.
    """

    def __init__(self) -> None:
        self.asked = 0

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Count SIGINT and SIGTERM inside the block; one that this process ignores stays ignored."""
        old = {}
        if threading.current_thread() is threading.main_thread():
            handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
            ignored = (signal.SIG_IGN, None)  # None: set outside Python
            old = {number: handler for number, handler in handlers.items() if handler not in ignored}
        for number in old:
            signal.signal(number, self._count)
        try:
            yield
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)

    def _count(self, number: int, frame: FrameType | None) -> None:
        self.asked += 1


class Command:
    """`qexport WORDS` in a process of its own, running from here on; what it prints is added to a log.

    The child has a process group of its own, so Ctrl-C in a terminal does not reach it: `stop` does. A child
    whose parent was killed gets SIGTERM, where the system can do that. The system means the thread by parent
    (prctl(2), PR_SET_PDEATHSIG), so start a command in a thread that outlives it.
    """

    def __init__(
        self,
        words: Sequence[str],
        log: Path,
        *,
        launcher: Sequence[str] = (),
        hold: int | None = None,
        say: Callable[[str], None] = lambda line: None,
        accept: Sequence[int] = (0,),
    ) -> None:
        """Start it.

        Args:
            words: after `qexport`.
            log: file to append to.
            launcher: words before `-m qexport`; empty: this Python.
            hold: a file descriptor that the child keeps open, such as that of a lock.
            say: told the last line of the log once a minute.
            accept: exit codes that are no failure.
        Raises:
            EnvironmentProblem: the launcher cannot be started.
        """
        self._name, self._log, self._say, self._accept = words[0], log, say, tuple(accept)
        command = [*(_found(launcher) or [sys.executable]), "-m", "qexport", *words]
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as file:
            file.write(f"$ qexport {' '.join(words)}\n".encode())
            file.flush()
            self._start = file.tell()
            try:
                self._child = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=_environment(),
                    start_new_session=os.name == "posix",
                    pass_fds=(hold,) if hold is not None and os.name == "posix" else (),
                    preexec_fn=_end_with_parent() if sys.platform == "linux" else None,
                )  # fmt: skip
            except OSError as error:
                raise EnvironmentProblem(
                    f"cannot start {command[0]}: {error.strerror}; correct launcher:"
                ) from error
        self._stops = 0
        self._shown, self._looked = "", time.monotonic()

    def ended(self) -> bool:
        """Whether it has ended, well or not; while it has not, `say` is told how far it is."""
        if self._child.poll() is not None:
            return True
        if time.monotonic() - self._looked >= _LINE_EVERY_S:
            self._looked = time.monotonic()
            line = next((text for text in reversed(log_tail(self._log, self._start)) if text.strip()), "")
            if line != self._shown:
                self._say(line[:160])
            self._shown = line
        return False

    def stop(self) -> None:
        """Let a training write its checkpoint; a second call stops it at once, a third one kills it."""
        _signal(self._child, _STOPS[min(self._stops, len(_STOPS) - 1)])
        self._stops += 1

    def check(self) -> None:
        """Judge how it ended; call this when it has.

        Raises:
            CommandFailed: with an exit code that is not accepted.
        """
        code = self._child.wait()
        if code not in self._accept:
            raise CommandFailed(_sentence(self._log, self._start, self._name, code), code)


def _signal(child: subprocess.Popen[bytes], number: int) -> None:
    if os.name == "posix":
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, number)
    else:
        child.terminate()


def _end_with_parent() -> Callable[[], None]:
    prctl = ctypes.CDLL(None).prctl

    def ask() -> None:
        prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG

    return ask


def _found(launcher: Sequence[str]) -> list[str]:
    """The launcher's words; a program beside this Python is found without an activated environment."""
    if not launcher:
        return []
    beside = Path(sys.executable).parent / launcher[0]
    return [str(beside) if beside.is_file() else launcher[0], *launcher[1:]]


def _environment() -> dict[str, str]:
    """The child imports the same qexport, and does not take a checkout in the current folder for it."""
    values = dict(os.environ)
    if Path(qexport.__file__).resolve().parents[1] != Path.cwd().resolve():
        values["PYTHONSAFEPATH"] = "1"
    return values


def log_tail(log: Path, start: int = 0) -> list[str]:
    """The last lines of a log, from byte `start` on."""
    with log.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(start, size - _TAIL_BYTES))
        return file.read().decode("utf-8", errors="replace").splitlines()


def _sentence(log: Path, start: int, command: str, code: int) -> str:
    """What went wrong, in one sentence."""
    lines = [line for line in log_tail(log, start) if line.strip()]
    own = [line for line in lines if line.startswith(_PREFIX)]
    if own:
        return own[-1].removeprefix(_PREFIX)
    if code < 0:
        name = signal.Signals(-code).name
        memory = "; was there enough memory?" if name == "SIGKILL" else ""
        return f"{command} was ended by {name}{memory}"
    return f"{command} ended with exit code {code}: {lines[-1] if lines else 'it printed nothing'}"
