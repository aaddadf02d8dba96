"""Where a file can be run: one module per target, one protocol, a registry by name.

A package can add targets through the entry point group `qexport.targets`: name = "module:TARGET", where
TARGET satisfies `Target`.
"""

from __future__ import annotations

from importlib.metadata import entry_points
from pathlib import Path
from typing import Protocol

from qexport.errors import UnknownNameError, UsageError
from qexport.serving.evaluate import Runner

__all__ = ["Target", "get_target", "target_names"]

_BUILT_IN = {
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
    """The target called `name`.

    Raises:
        UnknownNameError: no such target; the message suggests the nearest.
        UsageError: an entry point names something that is not a target.
    """
    known = _registered()
    if name not in known:
        raise UnknownNameError("target", name, known)
    module_name, _, attribute = known[name].partition(":")
    import importlib

    target: Target | None = getattr(importlib.import_module(module_name), attribute or "TARGET", None)
    if target is None or not hasattr(target, "open"):
        raise UsageError(
            f"target '{name}' ({known[name]}) does not name a qexport target; fix the entry point"
        )
    return target
