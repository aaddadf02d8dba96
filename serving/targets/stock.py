"""Target `stock`: ONNX Runtime as installed, in this process, with nothing of ours registered."""

from __future__ import annotations

from pathlib import Path

from qexport.errors import UsageError
from qexport.serving.session import Session
from qexport.serving.targets.local import LocalTarget
from qexport.serving.targets.protocol import Clock

__all__ = ["TARGET", "StockTarget"]


class StockTarget(LocalTarget):
    """ONNX Runtime's CPU provider: with its graph optimisations, and with none of them.

    The second mode runs function bodies as stored, unpacking weights at every call, so it sees few rows.
    """

    name = "stock"
    modes = ("stock", "stock-unoptimized")

    def row_limit(self, mode: str) -> int | None:
        """All rows with optimisations, 64 without."""
        return None if mode == "stock" else 64

    def clock(self, mode: str) -> Clock:
        """The host's; without optimisations none, it would only show what unpacking at every call costs."""
        return "host" if mode == "stock" else "none"

    def versions(self) -> dict[str, str]:
        """Version of the installed onnxruntime."""
        import onnxruntime

        return {"onnxruntime": str(onnxruntime.__version__)}

    def open(self, model: Path, *, mode: str, threads: int) -> Session:
        """Open `model`; see `Session` for what it raises."""
        if mode not in self.modes:
            raise UsageError(f"target stock has the modes {', '.join(self.modes)}, got '{mode}'")
        return Session(model, threads=threads, optimize=mode == "stock")


TARGET = StockTarget()
