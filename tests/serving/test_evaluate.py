from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from qexport.errors import ShapeError, UsageError
from qexport.serving.evaluate import evaluate, metric_values
from qexport.serving.session import Session

MakeFolder = Callable[..., Path]


def test_logits_come_back_in_file_order_when_batches_are_shuffled(
    make_folder: MakeFolder, toy: SimpleNamespace
) -> None:
    session = Session(make_folder())
    plain, rows = evaluate(session, toy.make_rows(21, batch=1))
    shuffled, positions = evaluate(session, toy.make_rows(21, batch=4, shuffled=True))
    np.testing.assert_allclose(plain, shuffled, atol=1e-5)
    assert rows.tolist() == positions.tolist() == list(range(21))
    assert np.abs(np.diff(plain, axis=0)).min() > 0  # rows differ, so a wrong order would show


def test_a_row_limit_cuts_the_last_batch_and_says_which_rows(
    make_folder: MakeFolder, toy: SimpleNamespace
) -> None:
    session, rows = Session(make_folder()), toy.make_rows(20, batch=8, shuffled=True)
    every, _ = evaluate(session, rows)
    seen: list[tuple[int, int]] = []
    some, positions = evaluate(
        session, rows, max_rows=11, progress=lambda done, total: seen.append((done, total))
    )
    assert sorted(rows.order[:11]) == positions.tolist()
    np.testing.assert_allclose(some, every[positions], atol=1e-5)
    assert seen == [(8, 11), (11, 11)]


def test_metrics_put_the_main_one_first_with_its_interval(toy: SimpleNamespace) -> None:
    rows = toy.make_rows(
        10, metrics=lambda logits, labels: {"f1": 0.5, "accuracy": 0.75}, interval=lambda *_: (0.25, 0.875)
    )
    found = metric_values(rows, np.zeros((10, 2), np.float32))
    assert [(item.metric, item.value, item.low, item.high) for item in found] == [
        ("accuracy", 0.75, 0.25, 0.875),
        ("f1", 0.5, 0.25, 0.875),
    ]


def test_metrics_refuse_a_model_with_too_few_labels(toy: SimpleNamespace) -> None:
    rows = toy.make_rows(10, labels=np.array([0, 1, 2, 0, 1, 2, 0, 1, 2, 0]))
    with pytest.raises(ShapeError, match="has label 2 but the model has only 2 logits"):
        metric_values(rows, np.zeros((10, 2), np.float32))


def test_rows_refuse_labels_of_another_number_and_a_bad_order(toy: SimpleNamespace) -> None:
    with pytest.raises(UsageError, match="batches hold 10 rows, labels 9"):
        toy.make_rows(10, labels=np.zeros(9, np.int64))
    with pytest.raises(UsageError, match=r"permutation of 0\.\.9"):
        toy.make_rows(10, order=np.zeros(10, np.int64))


def test_a_runner_with_the_wrong_number_of_rows_is_refused(toy: SimpleNamespace) -> None:
    broken = SimpleNamespace(run=lambda batch: {"logits": np.zeros((1, 2), np.float32)})
    with pytest.raises(ShapeError, match=r"logits must be \[8, labels\]"):
        evaluate(broken, toy.make_rows(10))
