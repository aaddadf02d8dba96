"""Target `reference`: ONNX's own evaluator, numpy operators straight from the specification; slow."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from qexport.errors import UnsupportedModelError
from qexport.serving.session import KNOWN_INPUTS, Batch, model_file
from qexport.serving.targets.local import LocalTarget
from qexport.serving.targets.protocol import Clock

if TYPE_CHECKING:
    from onnx.reference import ReferenceEvaluator

__all__ = ["TARGET", "ReferenceRunner", "ReferenceTarget"]


class ReferenceRunner:
    """One file in `onnx.reference.ReferenceEvaluator`.

    Raises:
        UnsupportedModelError: the file cannot be read, or uses an operator the evaluator lacks.
    """

    def __init__(self, model: Path) -> None:
        from onnx.reference import ReferenceEvaluator

        self.path = model_file(model)
        try:
            self._evaluator: ReferenceEvaluator = ReferenceEvaluator(str(self.path))
        except (
            Exception
        ) as error:  # DecodeError, NotImplementedError, RuntimeContextError, ...: no common base
            raise UnsupportedModelError(
                f"ONNX's reference evaluator cannot load {self.path} ({error})"
            ) from error
        self.inputs: tuple[str, ...] = tuple(self._evaluator.input_names)
        foreign = [name for name in self.inputs if name not in KNOWN_INPUTS]
        if foreign or "logits" not in self._evaluator.output_names:
            raise UnsupportedModelError(
                f"{self.path} is not a text classifier: inputs {list(self.inputs)}, outputs "
                f"{list(self._evaluator.output_names)}; export it with qexport to-onnx"
            )

    def run(self, batch: Batch) -> dict[str, npt.NDArray[Any]]:
        """Logits, float32 [B, C], of one batch."""
        ids = np.asarray(batch["input_ids"], dtype=np.int64)
        feeds = {}
        for name in self.inputs:
            missing = np.ones_like(ids) if name == "attention_mask" else np.zeros_like(ids)
            feeds[name] = np.asarray(batch.get(name, missing), dtype=np.int64)
        try:
            (logits,) = self._evaluator.run(["logits"], feeds)
        except Exception as error:  # an operator implementation may raise anything
            raise UnsupportedModelError(
                f"ONNX's reference evaluator failed on {self.path} ({type(error).__name__}: {error})"
            ) from error
        return {"logits": np.asarray(logits)}


class ReferenceTarget(LocalTarget):
    """ONNX's reference evaluator on a few rows."""

    name = "reference"
    modes = ("reference",)

    def row_limit(self, mode: str) -> int | None:
        """8 rows: it is a thousand times slower than a runtime."""
        return 8

    def clock(self, mode: str) -> Clock:
        """None: its time says nothing about a runtime."""
        return "none"

    def versions(self) -> dict[str, str]:
        """Version of the installed onnx."""
        import onnx

        return {"onnx": str(onnx.__version__)}

    def open(self, model: Path, *, mode: str, threads: int) -> ReferenceRunner:
        """Open `model`; `threads` has no meaning here."""
        return ReferenceRunner(model)


TARGET = ReferenceTarget()
