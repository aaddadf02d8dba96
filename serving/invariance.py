"""Invariance: whether an engine's answer to a row depends on the rows and the padding beside it."""

from __future__ import annotations

import numpy as np

from qexport.serving.evaluate import EvalRows, Evaluated, Runner
from qexport.serving.report import Invariance

__all__ = ["measure_invariance"]


def measure_invariance(
    engine: str, runner: Runner, rows: EvalRows, batched: Evaluated, *, most: int = 16
) -> Invariance:
    """Run a few rows alone, without padding, and compare with their logits inside the batches.

    Args:
        engine: name for the report.
        runner: the engine, with the file open.
        rows: a split.
        batched: what the engine gave for it in batches, perhaps for a part of the rows.
        most: rows that are run alone, of those it gave.
    """
    place = {int(row): index for index, row in enumerate(batched.positions)}
    largest, identical, done, start = 0.0, True, 0, 0
    for batch in rows.batches:
        for index in range(len(batch["input_ids"])):
            row = int(rows.positions[start + index])
            if done == most or row not in place:
                continue
            mask = np.asarray(batch.get("attention_mask", np.ones_like(batch["input_ids"])))[index]
            length = max(1, int(np.flatnonzero(mask).max(initial=0)) + 1)
            alone = {name: np.asarray(value)[index : index + 1, :length] for name, value in batch.items()}
            single = rows.reader.join(runner.run(alone), alone)[0]
            inside = batched.joined[place[row]][: len(single)]
            largest = max(largest, float(np.abs(single - inside).max()))
            identical &= bool(np.array_equal(single, inside))
            done += 1
        start += len(batch["input_ids"])
        if done == most:
            break
    return Invariance(engine, done, largest, identical)
