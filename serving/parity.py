"""Two engines on the same rows: agreement, logit differences, the first layer where they part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from qexport.errors import ShapeError, UnsupportedModelError
from qexport.serving.evaluate import EvalRows, Evaluated
from qexport.serving.kinds.base import Agreement, PairMeasure
from qexport.serving.kinds.classification import CLASSIFICATION
from qexport.serving.session import Batch, Float32Array, Session, read_json

__all__ = [
    "Disagreement",
    "Histogram",
    "LayerDifference",
    "LayerTrace",
    "Parity",
    "compare_engines",
    "compare_layers",
    "compare_logits",
    "layer_outputs",
]

LAYER_TOLERANCE = 0.05
"""Default mean absolute difference of a LayerNorm output (unit scale) that still counts as the same layer.

The mean, not the largest: where an activation lies between two 8-bit codes, rounding in another order picks
the other one, and single values then drift by up to 0.3 over six layers of a healthy 2-2-8 MiniLM, while the
mean stays below 0.02. A wrong scale, mask or weight moves the mean of its own layer by 0.1 and more.
"""


@dataclass(frozen=True, slots=True)
class Disagreement:
    """One row on which two engines predict differently."""

    row: int
    """Row of the data file, counted from 0; of question answering the question."""
    ours: float
    """Predicted class, or the predicted value of a regression; 0 where `ours_text` says it."""
    theirs: float
    """The same of the reference."""
    label: float | None
    """What the data file says."""
    margin: float
    """How sure the reference was: its best logit minus its second best; 0 for a regression."""
    text: str | None = None
    """The text, where the caller gave it."""
    ours_text: str | None = None
    """The prediction as a text, of kinds whose predictions are no numbers; "" is a refusal to answer."""
    theirs_text: str | None = None
    """The same of the reference."""
    label_text: str | None = None
    """What the data file says, where it is a text."""


@dataclass(frozen=True, slots=True)
class Histogram:
    """Counts of largest absolute logit difference per row, in decades."""

    edges: list[float]
    """k + 1 edges, ascending; the first bin starts at 0."""
    counts: list[int]
    """k counts."""


@dataclass(frozen=True, slots=True)
class Parity:
    """How close the logits of one engine are to those of another on the same rows."""

    engine: str
    """Name of the engine that is judged."""
    against: str
    """Name of the reference."""
    split: str
    """Name of the split."""
    rows: int
    """Rows that both ran."""
    agreement: float
    """Share of rows with the same prediction, 0..1."""
    disagreements: int
    """Rows with different predictions."""
    first_disagreements: list[Disagreement]
    """The first few rows with different predictions, in row order; empty when all agree."""
    max_abs: float
    """Largest absolute difference of a logit."""
    mean_abs: float
    """Mean absolute difference over all logits."""
    p99_abs: float
    """99th percentile over rows of the largest absolute difference within the row."""
    worst_row: int
    """Row with the largest difference."""
    bit_identical: bool
    """Every logit is the same float32 number."""
    histogram: Histogram
    """Rows by their largest difference."""
    measures: list[PairMeasure] = field(default_factory=list)
    """Further numbers about the two, of sentence embeddings: mean cosine, shared nearest sentences."""


@dataclass(frozen=True, slots=True)
class LayerDifference:
    """One LayerNorm output of the ONNX graph against the PyTorch module of the same place."""

    module: str
    """Path of the PyTorch module: bert.encoder.layer.0.output.LayerNorm."""
    value: str
    """Name of the ONNX value."""
    max_abs: float
    """Largest absolute difference over the tokens that the mask keeps."""
    mean_abs: float
    """Mean absolute difference over the same tokens."""
    within: bool
    """mean_abs is at most the tolerance."""


@dataclass(frozen=True, slots=True)
class LayerTrace:
    """Every LayerNorm in graph order, and the first that parts."""

    tolerance: float
    """Mean absolute difference that still counts as the same."""
    layers: list[LayerDifference]
    """In graph order."""
    first: str | None = field(default=None)
    """Module path of the first layer outside the tolerance; None when all are within."""


def _histogram(per_row: npt.NDArray[np.float64]) -> Histogram:
    edges = [0.0, *(10.0**power for power in range(-8, 2)), float("inf")]
    counts, _ = np.histogram(per_row, bins=np.asarray(edges))
    return Histogram(
        [edge if np.isfinite(edge) else 1e30 for edge in edges], [int(count) for count in counts]
    )


def compare_logits(
    engine: str,
    ours: Float32Array,
    against: str,
    theirs: Float32Array,
    *,
    split: str = "",
    rows: npt.NDArray[np.int64] | None = None,
    agreement: Agreement | None = None,
    lengths: npt.NDArray[np.int64] | None = None,
    labels: npt.NDArray[Any] | None = None,
    texts: Sequence[str] | None = None,
    label_texts: Sequence[str] | None = None,
    keep: int = 5,
) -> Parity:
    """Compare two sets of logits row by row.

    Args:
        engine: name of the engine that gave `ours`.
        ours: float32 [m, ...], see `qexport.serving.kinds.OutputKind.join`; logits [m, C] of a classifier.
        against: name of the reference that gave `theirs`.
        theirs: float32 [m, ...], the same rows.
        split: name of the split, for the report.
        rows: row of the data file of each, int64 [m]; None means 0..m-1.
        agreement: who says the same, item by item; None compares the classes with the largest logits.
        lengths: int64 [m], tokens of each row, where axis 1 is one of tokens; values beyond do not count.
        labels: label of every item of the data file; None leaves it out.
        texts: text of every item of the data file.
        label_texts: what is right for every item, where that is a text.
        keep: how many disagreeing rows to list.
    Raises:
        ShapeError: the two differ in shape, or have no rows.
    """
    if ours.shape != theirs.shape or ours.ndim < 2 or ours.shape[0] == 0:
        raise ShapeError(
            f"logits of {engine} and {against} must both be [rows, labels] of the same rows, got "
            f"{list(ours.shape)} and {list(theirs.shape)}"
        )
    numbers = np.arange(ours.shape[0], dtype=np.int64) if rows is None else rows
    difference = np.abs(ours.astype(np.float64) - theirs.astype(np.float64))
    # A NaN on either side is a difference of infinity, never a match.
    difference = np.where(np.isfinite(ours) & np.isfinite(theirs), difference, np.inf)
    per_row = difference.reshape(len(difference), -1).max(axis=-1)
    worst = int(per_row.argmax())
    found = agreement or CLASSIFICATION.agreement(None, ours, theirs, numbers)
    wrong = np.flatnonzero(~found.same)
    listed = []
    for index in wrong[:keep]:
        row = int(found.items[index])
        listed.append(
            Disagreement(
                row, float(found.ours[index]), float(found.theirs[index]),
                None if labels is None else float(labels[row]), float(found.margin[index]),
                None if texts is None else texts[row],
                None if found.ours_text is None else found.ours_text[index],
                None if found.theirs_text is None else found.theirs_text[index],
                None if label_texts is None else label_texts[row],
            )
        )  # fmt: skip
    cells = difference.size if lengths is None else int(lengths.sum()) * difference[0, 0].size
    return Parity(
        engine=engine,
        against=against,
        split=split,
        rows=len(found.same),
        agreement=float(found.same.mean()),
        disagreements=len(wrong),
        first_disagreements=listed,
        max_abs=float(per_row.max()),
        mean_abs=float(difference.sum() / cells),
        p99_abs=float(np.quantile(per_row, 0.99, method="higher")),
        worst_row=int(numbers[worst] if found.owners is None else found.owners[worst]),
        bit_identical=bool(np.array_equal(ours, theirs)),
        histogram=_histogram(per_row),
        measures=list(found.measures),
    )


def compare_engines(rows: EvalRows, engine: str, ours: Evaluated, against: str, theirs: Evaluated) -> Parity:
    """Compare two engines on the rows that the first one ran.

    Args:
        rows: the split.
        engine, ours: name and outputs of the engine that is judged, for some rows or all.
        against, theirs: those of the reference, for all rows.
    Raises:
        ShapeError: the two do not give the same things.
    """
    positions, mine, other = ours.positions, ours.joined, theirs.joined[ours.positions]
    per_token = mine.ndim > 2
    free = 2 if per_token else 1  # axes whose sizes may differ: rows, tokens
    if mine.shape[free:] != other.shape[free:]:
        raise ShapeError(
            f"{against} has {other.shape[-1]} labels but {engine} has {mine.shape[-1]}; "
            "compare models of one task"
        )
    if per_token:  # what ran a part of the rows may not have met the longest
        width = min(mine.shape[1], other.shape[1])
        mine, other = mine[:, :width], other[:, :width]
    read = theirs.decoded
    if len(positions) < rows.n_rows:
        read = rows.reader.decode(rows.items, theirs.joined[positions], positions, theirs.settings)
    return compare_logits(
        engine, mine, against, other, split=rows.split, rows=positions,
        agreement=rows.reader.agreement(rows, ours.decoded, read, positions),
        lengths=rows.lengths[positions] if per_token else None,
        labels=rows.labels if rows.labels.ndim == 1 and rows.items is None else None,
        texts=rows.texts, label_texts=rows.label_texts,
    )  # fmt: skip


def layer_outputs(folder: Path) -> list[tuple[str, str]]:
    """(PyTorch module path, ONNX value name) of every LayerNorm, from the folder's qexport.json.

    Raises:
        UnsupportedModelError: the folder has no such list, so it was not written by qexport to-onnx.
    """
    listed = read_json(folder / "qexport.json").get("layer_norms")
    if not isinstance(listed, list) or not listed:
        raise UnsupportedModelError(
            f"{folder} lists no LayerNorms in qexport.json; --layers needs one that qexport to-onnx wrote"
        )
    return [(str(item["module"]), str(item["value"])) for item in listed]


def compare_layers(
    model: str | Path,
    batch: Batch,
    reference: Mapping[str, npt.NDArray[Any]],
    *,
    tolerance: float = LAYER_TOLERANCE,
    layers: Sequence[tuple[str, str]] | None = None,
    threads: int = 1,
    isa: str | None = None,
) -> LayerTrace:
    """Run one batch with every LayerNorm as an output and compare each with PyTorch.

    Args:
        model: the exported folder.
        batch: int64 [B, S] feeds, the same that PyTorch saw.
        reference: PyTorch module path -> its output, float32 [B, S, D].
        tolerance: mean absolute difference that counts as the same.
        layers: (module path, ONNX value) in graph order; None reads them from qexport.json.
        threads: threads of the session.
        isa: instruction set of the kernel library that runs it; None for ONNX Runtime alone.
    Raises:
        UnsupportedModelError: no layer list, a value that is not in the graph, or no PyTorch module of them.
        ShapeError: a value has another shape than PyTorch's.
    """
    path = Path(model)
    folder = path if path.is_dir() else path.parent
    pairs = [pair for pair in (layers or layer_outputs(folder)) if pair[0] in reference]
    if not pairs:
        raise UnsupportedModelError(
            f"none of the LayerNorms listed in {folder / 'qexport.json'} is among the PyTorch modules given; "
            "pass the student that this folder was exported from"
        )
    session = Session(
        model, threads=threads, extra_outputs=[value for _, value in pairs], isa=isa,
        kernels="off" if isa is None else "require",
    )  # fmt: skip
    values = session.run(batch)
    mask = np.asarray(batch.get("attention_mask", np.ones_like(batch["input_ids"]))).astype(bool)
    found = []
    for module, value in pairs:
        ours = np.asarray(values[value], dtype=np.float64)
        theirs = np.asarray(reference[module], dtype=np.float64)
        if ours.ndim == theirs.ndim == 3 and ours.shape[1] == 1:  # the file computes the first token only
            theirs = theirs[:, :1]
        if ours.shape != theirs.shape:
            raise ShapeError(
                f"{module}: ONNX value {value} is {list(ours.shape)} but PyTorch gave {list(theirs.shape)}; "
                "run both on the same batch"
            )
        difference = np.where(np.isfinite(ours) & np.isfinite(theirs), np.abs(ours - theirs), np.inf)
        here = mask[:, : difference.shape[1]] if difference.ndim == 3 else mask
        kept = difference[here] if here.any() and difference.shape[:2] == here.shape else difference
        mean = float(kept.mean())
        found.append(LayerDifference(module, value, float(kept.max()), mean, mean <= tolerance))
    first = next((layer.module for layer in found if not layer.within), None)
    return LayerTrace(tolerance, found, first)
