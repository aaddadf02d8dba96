"""Entity scores against numbers counted by hand, and their intervals."""

from __future__ import annotations

import numpy as np
import pytest
from seqeval.metrics import f1_score

from qexport.errors import ShapeError, UnknownNameError, UsageError
from qexport.training.entity_metrics import (
    entity_counts,
    entity_interval,
    entity_paired_drop,
    entity_scores,
)

# Sentence 1: PER 0-1 found, LOC 3 has the type ORG. Sentence 2: ORG 0-2 ends too early. Sentence 3: nothing
# to find, one invented. Sentence 4: both found. By hand: 3 found, 6 predicted, 5 true.
TRUTH = [
    ["B-PER", "I-PER", "O", "B-LOC"],
    ["B-ORG", "I-ORG", "I-ORG"],
    ["O", "O"],
    ["B-LOC", "B-LOC"],
]
PREDICTED = [
    ["B-PER", "I-PER", "O", "B-ORG"],
    ["B-ORG", "I-ORG", "O"],
    ["O", "B-PER"],
    ["B-LOC", "B-LOC"],
]


def test_scores_equal_those_counted_by_hand_and_seqeval() -> None:
    counts = entity_counts(TRUTH, PREDICTED)
    assert counts.tolist() == [[1, 2, 2], [0, 1, 1], [0, 1, 0], [2, 2, 2]]
    scores = entity_scores(counts)
    assert scores == {"entity_f1": 6 / 11, "entity_precision": 3 / 6, "entity_recall": 3 / 5}
    assert scores["entity_f1"] == pytest.approx(f1_score(TRUTH, PREDICTED), abs=1e-15)


def test_scores_are_the_same_when_tags_are_in_another_scheme() -> None:
    iob1 = [["I-PER", "I-PER", "O", "I-LOC"], ["I-ORG", "I-ORG", "I-ORG"], ["O", "O"], ["I-LOC", "B-LOC"]]
    iobes = [["B-PER", "E-PER", "O", "S-LOC"], ["B-ORG", "I-ORG", "E-ORG"], ["O", "O"], ["S-LOC", "S-LOC"]]
    for truth in (iob1, iobes):
        assert entity_counts(truth, truth).tolist() == entity_counts(TRUTH, TRUTH).tolist()


def test_no_entities_score_zero() -> None:
    assert set(entity_scores(entity_counts([["O"]], [["O"]])).values()) == {0.0}


def test_interval_holds_the_value_and_has_width_only_when_sentences_differ() -> None:
    counts = np.tile(entity_counts(TRUTH, PREDICTED), (20, 1))
    low, high = entity_interval(counts, "entity_f1")
    assert low < 6 / 11 < high
    assert high - low < 0.35
    assert entity_interval(counts, "entity_f1") == (low, high)
    same = np.tile([[1, 2, 2]], (20, 1))
    assert entity_interval(same, "entity_f1") == (0.5, 0.5)


def test_interval_equals_the_bootstrap_of_whole_sentences() -> None:
    generator = np.random.default_rng(3)
    true = generator.integers(0, 4, 60)
    counts = np.stack([generator.binomial(true, 0.7), true, true], axis=1)
    drawn = counts[generator.integers(0, 60, (4000, 60))].sum(axis=1)
    plain = np.quantile(drawn[:, 0] / drawn[:, 2], [0.025, 0.975])
    found = entity_interval(counts, "entity_recall", resamples=4000)
    np.testing.assert_allclose(found, plain, atol=0.02)  # two bootstraps of 4000 draws


def test_paired_drop_is_the_difference_with_its_interval() -> None:
    a = np.tile(entity_counts(TRUTH, TRUTH), (20, 1))
    b = np.tile(entity_counts(TRUTH, PREDICTED), (20, 1))
    found = entity_paired_drop(a, b, "entity_f1")
    assert found.drop == 1 - 6 / 11
    assert found.low < found.drop < found.high
    same = entity_paired_drop(b, b, "entity_f1")
    assert (same.drop, same.low, same.high) == (0.0, 0.0, 0.0)


def test_mistakes_are_refused() -> None:
    counts = entity_counts(TRUTH, PREDICTED)
    with pytest.raises(ShapeError, match="same words"):
        entity_counts(TRUTH, PREDICTED[:3])
    with pytest.raises(ShapeError, match="got 4 and 3"):
        entity_paired_drop(counts, counts[:3], "entity_f1")
    with pytest.raises(UnknownNameError, match="entity metric"):
        entity_interval(counts, "f1")
    with pytest.raises(UsageError, match="at least one sentence"):
        entity_scores(counts[:0])
