"""Sequence classification and regression: logits [B, C], one prediction a row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from qexport.errors import ShapeError
from qexport.serving.kinds.base import Agreement, Float32Array, Int64Array, OutputKind, row_outputs

if TYPE_CHECKING:
    from qexport.serving.evaluate import EvalRows

__all__ = ["CLASSIFICATION", "REGRESSION", "Classification", "Regression"]


class Classification(OutputKind):
    """The class with the largest logit."""

    name = "classification"
    title = "text classification"
    use = "call predict(texts)"
    outputs = ("logits",)
    axes = "[batch, labels]"
    ranks = 2

    def join(
        self, named: Mapping[str, npt.NDArray[Any]], batch: Mapping[str, npt.NDArray[Any]]
    ) -> Float32Array:
        """The logits, float32 [B, C]; see the base class."""
        return row_outputs(named, "logits", batch, "labels")

    def check(self, rows: EvalRows, decoded: Float32Array) -> None:
        """One row of logits a row, and a logit for every label; see the base class."""
        if decoded.ndim != 2 or decoded.shape[0] != rows.n_rows:
            raise ShapeError(f"logits must be [{rows.n_rows}, labels], got {list(decoded.shape)}")
        if self.name == "classification" and int(rows.labels.max()) >= decoded.shape[1]:
            raise ShapeError(
                f"{rows.task} {rows.split} has label {int(rows.labels.max())} but the model has only "
                f"{decoded.shape[1]} logits; verify it on the task that it was trained for"
            )

    def agreement(
        self, rows: EvalRows | None, ours: Float32Array, theirs: Float32Array, positions: Int64Array
    ) -> Agreement:
        """Same class; the margin is the best logit minus the second best."""
        a, b = (logits.argmax(axis=-1).astype(np.float64) for logits in (ours, theirs))
        ordered = np.sort(theirs.astype(np.float64), axis=-1)
        margin = ordered[:, -1] - ordered[:, -2] if ordered.shape[1] > 1 else np.zeros(len(ordered))
        return Agreement(
            items=positions, same=(a == b) & _finite(ours, theirs), ours=a, theirs=b, margin=margin
        )


class Regression(Classification):
    """One number a row."""

    name = "regression"
    title = "regression"

    def agreement(
        self, rows: EvalRows | None, ours: Float32Array, theirs: Float32Array, positions: Int64Array
    ) -> Agreement:
        """The two numbers differ by at most the tolerance of the rows."""
        tolerance = TOLERANCE if rows is None else rows.agreement_tolerance
        a, b = (logits[:, 0].astype(np.float64) for logits in (ours, theirs))
        same = (np.abs(a - b) <= tolerance) & _finite(ours, theirs)
        return Agreement(items=positions, same=same, ours=a, theirs=b, margin=np.zeros(len(a)))


def _finite(*sides: Float32Array) -> npt.NDArray[np.bool_]:
    """Rows in which every number of every side is finite, bool [m]."""
    return np.asarray(np.logical_and.reduce([np.isfinite(side).all(axis=-1) for side in sides]))


TOLERANCE = 0.05
"""Two predicted numbers agree when they differ by at most this, in the unit of the label."""

CLASSIFICATION = Classification()
REGRESSION = Regression()
