"""What people and machines see: results on stdout, progress and errors on stderr.

NO_COLOR, TERM=dumb and streams that are no terminal are honoured by `rich`; a worker process of a distributed
run (RANK > 0) prints nothing.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

__all__ = [
    "command_line",
    "configure",
    "error",
    "is_main_process",
    "is_verbose",
    "only_results_on_stdout",
    "print_json",
    "progress",
    "remember_command",
    "results",
    "say",
    "show",
]

_WIDTH_WITHOUT_TERMINAL = 120  # rich would take 80 in a CI log and wrap every table


@dataclass
class _Settings:
    verbosity: int = 0
    color: bool = True
    results: TextIO | None = None
    command: str = "qexport"
    live: Console | None = None  # the console of a progress bar, while there is one


_settings = _Settings()


def remember_command(words: Sequence[str]) -> None:
    """Keep the words after `qexport`, for messages and reports that repeat the command."""
    _settings.command = shlex.join(["qexport", *words])


def command_line() -> str:
    """The command of this process, ready for a shell."""
    return _settings.command


def configure(*, verbosity: int = 0, color: bool = True) -> None:
    """Set what the rest of this process shows.

    Args:
        verbosity: -1 errors and results only, 0 progress lines too, 1 also the log of the libraries below.
        color: False for plain text even on a terminal.
    """
    _settings.verbosity = verbosity
    _settings.color = color
    if verbosity < 0 or not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")  # progress bars of transformers: a log file wants lines
    level = logging.INFO if verbosity > 0 else logging.WARNING if verbosity == 0 else logging.ERROR
    logging.basicConfig(
        level=level, stream=sys.stderr, format="%(name)s: %(message)s", force=not logging.root.handlers
    )
    logging.getLogger("qexport").setLevel(level)


@contextlib.contextmanager
def only_results_on_stdout() -> Iterator[None]:
    """Inside the block all that libraries print goes to stderr; `show` and `print_json` keep stdout.

    When only results and errors are wanted, it goes nowhere.
    """
    _settings.results = sys.stdout
    try:
        with (
            open(os.devnull, "w", encoding="utf-8") as nowhere,
            contextlib.redirect_stdout(sys.stderr if _settings.verbosity >= 0 else nowhere),
        ):
            yield
    finally:
        _settings.results = None


def is_verbose() -> bool:
    """Whether the user asked for details."""
    return _settings.verbosity > 0


def is_main_process() -> bool:
    """False in the second and further processes of accelerate or torchrun."""
    return os.environ.get("RANK", "0") in ("", "0")


def say(text: str) -> None:
    """One line of progress on stderr."""
    if _settings.verbosity >= 0 and is_main_process():
        console = _settings.live or _console(sys.stderr)
        console.print(text, highlight=False, markup=False, soft_wrap=True)


@contextlib.contextmanager
def progress() -> Iterator[Callable[[int, int, str], None]]:
    """A progress bar on stderr, on a terminal only; `say` prints its lines above it.

    Yields:
        what moves it: steps done, steps in all, what is going on.
    """
    console = _console(sys.stderr)
    if _settings.verbosity < 0 or not console.is_terminal or not is_main_process():
        yield lambda done, total, what: None
        return
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    # Twice a second: what is being timed may need the core.
    with Progress(*columns, console=console, transient=True, refresh_per_second=2) as bar:
        task = bar.add_task("", total=None)
        _settings.live = console
        try:
            yield lambda done, total, what: bar.update(task, completed=done, total=total, description=what)
        finally:
            _settings.live = None


def error(text: str) -> None:
    """One line `qexport: <text>` on stderr, whatever the verbosity."""
    print(f"qexport: {text}", file=sys.stderr, flush=True)


def results() -> Console:
    """The rich console of stdout, for callers that print more than one table."""
    return _console(_settings.results or sys.stdout)


def show(*renderables: RenderableType) -> None:
    """Results for people on stdout: text or rich tables."""
    if is_main_process():
        console = results()
        for renderable in renderables:
            console.print(renderable, highlight=False, markup=False, soft_wrap=isinstance(renderable, str))


def print_json(value: Any) -> None:
    """The result for machines, one JSON document on stdout; NaN and infinity become null."""
    if is_main_process():
        text = json.dumps(_finite(value), indent=2, default=str, allow_nan=False)
        print(text, file=_settings.results or sys.stdout, flush=True)


def _finite(value: Any) -> Any:
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value


def _console(stream: TextIO) -> Console:
    from rich.console import Console

    width = None if stream.isatty() or "COLUMNS" in os.environ else _WIDTH_WITHOUT_TERMINAL
    return Console(file=stream, no_color=None if _settings.color else True, width=width)
