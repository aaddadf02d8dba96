"""Runs that are stopped and resumed: the same end as without the stop, wherever that was; what is refused."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_models import save_model

from qexport.errors import Interrupted, UsageError
from qexport.training import trainer
from qexport.training.batches import GROUP, GroupByLength, Shuffle
from qexport.training.callbacks import Epochs, Patience
from qexport.training.config import TrainConfig
from qexport.training.trainer import train

Files = tuple[Path, Path]


def config(files: Files, output: Path, **values: Any) -> TrainConfig:
    defaults: dict[str, Any] = {
        "method": "fp32",
        "train_file": files[0],
        "eval_file": files[1],
        "batch_size": 16,
        "lr": 3e-3,
        "dropout": 0.1,
        "threads": 1,
        "logging_steps": 4,
    }
    return TrainConfig(output=output, **{**defaults, **values})


def report(folder: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((folder / "qexport_train.json").read_text())
    return values


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("group_by_length", [True, False])
def test_run_stopped_in_its_second_pass_resumes_to_the_same_end(
    reviews: Files, tmp_path: Path, group_by_length: bool
) -> None:
    """A pass has 16 steps; the order of rows in a later pass must not depend on where the run began."""
    start = save_model(tmp_path / "start")
    values = {"model": str(start), "max_steps": 40, "eval_steps": 5, "group_by_length": group_by_length}
    train(config(reviews, tmp_path / "whole", **values))

    def interrupt() -> None:
        while not list((tmp_path / "cut" / "checkpoints").glob("checkpoint-20/trainer_state.json")):
            time.sleep(0.002)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(Interrupted, match=r"at step (2\d|3[0-2]) of 40"):
        train(config(reviews, tmp_path / "cut", **values))
    thread.join()
    train(config(reviews, tmp_path / "cut", **values, resume=True))
    whole, cut = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert all(torch.equal(whole[key], cut[key]) for key in whole)
    histories = [report(tmp_path / name)["history"] for name in ("whole", "cut")]
    # not from the first line after the resume: it averages the steps that are left of its four
    losses = [{line["step"]: line["loss"] for line in lines if "loss" in line} for lines in histories]
    assert losses[0][40] == losses[1][40] and losses[0][36] == losses[1][36]


def test_run_that_made_its_last_step_is_not_trained_further(
    reviews: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {"model": str(save_model(tmp_path / "start")), "max_steps": 20, "eval_steps": 10}
    train(config(reviews, tmp_path / "whole", **values))

    def full(*args: Any, **options: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "finish", full)
        with pytest.raises(Exception, match="space"):
            train(config(reviews, tmp_path / "cut", **values))
    lines: list[str] = []
    train(config(reviews, tmp_path / "cut", **values, resume=True), say=lines.append)
    assert "resuming from checkpoint-20" in lines
    assert lines[-1].startswith("step 20/20  evaluation: loss") and "time" not in lines[-1]
    whole, cut = report(tmp_path / "whole"), report(tmp_path / "cut")
    assert cut["steps"] == 20 and cut["metrics"] == whole["metrics"]
    assert cut["best_checkpoint_metric"] == whole["best_checkpoint_metric"]
    first, second = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_resume_with_another_option_is_refused(
    reviews: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {"model": str(save_model(tmp_path / "start")), "max_steps": 4, "eval_steps": 2}

    def full(*args: Any, **options: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "finish", full)
        with pytest.raises(Exception, match="space"):
            train(config(reviews, tmp_path / "cut", **values))
    with pytest.raises(UsageError, match=r"begun with --lr 0.003, now it is 0.1; give the same --lr"):
        train(config(reviews, tmp_path / "cut", **values, lr=0.1, resume=True))
    train(config(reviews, tmp_path / "cut", **values, threads=None, logging_steps=1, resume=True))
    assert report(tmp_path / "cut")["steps"] == 4


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
    assert len(set(order[: GROUP * 16].tolist())) == GROUP * 16


def test_patience_counts_the_evaluations_before_a_resume() -> None:
    patience = Patience(3, "eval_accuracy")
    args = SimpleNamespace(
        load_best_model_at_end=True, metric_for_best_model="eval_accuracy", eval_strategy="steps"
    )
    for values, expected in (([], 0), ([0.5], 0), ([0.5, 0.7, 0.7, 0.6], 2), ([0.9, 0.8], 1)):
        log = [{"loss": 1.0}, *({"eval_accuracy": value} for value in values)]
        patience.on_train_begin(args, SimpleNamespace(log_history=log), None)
        assert patience.early_stopping_patience_counter == expected, values
