"""Target `native`: ONNX Runtime with the kernel library registered, in this process.

`native` runs the best instruction set of this CPU, or the one that QEXPORT_ISA names; `native-avx2` and so
on are held to one, so that several can be compared in one report.
"""

from __future__ import annotations

from pathlib import Path

from qexport.errors import UsageError
from qexport.serving.native import Library, find_library
from qexport.serving.session import Session
from qexport.serving.targets.local import LocalTarget

__all__ = ["TARGET", "NativeTarget"]


class NativeTarget(LocalTarget):
    """The kernel library, on one instruction set.

    Args:
        isa: the instruction set to hold it to; None for QEXPORT_ISA, else the best of this CPU.
    """

    def __init__(self, isa: str | None = None) -> None:
        self.isa = isa
        self.name = "native" if isa is None else f"native-{isa}"
        self.modes = (self.name,)

    def library(self) -> Library:
        """The library with the instruction set that a session opened now would use.

        Raises:
            EnvironmentProblem: there is no library for this machine, or the CPU lacks the instruction set.
        """
        return find_library(self.isa)

    def versions(self) -> dict[str, str]:
        """Versions of onnxruntime and of the kernel library."""
        import onnxruntime

        return {"onnxruntime": str(onnxruntime.__version__), "qexport kernels": self.library().version}

    def check(self) -> None:
        """Find the library and ask it for the instruction set; see `library` for what it raises."""
        self.library()

    def open(self, model: Path, *, mode: str, threads: int) -> Session:
        """Open `model` with the kernels registered; see `Session` for what it raises."""
        if mode not in self.modes:
            raise UsageError(f"target {self.name} has the mode {self.name}, got '{mode}'")
        return Session(model, threads=threads, kernels="require", isa=self.isa)


TARGET = NativeTarget()
