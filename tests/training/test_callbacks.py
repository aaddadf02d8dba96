"""Lines for people: what the Trainer's log entries become."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tiny_models import save_model

from qexport.training.callbacks import log_line
from qexport.training.config import TrainConfig
from qexport.training.trainer import train


def test_log_line_names_losses_and_leaves_the_rest_out() -> None:
    logs = {"loss": 1.5, "grad_norm": 3.0, "learning_rate": 1e-5, "loss_hidden": 0.25, "epoch": 0.5}
    assert log_line(50, 200, logs) == "step 50/200  loss 1.5000, hidden 0.2500"


def test_log_line_of_an_evaluation_has_its_metrics_without_timings() -> None:
    logs = {
        "eval_loss": 0.5,
        "eval_accuracy": 0.75,
        "eval_runtime": 3.0,
        "eval_samples_per_second": 9.0,
        "epoch": 1.0,
    }
    assert log_line(8, 8, logs) == "step 8/8  evaluation: loss 0.5000, accuracy 0.7500"


def test_log_line_of_an_entry_without_numbers_for_people_is_empty() -> None:
    assert log_line(8, 8, {"train_runtime": 3.0, "epoch": 1.0}) == ""


def test_training_says_one_line_for_each_entry_and_nothing_raw(
    reviews: tuple[Path, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    lines: list[str] = []
    start = save_model(tmp_path / "start")
    config = TrainConfig(
        method="fp32",
        model=str(start),
        train_file=reviews[0],
        eval_file=reviews[1],
        output=tmp_path / "out",
        max_steps=4,
        logging_steps=2,
        threads=1,
    )
    train(config, say=lines.append)
    steps = [line for line in lines if line.startswith("step ")]
    assert re.findall(r"^step (\d)/4", "\n".join(steps), re.MULTILINE) == ["2", "4", "4", "4"]
    assert "evaluation: loss" in steps[2]
    assert "{'" not in "".join(capfd.readouterr())
