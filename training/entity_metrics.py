"""Entity counts: precision, recall and F1 of entities by the library seqeval, with bootstrap intervals.

An entity counts as found when its first word, last word and type are all right (Tjong Kim Sang and De Meulder
2003). Counts are summed over sentences before the ratio, "micro"; intervals draw whole sentences, since the
entities of one sentence are not independent.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from qexport.errors import MissingPackageError, ShapeError, UnknownNameError, UsageError
from qexport.training.metrics import PairedDrop

__all__ = ["ENTITY_METRICS", "entity_counts", "entity_interval", "entity_paired_drop", "entity_scores"]

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]

ENTITY_METRICS = ("entity_f1", "entity_precision", "entity_recall")
"""Fractions over entities; 0 where nothing was predicted, or nothing was there to be found."""


def _get_entities() -> Any:
    try:
        return importlib.import_module("seqeval.metrics.sequence_labeling").get_entities
    except ImportError as error:
        raise MissingPackageError(
            "entity scores need the package seqeval: pip install 'qexport[ner]'"
        ) from error


def entity_counts(truth: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]) -> Int64:
    """Entities of each sentence: found, predicted, true; int64 [sentences, 3].

    Args:
        truth: tags of the words of each sentence, in IOB1, IOB2 or IOBES.
        predicted: the same from a model.
    Raises:
        MissingPackageError: no seqeval.
        ShapeError: other sentences or other numbers of words.
    """
    if [len(tags) for tags in truth] != [len(tags) for tags in predicted]:
        raise ShapeError(
            "true and predicted tags must be of the same words; run the model on these sentences"
        )
    get_entities = _get_entities()
    counts = np.zeros((len(truth), 3), dtype=np.int64)
    for row, (ours, theirs) in enumerate(zip(predicted, truth, strict=True)):
        found, wanted = set(get_entities(list(ours))), set(get_entities(list(theirs)))
        counts[row] = len(found & wanted), len(found), len(wanted)
    return counts


def _ratio(totals: Float64, metric: str) -> Float64:
    """The metric of summed counts float64 [..., 3]."""
    hits, predicted, true = totals[..., 0], totals[..., 1], totals[..., 2]
    if metric == "entity_precision":
        above, below = hits, predicted
    elif metric == "entity_recall":
        above, below = hits, true
    elif metric == "entity_f1":
        above, below = 2 * hits, predicted + true
    else:
        raise UnknownNameError("entity metric", metric, ENTITY_METRICS)
    return np.divide(above, below, out=np.zeros_like(below), where=below > 0)


def entity_scores(counts: Int64) -> dict[str, float]:
    """Every metric of `ENTITY_METRICS`, a fraction.

    Args:
        counts: int64 [sentences, 3] from `entity_counts`.
    Raises:
        UsageError: no sentences.
    """
    _check(counts, 0.95, 100)
    totals = counts.sum(axis=0).astype(np.float64)
    return {metric: float(_ratio(totals, metric)) for metric in ENTITY_METRICS}


def _check(counts: Int64, level: float, resamples: int) -> None:
    if len(counts) == 0:
        raise UsageError("entity scores need at least one sentence, got none; pass evaluation rows")
    if not 0 < level < 1:
        raise UsageError(f"the confidence level must be between 0 and 1, got {level}; use 0.95")
    if resamples < 100:
        raise UsageError(f"a bootstrap interval needs at least 100 resamples, got {resamples}; use 2000")


def _resampled(columns: Int64, seed: int, resamples: int) -> Float64:
    """Sums of the columns over resampled sentences: float64 [resamples, columns]."""
    # Sentences with the same counts are interchangeable: draw how many of each kind.
    kinds, sizes = np.unique(columns, axis=0, return_counts=True)
    drawn = np.random.default_rng(seed).multinomial(len(columns), sizes / len(columns), size=resamples)
    return np.asarray(drawn @ kinds, dtype=np.float64)


def entity_interval(
    counts: Int64, metric: str, *, level: float = 0.95, seed: int = 0, resamples: int = 2000
) -> tuple[float, float]:
    """Percentile bootstrap interval over sentences (Efron 1979).

    Args:
        counts: int64 [sentences, 3] from `entity_counts`.
        metric: one of `ENTITY_METRICS`.
        level: coverage.
        seed, resamples: of the bootstrap.
    Raises:
        UnknownNameError: no such metric; UsageError: no sentences, a level or a number that cannot be.
    """
    _check(counts, level, resamples)
    values = _ratio(_resampled(counts, seed, resamples), metric)
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def entity_paired_drop(
    counts_a: Int64,
    counts_b: Int64,
    metric: str,
    *,
    level: float = 0.95,
    seed: int = 0,
    resamples: int = 2000,
) -> PairedDrop:
    """metric(a) - metric(b) on the same sentences, with its paired bootstrap interval.

    Args:
        counts_a, counts_b: int64 [sentences, 3] of the two models.
        metric, level, seed, resamples: see `entity_interval`.
    Raises:
        ShapeError: the two have other numbers of sentences; see also `entity_interval`.
    """
    if counts_a.shape != counts_b.shape:
        raise ShapeError(
            f"a paired comparison needs the same sentences for both models, got {len(counts_a)} and "
            f"{len(counts_b)}; run both on the same evaluation rows"
        )
    _check(counts_a, level, resamples)
    sums = _resampled(np.concatenate([counts_a, counts_b], axis=1), seed, resamples)
    values = _ratio(sums[:, :3], metric) - _ratio(sums[:, 3:], metric)
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    drop = entity_scores(counts_a)[metric] - entity_scores(counts_b)[metric]
    return PairedDrop(
        metric=metric, drop=drop, low=float(low), high=float(high), level=level, rows=len(counts_a)
    )
