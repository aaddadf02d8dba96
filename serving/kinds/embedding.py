"""Sentence embeddings: one vector of length 1 a row, [B, D]."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from qexport.errors import ShapeError
from qexport.serving.kinds.base import (
    Agreement,
    Float32Array,
    Int64Array,
    OutputKind,
    PairMeasure,
    row_outputs,
)
from qexport.serving.neighbours import neighbour_overlap

if TYPE_CHECKING:
    from qexport.serving.evaluate import EvalRows
    from qexport.serving.session import Session

__all__ = ["EMBEDDING", "SAME_COSINE", "Embedding", "embed_texts"]

SAME_COSINE = 0.999
"""Two embeddings of one text agree when their cosine is at least this.

Every vector moves with rounding, where a class mostly stays: low-bit students miss it on some sentences
between engines (docs/tasks.md has figures).
"""

_NEIGHBOURS = (1, 10)
_LEVEL = 1.96  # standard errors on each side of a 95 % interval


class Embedding(OutputKind):
    """A vector for each sentence, compared by cosine."""

    name = "embedding"
    title = "sentence embeddings"
    use = "call embed(texts)"
    outputs = ("sentence_embedding",)
    axes = "[batch, width]"
    ranks = 2
    item = "sentence"

    def join(
        self, named: Mapping[str, npt.NDArray[Any]], batch: Mapping[str, npt.NDArray[Any]]
    ) -> Float32Array:
        """The embeddings, float32 [B, D]; see the base class."""
        return row_outputs(named, "sentence_embedding", batch, "width")

    def check(self, rows: EvalRows, decoded: Float32Array) -> None:
        """A vector for every row; see the base class."""
        if decoded.ndim != 2 or len(decoded) != rows.n_rows:
            raise ShapeError(f"embeddings must be [{rows.n_rows}, width], got {list(decoded.shape)}")

    def same_rows(self, ours: Float32Array, theirs: Float32Array) -> npt.NDArray[np.bool_]:
        """Rows whose cosine is at least `SAME_COSINE`; see the base class."""
        return np.asarray(_cosines(ours, theirs) >= SAME_COSINE)

    def comparable(self, ours: Float32Array, theirs: Float32Array) -> bool:
        """Vectors of one width; a narrower student has no cosine with its teacher."""
        return bool(ours.shape[-1] == theirs.shape[-1])

    def agreement(
        self, rows: EvalRows, ours: Float32Array, theirs: Float32Array, positions: Int64Array
    ) -> Agreement:
        """A cosine of at least `SAME_COSINE`; beside it the mean cosine and the shared nearest sentences."""
        cosines = _cosines(ours, theirs)
        finite = np.isfinite(ours).all(axis=1) & np.isfinite(theirs).all(axis=1)
        same = (np.nan_to_num(cosines, nan=-1.0) >= SAME_COSINE) & finite
        measures = [_measure("cosine", cosines)]
        for k in _NEIGHBOURS:
            if len(ours) > k and finite.all():
                measures.append(_measure(f"neighbours_top{k}", neighbour_overlap(ours, theirs, k)))
        return Agreement(
            items=positions, same=same, ours=cosines, theirs=np.ones(len(cosines)),
            margin=np.zeros(len(cosines)), measures=measures,
            ours_text=_shown(cosines), theirs_text=[f"cosine >= {SAME_COSINE}"] * len(cosines),
        )  # fmt: skip


def _shown(cosines: npt.NDArray[np.float64]) -> Sequence[str]:
    return [f"cosine {value:.4f}" for value in cosines]


def _cosines(ours: Float32Array, theirs: Float32Array) -> npt.NDArray[np.float64]:
    """Cosine of each row with its counterpart, float64 [n]."""
    a, b = ours.astype(np.float64), theirs.astype(np.float64)
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return np.asarray(np.einsum("nd,nd->n", a, b) / np.maximum(lengths, 1e-12), dtype=np.float64)


def _measure(name: str, values: npt.NDArray[np.float64]) -> PairMeasure:
    """Mean over sentences with its 95 % interval, by the normal approximation (n is in the hundreds)."""
    mean = float(values.mean())
    half = _LEVEL * float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else 0.0
    return PairMeasure(name, mean, max(-1.0, mean - half), min(1.0, mean + half))


EMBEDDING = Embedding()


def embed_texts(session: Session, texts: Sequence[str]) -> Float32Array:
    """The embedding of each text; see `Session.embed`."""
    order = sorted(range(len(texts)), key=lambda row: len(texts[row]))
    found = np.zeros((len(texts), session.num_labels), dtype=np.float32)
    for start in range(0, len(order), session.batch_size):
        rows = order[start : start + session.batch_size]
        batch = session.encode([texts[row] for row in rows])
        found[rows] = EMBEDDING.join(session.run(batch), batch)
    return found
