"""Feeds: what a graph is given for a batch of token ids, where the engine is not a `Session`."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from qexport.serving.session import Batch

__all__ = ["feeds_for"]


def feeds_for(inputs: Iterable[str], batch: Batch) -> dict[str, npt.NDArray[np.int64]]:
    """Input -> int64 [B, S]; a missing mask is all ones, missing type ids are all zeros.

    Args:
        inputs: names of the graph's inputs, which are known ones.
        batch: input_ids and what there is beside them; what the graph does not take is dropped.
    """
    ids = np.asarray(batch["input_ids"], dtype=np.int64)
    found = {}
    for name in inputs:
        missing = np.ones_like(ids) if name == "attention_mask" else np.zeros_like(ids)
        found[name] = np.asarray(batch.get(name, missing), dtype=np.int64)
    return found
