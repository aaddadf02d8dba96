"""Child: one command of a run in a process of its own, so that its crash and Ctrl-C do no harm."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import qexport
from qexport.errors import EnvironmentProblem, QexportError

__all__ = ["CommandFailed", "log_tail", "run_command"]

_PREFIX = "qexport: "
_POLL_S = 0.5
_LINE_EVERY_S = 60.0
_TAIL_BYTES = 20_000


class CommandFailed(QexportError):
    """A command of a run ended with an error; its text is that command's one sentence."""

    def __init__(self, sentence: str, code: int) -> None:
        super().__init__(sentence)
        self.code = code


def run_command(
    words: Sequence[str],
    log: Path,
    *,
    launcher: Sequence[str] = (),
    hold: int | None = None,
    say: Callable[[str], None] = lambda line: None,
    accept: Sequence[int] = (0,),
) -> int:
    """Run `qexport WORDS` to its end; what it prints is added to `log`.

    The child has a process group of its own. The first Ctrl-C is handed to it once, as SIGTERM, and waited
    for: a training then writes its checkpoint. A second one stops it at once, a third kills it. A child whose
    parent was killed gets SIGTERM, where the system can do that.

    Args:
        words: after `qexport`.
        log: file to append to.
        launcher: words before `-m qexport`; empty: this Python.
        hold: a file descriptor that the child keeps open, such as that of a lock.
        say: told the last line of the log once a minute.
        accept: exit codes that are no failure.
    Returns:
        The exit code.
    Raises:
        CommandFailed: another exit code.
        KeyboardInterrupt: Ctrl-C, after the child has ended.
        EnvironmentProblem: the launcher cannot be started.
    """
    command = [*(_found(launcher) or [sys.executable]), "-m", "qexport", *words]
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as file:
        file.write(f"$ qexport {' '.join(words)}\n".encode())
        file.flush()
        start = file.tell()
        try:
            child = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=_environment(),
                start_new_session=os.name == "posix",
                pass_fds=(hold,) if hold is not None and os.name == "posix" else (),
                preexec_fn=_end_with_parent() if sys.platform == "linux" else None,
            )  # fmt: skip
        except OSError as error:
            raise EnvironmentProblem(
                f"cannot start {command[0]}: {error.strerror}; correct launcher:"
            ) from error
        code = _wait(child, log, start, say)
    if code not in accept:
        raise CommandFailed(_sentence(log, start, words[0], code), code)
    return code


def _wait(child: subprocess.Popen[bytes], log: Path, start: int, say: Callable[[str], None]) -> int:
    # SIGTERM, which qexport takes as Ctrl-C: a child of a background shell begins with SIGINT ignored.
    stops = [signal.SIGTERM, signal.SIGTERM, getattr(signal, "SIGKILL", signal.SIGTERM)]
    interrupted = False
    shown, last = "", time.monotonic()
    while True:
        try:
            while (code := child.poll()) is None:
                time.sleep(_POLL_S)
                if time.monotonic() - last >= _LINE_EVERY_S:
                    last = time.monotonic()
                    line = next((text for text in reversed(log_tail(log, start)) if text.strip()), "")
                    if line != shown:
                        say(f"    {line[:160]}")
                    shown = line
            break
        except KeyboardInterrupt:
            if not interrupted:
                say("  stopping: waiting for the checkpoint; Ctrl-C again stops at once")
            interrupted = True
            _signal(child, stops.pop(0) if len(stops) > 1 else stops[0])
    if interrupted:
        raise KeyboardInterrupt
    return code


def _signal(child: subprocess.Popen[bytes], number: int) -> None:
    if os.name == "posix":
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, number)
    else:
        child.terminate()


def _end_with_parent() -> Callable[[], None]:
    library = ctypes.CDLL(None)

    def ask() -> None:
        library.prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG

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
