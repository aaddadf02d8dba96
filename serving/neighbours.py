"""Neighbours: whether two models find the same nearest sentences, by cosine, with bootstrap intervals."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from qexport.errors import ShapeError, UsageError

__all__ = ["neighbour_overlap", "unit_rows"]

_BLOCK = 512  # rows whose similarities are held at once

Float64 = npt.NDArray[np.float64]


def unit_rows(embeddings: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
    """Rows of length 1, float32 [n, D]; rows of zeros stay as they are."""
    rows = np.asarray(embeddings, dtype=np.float32)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.maximum(norms, 1e-12), dtype=np.float32)


def _nearest(rows: npt.NDArray[np.float32], start: int, stop: int, k: int) -> npt.NDArray[np.int64]:
    """The k rows nearest to each of rows[start:stop], themselves left out; int64 [stop - start, k]."""
    similar = rows[start:stop] @ rows.T
    similar[np.arange(stop - start), np.arange(start, stop)] = -np.inf
    return np.argpartition(-similar, k - 1, axis=1)[:, :k]


def neighbour_overlap(ours: npt.NDArray[np.floating], theirs: npt.NDArray[np.floating], k: int) -> Float64:
    """For each row, the part of its k nearest rows by `theirs` that are also among its k nearest by `ours`.

    Args:
        ours, theirs: float [n, D] and [n, E], the same sentences; k < n.
        k: how many neighbours.
    Returns:
        float64 [n] in 0..1.
    Raises:
        ShapeError: other numbers of rows.
        UsageError: fewer than k + 1 rows.
    """
    if len(ours) != len(theirs):
        raise ShapeError(
            f"neighbours need the same sentences from both models, got {len(ours)} and {len(theirs)}"
        )
    if not 0 < k < len(ours):
        raise UsageError(f"{k} neighbours need at least {k + 1} sentences, got {len(ours)}; evaluate on more")
    a, b = unit_rows(ours), unit_rows(theirs)
    found = np.empty(len(a), dtype=np.float64)
    for start in range(0, len(a), _BLOCK):
        stop = min(start + _BLOCK, len(a))
        mine, wanted = _nearest(a, start, stop, k), _nearest(b, start, stop, k)
        shared = (mine[:, :, None] == wanted[:, None, :]).any(axis=2).sum(axis=1)
        found[start:stop] = shared / k
    return found
