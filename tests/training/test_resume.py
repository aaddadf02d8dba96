"""Runs that are stopped and resumed: the same end as without the stop, wherever that was; what is refused."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_models import save_model
from tiny_runs import Files, StopAt, config, report

from qexport.errors import DiskFullError, Interrupted, OutputExistsError, UsageError
from qexport.training import trainer
from qexport.training.batches import GROUP, GroupByLength, Shuffle
from qexport.training.callbacks import Epochs, Patience
from qexport.training.trainer import train


def assert_equal_weights(first: Path, second: Path) -> None:
    a, b = (load_file(folder / "model.safetensors") for folder in (first, second))
    assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize(("step", "group_by_length"), [(10, True), (20, True), (20, False)])
def test_interrupted_run_resumes_to_the_same_end(
    reviews: Files, tmp_path: Path, step: int, group_by_length: bool
) -> None:
    """A pass has 16 steps; the order of rows in a later pass must not depend on where the run began."""
    start = save_model(tmp_path / "start")
    values = {"model": str(start), "max_steps": 40, "eval_steps": 5, "group_by_length": group_by_length}
    values["dropout"] = 0.1
    train(config(reviews, tmp_path / "whole", **values))
    with pytest.raises(Interrupted, match=rf"at step {step + 1} of 40.*--resume"):
        train(config(reviews, tmp_path / "cut", **values), say=StopAt(f"step {step}/40  evaluation"))
    with pytest.raises(OutputExistsError, match="--resume"):
        train(config(reviews, tmp_path / "cut", **values))
    train(config(reviews, tmp_path / "cut", **values, resume=True))
    assert_equal_weights(tmp_path / "whole", tmp_path / "cut")
    assert report(tmp_path / "cut")["steps"] == 40
    histories = [report(tmp_path / name)["history"] for name in ("whole", "cut")]
    # not from the first line after the resume: it averages the steps that are left of its four
    losses = [{line["step"]: line["loss"] for line in lines if "loss" in line} for lines in histories]
    assert losses[0][40] == losses[1][40] and losses[0][36] == losses[1][36]


@pytest.fixture
def whole_but_unwritten(
    reviews: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[dict[str, Any], Path]:
    """Options and folder of a run that made its last step, and found the disk full."""
    values = {"model": str(save_model(tmp_path / "start")), "max_steps": 20, "eval_steps": 10}

    def full(*args: Any, **options: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "finish", full)
        with pytest.raises(DiskFullError):
            train(config(reviews, tmp_path / "cut", **values))
    return values, tmp_path / "cut"


def test_run_that_made_its_last_step_is_not_trained_further(
    reviews: Files, tmp_path: Path, whole_but_unwritten: tuple[dict[str, Any], Path]
) -> None:
    values, output = whole_but_unwritten
    train(config(reviews, tmp_path / "whole", **values))
    lines: list[str] = []
    train(config(reviews, output, **values, resume=True), say=lines.append)
    assert "resuming from checkpoint-20" in lines
    assert lines[-1].startswith("step 20/20  evaluation: loss") and "time" not in lines[-1]
    whole, cut = report(tmp_path / "whole"), report(output)
    assert cut["steps"] == 20 and cut["metrics"] == whole["metrics"]
    assert cut["best_checkpoint_metric"] == whole["best_checkpoint_metric"]
    assert_equal_weights(tmp_path / "whole", output)


def test_resume_with_another_option_is_refused(
    reviews: Files, tmp_path: Path, whole_but_unwritten: tuple[dict[str, Any], Path]
) -> None:
    values, output = whole_but_unwritten
    with pytest.raises(UsageError, match=r"begun with --lr 0.003, now it is 0.1; give the same --lr"):
        train(config(reviews, output, **values, lr=0.1, resume=True))
    with pytest.raises(UsageError, match=r"begun with --model .*start, now it is minilm"):
        train(config(reviews, output, **{**values, "model": "minilm"}, resume=True))
    other = save_model(tmp_path / "other", seed=5)
    with pytest.raises(UsageError, match=r"other has other weights than the model that this run was begun"):
        train(config(reviews, output, **{**values, "model": str(other)}, resume=True))
    rows = tmp_path / "fewer.csv"
    rows.write_text("".join(reviews[0].read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(UsageError, match="the rows are not those that this run was begun with"):
        train(config(reviews, output, **{**values, "train_file": rows}, resume=True))
    start = save_model(tmp_path / "moved")  # where a folder is may change
    values |= {"model": str(start), "threads": None, "logging_steps": 1}
    train(config(reviews, output, **values, resume=True))
    assert report(output)["steps"] == 20


@pytest.mark.parametrize("order", [Shuffle(1000, 7), GroupByLength(np.arange(1000) % 97, 4, 7)])
def test_order_of_rows_depends_on_seed_and_pass_only(order: Any) -> None:
    first = list(order)
    assert sorted(first) == list(range(1000)) and list(order) == first
    Epochs(order).on_epoch_begin(None, SimpleNamespace(epoch=1.25), None)
    second = list(order)
    assert order.epoch == 1 and second != first
    Epochs(order).on_epoch_begin(None, SimpleNamespace(epoch=0.0), None)
    torch.manual_seed(3)
    assert list(order) == first


def test_batches_of_grouped_rows_are_of_similar_length() -> None:
    lengths = np.random.default_rng(0).integers(3, 120, 4000)
    order = np.array(list(GroupByLength(lengths, 16, 0)))
    assert lengths[order[0]] == lengths.max()

    def padding(rows: np.ndarray) -> float:
        parts = lengths[rows].reshape(-1, 16)
        return float((parts.max(1) * 16).sum() / lengths.sum())

    assert padding(order) < 1.1 < 1.5 < padding(np.array(list(Shuffle(4000, 0))))


def test_lengths_of_batches_do_not_drift_from_step_to_step() -> None:
    lengths = np.random.default_rng(0).integers(3, 120, 4100)
    order = np.array(list(GroupByLength(lengths, 16, 0)))
    assert lengths[order[-4:]].max() < 10  # what fills no batch: the shortest of the last run
    mean = lengths[order[:-4]].reshape(-1, 16).mean(1)
    assert abs(np.corrcoef(mean[1:], mean[:-1])[0, 1]) < 0.2  # sorted runs: above 0.9
    assert abs(np.corrcoef(np.arange(GROUP), mean[:GROUP])[0, 1]) < 0.4


@pytest.mark.parametrize("rows", [1, 3, 16, 17])
def test_fewer_rows_than_a_batch_are_all_there(rows: int) -> None:
    assert sorted(GroupByLength(np.arange(rows), 16, 0)) == list(range(rows))


def test_patience_counts_the_evaluations_before_a_resume() -> None:
    patience = Patience(3, "eval_accuracy")
    args = SimpleNamespace(
        load_best_model_at_end=True, metric_for_best_model="eval_accuracy", eval_strategy="steps"
    )
    for values, expected in (([], 0), ([0.5], 0), ([0.5, 0.7, 0.7, 0.6], 2), ([0.9, 0.8], 1)):
        log = [{"loss": 1.0}, *({"eval_accuracy": value} for value in values)]
        patience.on_train_begin(args, SimpleNamespace(log_history=log), None)
        assert patience.early_stopping_patience_counter == expected, values
