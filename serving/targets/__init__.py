"""Where a file can be run: one module per target, one protocol, a registry by name.

A package can add targets through the entry point group `qexport.targets`: name = "module:TARGET", where
TARGET satisfies `Target`. A name that ends in "://" adds a kind of address: there the value is a function
that takes the whole address ("ssh://user@host") and gives the target.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from qexport.errors import (
    EnvironmentProblem,
    QexportError,
    UnknownNameError,
    UnsupportedModelError,
    UsageError,
)
from qexport.serving.native import ISAS, NOTHING_TO_RUN, has_operators, library_problem
from qexport.serving.targets.local import LocalPlace, LocalTarget
from qexport.serving.targets.protocol import Clock, Facts, Job, Measure, Place, Say, Target

__all__ = [
    "ALL", "AUTO", "Choice", "Clock", "Facts", "Job", "LocalPlace", "LocalTarget", "Measure", "Place", "Say",
    "Target", "Unusable", "choose_targets", "get_target", "target_names",
]  # fmt: skip

AUTO = "auto"
"""In a list of targets: native where its library fits machine and file, and stock."""

ALL = "all"
"""In a list of targets: every registered one; those that cannot be used here are reported, and fail none."""

_BUILT_IN = {
    "native": "qexport.serving.targets.native",
    "stock": "qexport.serving.targets.stock",
    "reference": "qexport.serving.targets.reference",
    "node": "qexport.serving.targets.node",
    "web": "qexport.serving.targets.web",
    "arm64": "qexport.serving.targets.arm64",
    "openvino": "qexport.serving.targets.openvino",
}

_ADDRESSES: dict[str, str] = {
    "ssh": "qexport.serving.targets.device:from_address",
    "adb": "qexport.serving.targets.device:from_address",
}
"""Kind of address, without "://" -> "module:function", which takes the whole address."""


@dataclass(frozen=True, slots=True)
class Unusable:
    """A target of the list that cannot be used here."""

    name: str
    """As asked for."""
    error: QexportError
    """Why; `MissingToolError` holds the command that helps."""
    asked: bool
    """It was asked for by name, so that the verification fails; not as one of `ALL`."""


@dataclass(frozen=True, slots=True)
class Choice:
    """The targets of one verification."""

    targets: list[Target]
    """Each found usable, in order and once; at least one."""
    notes: list[str]
    """One for each that `AUTO` left out."""
    unusable: list[Unusable]
    """The others."""


def _registered() -> dict[str, str]:
    found = {**_BUILT_IN, **{f"{kind}://": value for kind, value in _ADDRESSES.items()}}
    for point in entry_points(group="qexport.targets"):
        found.setdefault(point.name, point.value)
    return found


def target_names() -> tuple[str, ...]:
    """Names of every target, built in and added by entry points, sorted; kinds of address left out."""
    return tuple(sorted(name for name in _registered() if not name.endswith("://")))


def get_target(name: str) -> Target:
    """The target called `name`; `native-avx2` and so on is `native` held to one instruction set.

    Raises:
        UnknownNameError: no such target; the message suggests the nearest.
        UsageError: an entry point names something that is not a target, or an address that cannot be.
    """
    known = _registered()
    held = {f"native-{isa}": isa for isa in ISAS}
    if name in held and name not in known:
        from qexport.serving.targets.native import NativeTarget

        return NativeTarget(held[name])
    kind, colon, _ = name.partition("://")
    key = kind + colon
    if key not in known:
        raise UnknownNameError("target", name, {*known, *held})
    module_name, _, attribute = known[key].partition(":")
    found: Any = getattr(importlib.import_module(module_name), attribute or "TARGET", None)
    target: Target | None = found(name) if colon and callable(found) else found
    if target is None or not hasattr(target, "start"):
        raise UsageError(
            f"target '{name}' ({known[key]}) does not name a qexport target; fix the entry point"
        )
    return target


def choose_targets(names: Sequence[str], model: Path) -> Choice:
    """The targets of a verification.

    Args:
        names: registered names, addresses, `AUTO` and `ALL`.
        model: the .onnx file that they will run.
    Raises:
        UnknownNameError: no such target.
        UsageError: two of those asked for would have the same column of the report.
        EnvironmentProblem: none of the targets can be used here; the first one's problem.
        UnsupportedModelError: the same, where the file has nothing for the kernel library.
    """
    chosen: dict[str, Target] = {}
    by_name: set[str] = set()
    notes: list[str] = []
    for name in names:
        if name == ALL:
            for each in ("native", "stock", *target_names()):
                chosen.setdefault(each, get_target(each))
            continue
        if name != AUTO:
            by_name.add(name)
            chosen.setdefault(name, get_target(name))
            continue
        problem = _unfit(model)
        if problem:
            notes.append(f"native: {problem}; the file ran on stock ONNX Runtime")
        for each in ("stock",) if problem else ("native", "stock"):
            by_name.add(each)
            chosen.setdefault(each, get_target(each))
    usable, unusable = [], []
    owner: dict[str, str] = {}
    for name, target in chosen.items():
        twice = next((mode for mode in target.modes if mode in owner), None)
        if twice is not None and name not in by_name:
            continue
        if twice is not None:
            raise UsageError(
                f"targets {owner[twice]} and {name} are both '{twice}' in the report; verify them one after "
                "the other, each with a --report folder of its own"
            )
        owner |= dict.fromkeys(target.modes, name)
        try:
            target.check()
            if target.library() is not None and not has_operators(model):
                raise UnsupportedModelError(
                    f"target {target.name}: {NOTHING_TO_RUN.format(model)}; use target stock"
                )
            usable.append(target)
        except (EnvironmentProblem, UnsupportedModelError) as error:
            unusable.append(Unusable(name, error, name in by_name))
    if not usable:
        raise unusable[0].error
    return Choice(usable, notes, unusable)


def _unfit(model: Path) -> str:
    """Why the kernel library cannot run `model` here, one sentence; "" when it can."""
    problem = library_problem()
    if problem is not None:
        return f"no kernel library for this machine ({problem})"
    return "" if has_operators(model) else NOTHING_TO_RUN.format(model.name)
