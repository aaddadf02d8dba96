"""The kernel library as a session uses it: whether it fits, which instruction set, and one session at a time.

The instruction set is a setting of the whole library that a session takes over when it is made, so sessions
on the library are made one after the other; they run side by side.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from qexport.errors import (
    EnvironmentProblem,
    QexportError,
    UnknownNameError,
    UnsupportedModelError,
    UsageError,
)
from qexport.serving.kernels import ISA_NAMES, Kernels

__all__ = [
    "ISAS",
    "KERNEL_MODES",
    "NOTHING_TO_RUN",
    "Library",
    "SessionEngine",
    "find_library",
    "has_operators",
    "kernels_in",
    "library_problem",
    "names_domain",
]

ISAS = ISA_NAMES
"""Every instruction set that the kernels are written for; one CPU runs some of them."""

KERNEL_MODES: tuple[str, ...] = ("auto", "require", "off")
"""auto: the kernel library where it fits, else stock ONNX Runtime. require: an error where it does not."""

NOTHING_TO_RUN = "{} has no operator of ai.qexport for the kernels to run"
"""One clause; the file's name goes in."""

_DOMAIN = b"ai.qexport"
_making = threading.Lock()


@dataclass(frozen=True, slots=True)
class SessionEngine:
    """What runs the operators of a session."""

    name: Literal["native", "stock"]
    """native: the kernel library; stock: ONNX Runtime's own kernels."""
    isa: str | None = None
    """Instruction set of the kernels: "avx2"; None on stock."""
    version: str | None = None
    """Version of the kernel library; None on stock."""
    reason: str = ""
    """Why it is stock although the kernels were not turned off, one sentence."""

    def describe(self) -> str:
        """For people: "native: kernels 0.1.0, avx2", or "stock ONNX Runtime" and why."""
        if self.name == "native":
            return f"native: kernels {self.version}, {self.isa}"
        return "stock ONNX Runtime" + (f": {self.reason}" if self.reason else "")


@dataclass(frozen=True, slots=True)
class Library:
    """The kernel library of this machine, held to one instruction set."""

    path: Path
    """The shared library."""
    version: str
    """Of the library; the same as qexport's."""
    isa: str
    """The instruction set that a session made now would use."""


def has_operators(model: Path) -> bool:
    """Whether an ONNX file names the domain `ai.qexport`; a float or an inlined export does not."""
    return names_domain(model, _DOMAIN)


def names_domain(model: Path, domain: bytes) -> bool:
    """Whether the name of a domain of operators stands anywhere in a file."""
    if model.stat().st_size == 0:
        return False
    with model.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(domain) >= 0


def library_problem() -> EnvironmentProblem | None:
    """Why no kernel library can be used on this machine; None when one can."""
    try:
        _load()
    except EnvironmentProblem as problem:
        return problem
    return None


def find_library(isa: str | None = None) -> Library:
    """The library, and the instruction set that a session made now would use.

    Args:
        isa: instruction set to hold it to; None takes QEXPORT_ISA, else the best of this CPU.
    Raises:
        UnknownNameError: no such instruction set.
        EnvironmentProblem: there is no library for this machine, or its CPU lacks the instruction set.
    """
    with _held(isa) as kernels:
        return Library(kernels.path, kernels.version, kernels.isa)


@contextlib.contextmanager
def kernels_in(options: Any, model: Path, *, mode: str, isa: str | None) -> Iterator[SessionEngine]:
    """Register the kernel library in `options`; the session must be made inside the block.

    Args:
        options: an `onnxruntime.SessionOptions`.
        model: the .onnx file that the session will open.
        mode: one of `KERNEL_MODES`.
        isa: instruction set to hold the kernels to, which makes "auto" mean "require"; None takes
            QEXPORT_ISA, else the best of this CPU.
    Yields:
        what will run the operators.
    Raises:
        UnknownNameError: no such mode or instruction set.
        UsageError: an instruction set for kernels that are off.
        EnvironmentProblem: the library is required and missing, or this CPU lacks the instruction set.
        UnsupportedModelError: the library is required and the file has no operator for it.
    """
    if mode not in KERNEL_MODES:
        raise UnknownNameError("kernels mode", mode, KERNEL_MODES)
    if mode == "off":
        if isa is not None:
            raise UsageError(
                f"instruction set '{isa}' needs the kernels, which are off; leave one of the two out"
            )
        yield SessionEngine("stock")
        return
    problem: EnvironmentProblem | UnsupportedModelError | None = library_problem()
    if problem is None and not has_operators(model):
        way_out = "export it with qexport to-onnx and without --inline, or leave the kernels off"
        problem = UnsupportedModelError(f"{NOTHING_TO_RUN.format(model)}; {way_out}")
    if problem is not None:
        if mode == "require" or isa is not None:
            raise problem
        yield SessionEngine("stock", reason=str(problem))
        return
    with _held(isa) as kernels:
        kernels.register(options)
        yield SessionEngine("native", kernels.isa, kernels.version)


@contextlib.contextmanager
def _held(isa: str | None) -> Iterator[Kernels]:
    """The library held to one instruction set, which is given up at the end of the block."""
    kernels = _load()
    with _making:
        if isa:
            kernels.set_isa(isa)
        else:
            _take_environment(kernels)
        try:
            yield kernels
        finally:  # what a program that registers the library itself would get
            kernels.set_isa(None)
            with contextlib.suppress(QexportError):
                _take_environment(kernels)


def _take_environment(kernels: Kernels) -> None:
    """Set the instruction set that QEXPORT_ISA names, else the best."""
    named = os.environ.get("QEXPORT_ISA")
    try:
        kernels.set_isa(named)
    except UnknownNameError:
        raise UnknownNameError("instruction set in QEXPORT_ISA", str(named), ISAS) from None
    except EnvironmentProblem as problem:
        raise EnvironmentProblem(f"QEXPORT_ISA is {named}, but {problem}; unset it") from None


def _load() -> Kernels:
    """The library, opened.

    Raises:
        EnvironmentProblem: there is none for this machine, or it cannot be opened.
    """
    return Kernels()
