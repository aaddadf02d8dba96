"""The exception tree, and the process exit code that each class ends in.

QexportError                  1
├── UsageError (ValueError)             2  an option or a value that cannot be
│   ├── UnknownNameError                   a task, method or target that is not registered
│   ├── DataError                          a data file: missing, wrong column, label out of range
│   └── OutputExistsError                  the output folder exists and --force was not given
├── GateFailed                          3  a requested bound does not hold, or could not be measured
├── SweepFailed                         3  runs of a sweep failed; the table says which
├── EnvironmentProblem (RuntimeError)    4  a package, a runtime version, a device or disk space is missing
│   ├── MissingPackageError, MissingToolError
│   ├── TargetLost                         a target of verify that stopped answering
│   └── DiskFullError
├── UnsupportedModelError (ValueError)  5  a model, student folder or ONNX file that cannot be handled
│   └── ShapeError, ValueRangeError        a tensor with the wrong shape, dtype or values
└── Interrupted                       130  Ctrl-C; what was finished is on disk
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "DataError",
    "DiskFullError",
    "EnvironmentProblem",
    "GateFailed",
    "Interrupted",
    "MissingPackageError",
    "MissingToolError",
    "OutputExistsError",
    "QexportError",
    "ShapeError",
    "SweepFailed",
    "TargetLost",
    "UnknownNameError",
    "UnsupportedModelError",
    "UsageError",
    "ValueRangeError",
]


class QexportError(Exception):
    """A failure that the user can act on; its text is one sentence that says what to do."""

    exit_code = 1


class UsageError(QexportError, ValueError):
    """An option, a configuration key or a value that cannot be."""

    exit_code = 2


class UnknownNameError(UsageError):
    """A name that is not in a registry; the message suggests the nearest one."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        """Compose the message.

        Args:
            kind: what was looked up: "task", "method", "target".
            name: what the user wrote.
            known: the names that exist.
        """
        names = sorted(known)
        near = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
        hint = f"did you mean '{near[0]}'? " if near else ""
        super().__init__(f"unknown {kind} '{name}'; {hint}known: {', '.join(names)}")


class DataError(UsageError):
    """A data file that is missing, malformed or holds a value the task does not allow."""


class OutputExistsError(UsageError, FileExistsError):
    """The output exists; nothing was written."""


class GateFailed(QexportError):
    """A bound that the user asked for does not hold or cannot be decided."""

    exit_code = 3


class SweepFailed(QexportError):
    """A sweep ran to its end, but a run failed or missed a gate; the table has its reason."""

    exit_code = 3


class EnvironmentProblem(QexportError, RuntimeError):
    """Something outside the program is missing: a package, a runtime, a tool, disk space."""

    exit_code = 4


class MissingPackageError(EnvironmentProblem, ImportError):
    """An optional package is not installed; the message holds the pip line."""


class MissingToolError(EnvironmentProblem):
    """A program that is not installed, or files that were not fetched; `fix` is the command that does it."""

    def __init__(self, what: str, fix: str) -> None:
        """Compose the message.

        Args:
            what: what is missing, without a full stop.
            fix: the command line that installs it.
        """
        super().__init__(f"{what}; run: {fix}")
        self.fix = fix


class TargetLost(EnvironmentProblem):
    """A target of verify ended or stopped answering while it was used."""


class DiskFullError(EnvironmentProblem):
    """No space left while writing; the old output is untouched."""


class UnsupportedModelError(QexportError, ValueError):
    """A model, a student folder or an ONNX file that cannot be handled; names the part and the rule."""

    exit_code = 5


class ShapeError(UnsupportedModelError):
    """A tensor has the wrong rank, shape or dtype."""


class ValueRangeError(UnsupportedModelError):
    """A tensor holds a value outside the range of its format; names the first index."""


class Interrupted(QexportError):
    """Ctrl-C; the message holds the command that goes on."""

    exit_code = 130
