"""What token classifiers and sentence encoders say, decoded and compared; numbers by hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from qexport.errors import ShapeError
from qexport.serving.kinds import get_kind
from qexport.serving.kinds.embedding import EMBEDDING
from qexport.serving.kinds.tokens import TOKENS, TokenItems

# two sentences of 2 and 1 words; word 1 is judged in the second window of the first sentence, word 2 never
ITEMS = TokenItems(
    windows=np.array([0, 1]), pieces=np.array([1, 2]), words=np.array([0, 1]), counts=np.array([2, 1]),
    labels=("O", "B-PER"),
)  # fmt: skip
ROWS: Any = SimpleNamespace(items=ITEMS, task="ner", split="validation", n_rows=2)


def joined(*values: float) -> np.ndarray:
    """Logits [2, 4, 2]: 0 except the two judged pieces, whose logit of B-PER is given."""
    out = np.zeros((2, 4, 2), np.float32)
    out[0, 1, 1], out[1, 2, 1] = values
    return out


def test_tags_come_from_first_pieces_and_word_without_one_is_o() -> None:
    found = TOKENS.decode(ITEMS, joined(2, -1), np.arange(2), {})
    assert found.ids.tolist() == [1, 0, -1]
    assert ITEMS.sentences(found.ids) == [["B-PER", "O"], ["O"]]
    np.testing.assert_allclose(found.margins, [2, 1, 0])
    np.testing.assert_allclose(
        found.probabilities, [1 / (1 + np.exp(-2)), 1 / (1 + np.exp(-1)), 0], rtol=1e-6
    )
    part = TOKENS.decode(ITEMS, joined(2, -1)[1:], np.array([1]), {})
    assert part.ids.tolist() == [-1, 0, -1]


def test_words_agree_where_both_ran_them_and_logits_are_finite() -> None:
    every = np.arange(2)
    a, b = (TOKENS.decode(ITEMS, joined(*values), every, {}) for values in ((2, -1), (2, 3)))
    found = TOKENS.agreement(ROWS, a, b, every)
    assert (found.items.tolist(), found.same.tolist()) == ([0, 1], [True, False])
    assert (list(found.ours_text or ()), list(found.theirs_text or ())) == (
        ["B-PER", "O"],
        ["B-PER", "B-PER"],
    )
    assert found.owners is not None
    assert found.owners.tolist() == [0, 1]
    broken = TOKENS.decode(ITEMS, joined(np.nan, 3), every, {})
    assert TOKENS.agreement(ROWS, broken, b, every).same.tolist() == [False, True]


def test_logits_of_padding_are_zero() -> None:
    batch = {"input_ids": np.ones((2, 4)), "attention_mask": np.array([[1, 1, 0, 0], [1, 1, 1, 1]])}
    logits = TOKENS.join({"logits": np.ones((2, 4, 2))}, batch)
    assert logits.sum(axis=(1, 2)).tolist() == [4, 8]
    with pytest.raises(ShapeError, match=r"must be \[2, 4, labels\] for this batch, got \[2, 2\]"):
        TOKENS.join({"logits": np.ones((2, 2))}, batch)


def test_embeddings_agree_by_cosine_and_share_neighbours() -> None:
    angles = np.radians(np.arange(0, 60, 5.0))
    theirs = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    angles[3] += np.radians(30)
    ours = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    found = EMBEDDING.agreement(ROWS, ours, theirs, np.arange(12))
    assert found.same.tolist() == [index != 3 for index in range(12)]
    measures = {measure.name: measure for measure in found.measures}
    assert measures["cosine"].value == pytest.approx((11 + np.cos(np.radians(30))) / 12, abs=1e-6)
    assert measures["cosine"].low < measures["cosine"].value < measures["cosine"].high <= 1
    assert 0 < measures["neighbours_top1"].value < 1
    same = EMBEDDING.agreement(ROWS, 2 * theirs, theirs, np.arange(12))
    assert [measure.value for measure in same.measures] == pytest.approx([1.0, 1.0, 1.0])
    broken = ours.copy()
    broken[0] = np.nan
    assert not EMBEDDING.agreement(ROWS, broken, theirs, np.arange(12)).same[0]


@pytest.mark.parametrize("name", ["classification", "embedding"])
def test_an_engine_without_the_output_is_refused_in_one_sentence(name: str) -> None:
    kind = get_kind(name)
    batch = {"input_ids": np.zeros((2, 3), dtype=np.int64)}
    with pytest.raises(ShapeError, match=f"must give {kind.outputs[0]}, got scores$"):
        kind.join({"scores": np.zeros((2, 4), np.float32)}, batch)
    with pytest.raises(ShapeError, match=rf"{kind.outputs[0]} must be \[2, \w+\] for .* rows, got \[3, 4\]"):
        kind.join({kind.outputs[0]: np.zeros((3, 4), np.float32)}, batch)
