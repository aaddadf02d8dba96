"""Two processes train as one process with the double batch does."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_models import save_model, write_reviews


def losses(folder: Path, key: str) -> list[float]:
    history = json.loads((folder / "qexport_train.json").read_text())["history"]
    return [line[key] for line in history if "loss" in line]


def run(folder: Path, arguments: list[str], *, processes: int = 1) -> None:
    """Run `python ARGUMENTS` in a folder, or the same in several processes; it must succeed."""
    # accelerate starts several processes only under --multi_gpu; ACCELERATE_USE_CPU puts them on the CPU
    options = {
        "--num_processes": str(processes),
        "--num_machines": "1",
        "--mixed_precision": "no",
        "--dynamo_backend": "no",
        "--main_process_port": "0",
    }
    launch = ["-m", "accelerate.commands.launch", "--multi_gpu", *itertools.chain(*options.items())]
    environment = {
        **os.environ,
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "QEXPORT_CACHE": str(folder / "cache"),
    }
    command = [sys.executable, *(launch if processes > 1 else []), *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("method", ["fp32", "ternarybert"])
def test_two_processes_give_the_loss_curve_of_one_with_double_batch(tmp_path: Path, method: str) -> None:
    # sentences of one length: padding, and with it the mean over positions, does not depend
    # on how rows are put into batches
    train, evaluation = (write_reviews(tmp_path / f"{name}.csv", 96, words=2) for name in ("train", "eval"))
    start = save_model(tmp_path / "start", num_labels=2)
    options = {
        "--method": method,
        "--model" if method == "fp32" else "--teacher": str(start),
        "--data": str(train),
        "--eval": str(evaluation),
        "--max-steps": "8",
        "--logging-steps": "1",
        "--dropout": "0",
        "--lr": "1e-3",
        "--threads": "1",
    }
    arguments = ["-m", "qexport", "train", "--no-group-by-length", *itertools.chain(*options.items())]
    run(tmp_path, [*arguments, "--batch-size", "16", "--output", "one"])
    run(tmp_path, [*arguments, "--batch-size", "8", "--output", "two"], processes=2)
    a, b = losses(tmp_path / "one", "loss"), losses(tmp_path / "two", "loss")
    assert len(a) == len(b) == 8
    assert b == pytest.approx(a, rel=2e-3)
    assert max(a) - min(a) > 0.01 * a[0]  # the curve moves, so equality says something


@pytest.mark.slow
@pytest.mark.parametrize("method", ["tinybert", "binarybert"])
def test_two_processes_train_stages_whose_loss_leaves_the_task_layer_alone(
    tmp_path: Path, method: str
) -> None:
    train, evaluation = (write_reviews(tmp_path / f"{name}.csv", 32) for name in ("train", "eval"))
    start = save_model(tmp_path / "start", num_labels=2)
    size = ["--layers", "1", "--hidden-size", "12", "--intermediate-size", "30", "--heads", "2"]
    words = ["--method", method, "--teacher", str(start), "--data", str(train), "--eval", str(evaluation),
             "--max-steps", "3", "--threads", "1", "--output", "student"]  # fmt: skip
    run(tmp_path, ["-m", "qexport", "train", *words, *(size if method == "tinybert" else [])], processes=2)
    assert (tmp_path / "student" / "model.safetensors").is_file()
