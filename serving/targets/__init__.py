"""Where a file can be run: one module per target, one protocol, a registry by name.

A package can add targets through the entry point group `qexport.targets`: name = "module:TARGET", where
TARGET satisfies `Target`.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Protocol

from qexport.errors import UnknownNameError, UnsupportedModelError, UsageError
from qexport.serving.evaluate import Runner
from qexport.serving.native import ISAS, NOTHING_TO_RUN, Library, has_operators, library_problem

__all__ = ["AUTO", "Target", "choose_targets", "get_target", "target_names"]

AUTO = "auto"
"""In a list of targets: native where its library fits machine and file, and stock."""

_BUILT_IN = {
    "native": "qexport.serving.targets.native",
    "stock": "qexport.serving.targets.stock",
    "reference": "qexport.serving.targets.reference",
}


class Target(Protocol):
    """One place that runs an ONNX file; stateless, so one instance serves every model."""

    @property
    def name(self) -> str:
        """Registered name: "stock"."""

    @property
    def modes(self) -> tuple[str, ...]:
        """Ways to run the file there, the ordinary one first; one engine name each: ("stock", ...)."""

    def row_limit(self, mode: str) -> int | None:
        """Rows that `verify` runs in this mode by default; None means all of them."""

    def is_timed(self, mode: str) -> bool:
        """Whether the mode is an ordinary ONNX Runtime session in this process.

        Then `verify` times it in turns with the baselines, and measures its load time and peak memory.
        """

    def library(self) -> Library | None:
        """The kernel library that runs there, with its instruction set; None for none."""

    def versions(self) -> dict[str, str]:
        """Runtime name -> version, for the report."""

    def check(self) -> None:
        """Find out, before any work starts, whether the target can be used here.

        Raises:
            EnvironmentProblem: it cannot; the message says what to install.
        """

    def open(self, model: Path, *, mode: str, threads: int) -> Runner:
        """Load `model` (a folder or an .onnx file).

        Raises:
            UnsupportedModelError: the file cannot be loaded.
        """


def _registered() -> dict[str, str]:
    found = dict(_BUILT_IN)
    for point in entry_points(group="qexport.targets"):
        found.setdefault(point.name, point.value)
    return found


def target_names() -> tuple[str, ...]:
    """Names of every target, built in and added by entry points, sorted."""
    return tuple(sorted(_registered()))


def get_target(name: str) -> Target:
    """The target called `name`; `native-avx2` and so on is `native` held to one instruction set.

    Raises:
        UnknownNameError: no such target; the message suggests the nearest.
        UsageError: an entry point names something that is not a target.
    """
    known = _registered()
    held = {f"native-{isa}": isa for isa in ISAS}
    if name in held and name not in known:
        from qexport.serving.targets.native import NativeTarget

        return NativeTarget(held[name])
    if name not in known:
        raise UnknownNameError("target", name, {*known, *held})
    module_name, _, attribute = known[name].partition(":")
    import importlib

    target: Target | None = getattr(importlib.import_module(module_name), attribute or "TARGET", None)
    if target is None or not hasattr(target, "open"):
        raise UsageError(
            f"target '{name}' ({known[name]}) does not name a qexport target; fix the entry point"
        )
    return target


def choose_targets(names: Sequence[str], model: Path) -> tuple[list[Target], list[str]]:
    """The targets of a verification, each found usable, in order and once.

    Args:
        names: registered names, and `AUTO`.
        model: the .onnx file that they will run.
    Returns:
        the targets, and one note for each that `AUTO` left out.
    Raises:
        UnknownNameError: no such target.
        EnvironmentProblem: a target that was asked for by name cannot be used here.
        UnsupportedModelError: the kernel library was asked for by name, and the file has nothing for it.
    """
    chosen: dict[str, Target] = {}
    notes: list[str] = []
    for name in names:
        if name != AUTO:
            chosen.setdefault(name, get_target(name))
            continue
        problem = _unfit(model)
        if problem:
            notes.append(f"native: {problem}; the file ran on stock ONNX Runtime")
        for each in ("stock",) if problem else ("native", "stock"):
            chosen.setdefault(each, get_target(each))
    for target in chosen.values():
        target.check()
        if target.library() is not None and not has_operators(model):
            raise UnsupportedModelError(
                f"target {target.name}: {NOTHING_TO_RUN.format(model)}; use target stock"
            )
    return list(chosen.values()), notes


def _unfit(model: Path) -> str:
    """Why the kernel library cannot run `model` here, one sentence; "" when it can."""
    problem = library_problem()
    if problem is not None:
        return f"no kernel library for this machine ({problem})"
    return "" if has_operators(model) else NOTHING_TO_RUN.format(model.name)
