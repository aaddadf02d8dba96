"""The command line: `qexport COMMAND ...`, and the only place where errors become exit codes."""

from __future__ import annotations

import contextlib
import functools
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Annotated

import typer

from qexport import __version__, console
from qexport.commands.bench import bench
from qexport.commands.bundle import bundle
from qexport.commands.export import to_onnx
from qexport.commands.inspect import inspect
from qexport.commands.kernels import build as build_kernels
from qexport.commands.kernels import kernels
from qexport.commands.listing import methods, tasks
from qexport.commands.predict import predict
from qexport.commands.quickstart import quickstart
from qexport.commands.report import report
from qexport.commands.sweep import sweep
from qexport.commands.target import listing as list_targets
from qexport.commands.target import prepare as prepare_target
from qexport.commands.target import target
from qexport.commands.train import train
from qexport.commands.verify import verify
from qexport.errors import Interrupted, QexportError

__all__ = ["app", "main"]

_COMMANDS: dict[str, Callable[..., None]] = {
    "train": train,
    "to-onnx": to_onnx,
    "verify": verify,
    "bench": bench,
    "sweep": sweep,
    "report": report,
    "predict": predict,
    "bundle": bundle,
    "inspect": inspect,
    "quickstart": quickstart,
    "tasks": tasks,
    "methods": methods,
}

_GROUPS: dict[str, tuple[Callable[..., None], dict[str, Callable[..., None]]]] = {
    "kernels": (kernels, {"build": build_kernels}),
    "target": (target, {"list": list_targets, "prepare": prepare_target}),
}
"""Commands with commands of their own: what the bare name does, and those."""

_WITHOUT_ARGUMENTS = {"quickstart", "tasks", "methods"}

_ALIASES = {
    "gradient-accumulation-steps": "gradient-accumulation",
    "learning-rate": "lr",
    "max-eval-samples": "eval-samples",
    "max-seq-length": "max-length",
    "max-train-samples": "train-samples",
    "model-name-or-path": "model",
    "num-train-epochs": "epochs",
    "output-dir": "output",
    "per-device-eval-batch-size": "eval-batch-size",
    "per-device-train-batch-size": "batch-size",
    "samples": "eval-samples",
    "report-to": "logging",
    "target-opset": "opset",
    "task-name": "task",
    "train-file": "data",
    "validation-file": "eval",
    "warmup-ratio": "warmup",
}
"""Names that Hugging Face's scripts, Olive and onnxsim taught people -> ours; kept out of the help pages."""


def _our_name(word: str) -> str:
    """The name of an option or command as declared: snake_case and the aliases are accepted too."""
    kebab = word.replace("_", "-")
    return _ALIASES.get(kebab, kebab)


app = typer.Typer(
    name="qexport",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"], "token_normalize_func": _our_name},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"qexport {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Show the log of the libraries too.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show results and errors only.")] = False,
    no_color: Annotated[
        bool, typer.Option("--no-color", help="Plain text; NO_COLOR=1 does the same.")
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Train ternary BERT-family models, export them at 1.6 bits a weight to ONNX, and verify them.

    The way through: train a teacher, distil a student, export it, verify it.

      qexport train --method fp32 --model minilm --task rotten_tomatoes -o teacher

      qexport train --method ternarybert --teacher teacher --task rotten_tomatoes -o student

      qexport to-onnx student --output onnx

      qexport verify onnx --task rotten_tomatoes

    Or all of it at once: qexport quickstart

    Exit codes: 0 done, 1 a bug, 2 usage or data, 3 a gate of verify or a run of a sweep failed, 4
    environment, 5 unsupported model, 130 interrupted.
    """
    console.configure(verbosity=1 if verbose else -1 if quiet else 0, color=not no_color)


@contextlib.contextmanager
def _sigterm_as_ctrl_c() -> Iterator[None]:
    """Let `kill` and a container's stop clean up as Ctrl-C does, half-written folders above all."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    old = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, old)


def _contained(command: Callable[..., None]) -> Callable[..., None]:
    """Keep Ctrl-C away from Typer, which would end silently, and stdout clean of what libraries print."""

    @functools.wraps(command)
    def run(**values: object) -> None:
        try:
            with console.only_results_on_stdout(), _sigterm_as_ctrl_c():
                command(**values)
        except KeyboardInterrupt:
            raise Interrupted("") from None

    return run


for _name, _command in _COMMANDS.items():
    app.command(_name, no_args_is_help=_name not in _WITHOUT_ARGUMENTS)(_contained(_command))

for _name, (_bare, _inner) in _GROUPS.items():
    _group = typer.Typer(rich_markup_mode="rich")
    _group.callback(invoke_without_command=True)(_contained(_bare))
    for _inner_name, _command in _inner.items():
        _group.command(_inner_name, no_args_is_help=_inner_name != "list")(_contained(_command))
    app.add_typer(_group, name=_name)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: the words after `qexport`; the process's own when None.
    Returns:
        The exit code, see `qexport --help`. A bug is not caught: it keeps its traceback and ends in 1.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    console.remember_command(words)
    try:
        typer.main.get_command(app)(words, prog_name="qexport")
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
    except Interrupted as stop:
        again = f"interrupted, nothing was left half written; run again: {console.command_line()}"
        console.error(str(stop) or again)
        return stop.exit_code
    except QexportError as problem:
        console.error(str(problem))
        return problem.exit_code
    return 0
