from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from qexport.errors import ShapeError, UnsupportedModelError
from qexport.serving.kinds.classification import REGRESSION
from qexport.serving.parity import compare_layers, compare_logits, layer_outputs
from qexport.serving.session import Session

MakeFolder = Callable[..., Path]


def test_equal_logits_agree_on_every_row() -> None:
    logits = np.random.default_rng(0).standard_normal((50, 3)).astype(np.float32)
    found = compare_logits("ours", logits, "theirs", logits.copy())
    assert (found.agreement, found.disagreements, found.max_abs) == (1.0, 0, 0.0)
    assert found.bit_identical and found.first_disagreements == []
    assert sum(found.histogram.counts) == 50 == found.histogram.counts[0]


def test_the_first_disagreeing_row_is_named_in_the_numbering_of_the_file() -> None:
    theirs = np.tile(np.array([[2.0, 0.5]], np.float32), (6, 1))
    ours = theirs.copy()
    ours[[2, 4], 1] = 3.0
    found = compare_logits(
        "ours", ours, "theirs", theirs,
        rows=np.array([3, 5, 11, 12, 13, 20]), labels=np.arange(21) % 2,
        texts=[f"text {i}" for i in range(21)],
    )  # fmt: skip
    assert found.agreement == pytest.approx(4 / 6)
    assert [row.row for row in found.first_disagreements] == [11, 13]
    first = found.first_disagreements[0]
    assert (first.ours, first.theirs, first.label, first.margin, first.text) == (
        1.0,
        0.0,
        1.0,
        1.5,
        "text 11",
    )
    assert (found.max_abs, found.worst_row) == (2.5, 11)
    assert found.mean_abs == pytest.approx(5.0 / 12)


def test_nan_is_a_disagreement_and_an_infinite_difference() -> None:
    theirs = np.zeros((4, 2), np.float32)
    ours = theirs.copy()
    ours[1, 0] = np.nan
    for first, second in ((ours, theirs), (theirs, ours), (ours, ours)):
        found = compare_logits("a", first, "b", second)
        assert (found.disagreements, found.max_abs, found.worst_row) == (1, np.inf, 1)


def test_regression_agrees_within_the_tolerance() -> None:
    theirs = np.array([[1.0], [2.0], [3.0]], np.float32)
    ours = theirs + np.array([[0.0], [0.04], [0.2]], np.float32)
    agreement = REGRESSION.agreement(None, ours, theirs, np.arange(3))
    found = compare_logits("a", ours, "b", theirs, agreement=agreement)
    assert [row.row for row in found.first_disagreements] == [2]


def test_logits_of_different_rows_are_refused() -> None:
    with pytest.raises(ShapeError, match="same rows"):
        compare_logits("a", np.zeros((3, 2), np.float32), "b", np.zeros((4, 2), np.float32))


LAYERS = [("first.LayerNorm", "norm_0"), ("last.LayerNorm", "norm_1")]


def test_layers_name_the_first_that_parts(make_folder: MakeFolder) -> None:
    folder = make_folder()
    batch = {
        "input_ids": np.array([[2, 5, 3], [2, 3, 0]]),
        "attention_mask": np.array([[1, 1, 1], [1, 1, 0]]),
    }
    values = Session(folder, extra_outputs=["norm_0", "norm_1"]).run(batch)
    reference = {module: values[name].copy() for module, name in LAYERS}
    assert compare_layers(folder, batch, reference, layers=LAYERS).first is None

    reference["first.LayerNorm"][1, 2] += 9.0  # a padded token does not count
    assert compare_layers(folder, batch, reference, layers=LAYERS).first is None

    reference["last.LayerNorm"][0] += 0.5
    found = compare_layers(folder, batch, reference, layers=LAYERS, tolerance=0.1)
    assert found.first == "last.LayerNorm"
    assert [layer.within for layer in found.layers] == [True, False]
    assert found.layers[1].max_abs == pytest.approx(0.5, abs=1e-5)
    assert found.layers[1].mean_abs == pytest.approx(0.25, abs=1e-5)  # one row of two

    reference["first.LayerNorm"][0, 0, 0] = np.nan
    assert compare_layers(folder, batch, reference, layers=LAYERS).first == "first.LayerNorm"


def test_layers_come_from_the_folder_and_its_absence_is_named(make_folder: MakeFolder) -> None:
    folder = make_folder()
    assert layer_outputs(folder) == [("embeddings.LayerNorm", "norm_0")]
    with pytest.raises(UnsupportedModelError, match="none of the LayerNorms"):
        compare_layers(folder, {"input_ids": np.array([[2]])}, {"other": np.zeros(1)})
    (folder / "qexport.json").write_text(json.dumps({}), encoding="utf-8")
    with pytest.raises(UnsupportedModelError, match="lists no LayerNorms"):
        layer_outputs(folder)


def test_layers_of_another_batch_are_refused(make_folder: MakeFolder) -> None:
    with pytest.raises(ShapeError, match="run both on the same batch"):
        compare_layers(
            make_folder(), {"input_ids": np.array([[2, 3]])}, {"embeddings.LayerNorm": np.zeros((1, 9, 16))}
        )
