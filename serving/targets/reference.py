"""Target `reference`: ONNX's own evaluator, numpy operators straight from the specification; slow."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from qexport.errors import UnsupportedModelError
from qexport.serving.feeds import feeds_for
from qexport.serving.kinds import kind_of_graph
from qexport.serving.session import Batch, model_file, read_json
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
        shapes = dict(
            zip(self._evaluator.output_names, map(_shape, self._evaluator.output_types), strict=True)
        )
        stated = read_json(self.path.parent / "qexport.json").get("kind")
        self.kind = kind_of_graph(self.path, self.inputs, shapes, stated)

    def run(self, batch: Batch) -> dict[str, npt.NDArray[Any]]:
        """The outputs of the model's kind for one batch, by name."""
        feeds = feeds_for(self.inputs, batch)
        try:
            values = self._evaluator.run(list(self.kind.outputs), feeds)
        except Exception as error:  # an operator implementation may raise anything
            raise UnsupportedModelError(
                f"ONNX's reference evaluator failed on {self.path} ({type(error).__name__}: {error})"
            ) from error
        return {name: np.asarray(value) for name, value in zip(self.kind.outputs, values, strict=True)}


def _shape(value_type: Any) -> list[Any]:
    """Sizes and names of the axes of an output."""
    return [axis.dim_param or axis.dim_value for axis in value_type.tensor_type.shape.dim]


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
