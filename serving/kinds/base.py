"""OutputKind: what the outputs of one kind of model are, how they are read, and when two engines agree.

Three shapes of the same thing are told apart here. *Named outputs* are what a graph gives for one batch. A
*joined array* is float32 [rows, ...] with everything an engine said about each row, 0 beyond its tokens: what
is kept, differenced and compared. What is *decoded* from it is what metrics judge.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt

from qexport.errors import ShapeError

if TYPE_CHECKING:
    from qexport.serving.evaluate import EvalRows

__all__ = [
    "LOOSE_PARITY_LIMIT",
    "PARITY_LIMIT",
    "Agreement",
    "Float32Array",
    "Int64Array",
    "OutputKind",
    "PairMeasure",
    "row_outputs",
    "stack_rows",
]

PARITY_LIMIT = 1e-3
"""Largest difference of an output to PyTorch that an exported file may have; more is refused."""

LOOSE_PARITY_LIMIT = 0.1
"""The same where the activation function is a library's, whose last bits decide a code now and then."""

Float32Array = npt.NDArray[np.float32]
Int64Array = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class PairMeasure:
    """A further number about two engines on the same rows, with its 95 % interval."""

    name: str
    """What is measured: "neighbours_top10"."""
    value: float
    """Mean over rows."""
    low: float
    """Lower end of the interval."""
    high: float
    """Upper end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """Where two engines say the same; k items, each a row of the data or, where it takes several, a group."""

    items: Int64Array
    """int64 [k], number of each item in the data file, from 0."""
    same: npt.NDArray[np.bool_]
    """bool [k]; false where either side has a number that is not finite."""
    ours: npt.NDArray[np.float64]
    """float64 [k]: predicted class or value of the engine that is judged; 0 where `ours_text` says it."""
    theirs: npt.NDArray[np.float64]
    """The same of the reference."""
    margin: npt.NDArray[np.float64]
    """float64 [k]: how sure the reference was; 0 where that has no meaning."""
    ours_text: Sequence[str] | None = None
    """The prediction of the engine that is judged as a text, for kinds whose predictions are no numbers."""
    theirs_text: Sequence[str] | None = None
    """The same of the reference."""
    owners: Int64Array | None = None
    """int64 [m]: item that each compared row belongs to; None where a row is an item."""
    measures: Sequence[PairMeasure] = ()
    """What else is said about the two engines."""


class OutputKind(ABC):
    """One kind of model, as files of it are run and compared; has no state."""

    name: ClassVar[str]
    """As in `qexport.training.tasks.Task.kind` and qexport.json."""
    outputs: ClassVar[tuple[str, ...]]
    """Names of the graph's outputs, as optimum calls them; all float32."""
    axes: ClassVar[str]
    """Their shape for people: "[batch, labels]"."""
    ranks: ClassVar[int]
    """Number of axes of each output."""
    title: ClassVar[str]
    """For messages: "question answering"."""
    use: ClassVar[str]
    """What to call instead of another kind's methods: "call answer(question, context)"."""
    item: ClassVar[str] = "row"
    """What reports count: "row", "question"."""

    def fits(self, shapes: Mapping[str, Sequence[Any]]) -> bool:
        """Whether a graph with these outputs (name -> shape) is of this kind."""
        return all(name in shapes and len(shapes[name]) == self.ranks for name in self.outputs)

    @abstractmethod
    def join(
        self, named: Mapping[str, npt.NDArray[Any]], batch: Mapping[str, npt.NDArray[Any]]
    ) -> Float32Array:
        """Everything a graph said about one batch, float32 [B, ...].

        Kinds with outputs for each token give [B, S, ...] with 0 where the attention mask is 0.

        Args:
            named: the graph's outputs by name.
            batch: what it was fed, int64 [B, S] each.
        Raises:
            ShapeError: an output of another shape.
        """

    def decode(
        self, items: Any, joined: Float32Array, positions: Int64Array, settings: Mapping[str, float]
    ) -> Any:
        """What the metrics of the rows take.

        Args:
            items: what the kind reads outputs with, see `EvalRows.items`.
            joined: float32 [m, ...], see `join`.
            positions: int64 [m], row of the data file of each, ascending.
            settings: what the engine's folder says about decoding: {"null_threshold": -1.5}; {} for none.
        """
        return joined

    @abstractmethod
    def check(self, rows: EvalRows, decoded: Any) -> None:
        """Refuse outputs that cannot be judged on all of `rows`.

        Raises:
            ShapeError: they do not fit the rows or their labels.
        """

    def same_rows(self, ours: Float32Array, theirs: Float32Array) -> npt.NDArray[np.bool_]:
        """Rows in which the largest output is the same, bool [m]; of every token where tokens have outputs.

        Args:
            ours, theirs: float32 [m, ...], see `join`.
        """
        equal = ours.argmax(axis=-1) == theirs.argmax(axis=-1)
        return np.asarray(equal.reshape(len(ours), -1).all(axis=1))

    def comparable(self, ours: Float32Array, theirs: Float32Array) -> bool:
        """Whether joined outputs can be compared row by row; where they cannot, metrics alone are."""
        return True

    @abstractmethod
    def agreement(self, rows: EvalRows, ours: Any, theirs: Any, positions: Int64Array) -> Agreement:
        """Where two engines say the same.

        Args:
            rows: the rows that were run.
            ours: what `decode` gave for the engine that is judged, at `positions`.
            theirs: the same of the reference, at the same positions.
            positions: int64 [m].
        """


def stack_rows(parts: Sequence[Float32Array]) -> Float32Array:
    """The joined arrays of several batches as one; axis 1 of [B, S, ...] is padded with 0 to the longest."""
    if parts[0].ndim < 3:
        return np.concatenate(parts)
    longest = max(part.shape[1] for part in parts)
    out = np.zeros((sum(len(part) for part in parts), longest, *parts[0].shape[2:]), np.float32)
    start = 0
    for part in parts:
        out[start : start + len(part), : part.shape[1]] = part
        start += len(part)
    return out


def row_outputs(
    named: Mapping[str, npt.NDArray[Any]], output: str, batch: Mapping[str, npt.NDArray[Any]], width: str
) -> Float32Array:
    """The output of a kind that says one thing a row, float32 [B, width].

    Args:
        named: the graph's outputs by name.
        output: which of them.
        batch: what it was fed, int64 [B, S] each.
        width: what its second axis is called in messages.
    Raises:
        ShapeError: it is not a row for each row of the batch.
    """
    if output not in named:
        raise ShapeError(f"the model must give {output}, got {', '.join(named) or 'nothing'}")
    found = np.asarray(named[output], dtype=np.float32)
    rows = len(batch["input_ids"])
    if found.ndim != 2 or found.shape[0] != rows:
        raise ShapeError(
            f"{output} must be [{rows}, {width}] for a batch of {rows} rows, got {list(found.shape)}"
        )
    return found
