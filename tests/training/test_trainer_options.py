"""Options of a run: each one changes what it says it changes."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import save_model, write_reviews
from transformers import BertConfig

import qexport
from qexport.errors import UsageError
from qexport.training import pairing, trainer
from qexport.training.config import TrainConfig
from qexport.training.data import encode, load_task_data, load_tokenizer
from qexport.training.trainer import predict_logits, train


def run(folder: Path, name: str, **values: Any) -> Path:
    """Train on the reviews of `folder` and return the output."""
    defaults: dict[str, Any] = {
        "method": "fp32",
        "model": str(folder / "start"),
        "train_file": folder / "train.csv",
        "eval_file": folder / "eval.csv",
        "batch_size": 16,
        "lr": 3e-3,
        "dropout": 0.0,
        "threads": 1,
        "max_steps": 8,
        "logging_steps": 1,
    }
    train(TrainConfig(output=folder / name, **{**defaults, **values}))
    return folder / name


def history(output: Path) -> list[dict[str, float]]:
    lines: list[dict[str, float]] = json.loads((output / "qexport_train.json").read_text())["history"]
    return lines


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_reviews(tmp_path / "train.csv", 128, 1, words=2)
    write_reviews(tmp_path / "eval.csv", 32, 2, words=2)
    save_model(tmp_path / "start")
    return tmp_path


def test_gradient_accumulation_equals_the_larger_batch(folder: Path) -> None:
    whole = run(folder, "whole", group_by_length=False)
    parts = run(folder, "parts", group_by_length=False, batch_size=8, gradient_accumulation=2)
    a, b = ([line["loss"] for line in history(output) if "loss" in line] for output in (whole, parts))
    assert len(a) == 8 and b == pytest.approx(a, rel=1e-4)


def test_early_stopping_stops_when_the_metric_stays(folder: Path) -> None:
    output = run(folder, "early", lr=1e-9, max_steps=40, eval_steps=2, early_stopping=2)
    assert max(line["step"] for line in history(output)) == 6


def test_tensorboard_leaves_its_event_file_in_the_output(folder: Path) -> None:
    output = run(folder, "board", logging="tensorboard")
    assert list(output.glob("runs/**/events.out.tfevents.*"))
    assert not list(run(folder, "quiet").glob("runs"))


def test_bf16_trains_and_differs_from_float32(folder: Path) -> None:
    losses = [
        [line["loss"] for line in history(run(folder, name, bf16=bf16)) if "loss" in line]
        for name, bf16 in (("full", False), ("half", True))
    ]
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.1)


def test_bf16_is_evaluated_as_the_exported_file_computes(folder: Path) -> None:
    values = {"method": "ternarybert", "model": None, "teacher": str(folder / "start")}
    output = run(folder, "half", bf16=True, **values)
    data = load_task_data(
        None, train_file=folder / "train.csv", eval_file=folder / "eval.csv", text_column=None,
        text_pair_column=None, label_column=None, regression=False,
    )  # fmt: skip
    rows = data.evals["validation"]
    encoded = encode(rows, load_tokenizer(output), 128)
    logits = torch.from_numpy(predict_logits(qexport.load(output), encoded, pad_id=0))
    loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(rows.labels))
    stated = json.loads((output / "qexport_train.json").read_text())["metrics"]["validation/loss"]
    assert stated == pytest.approx(float(loss), rel=1e-6)


def test_one_of_several_gpus_is_used_and_said(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = trainer._arguments

    def several(*args: Any) -> Any:
        found = original(*args)
        assert found.n_gpu <= 1
        found._n_gpu = 4
        return found

    monkeypatch.setattr(trainer, "_arguments", several)
    lines: list[str] = []
    options = {
        "model": str(folder / "start"),
        "train_file": folder / "train.csv",
        "eval_file": folder / "eval.csv",
    }
    config = TrainConfig(
        method="fp32", output=folder / "one", max_steps=2, batch_size=8, threads=1, **options
    )
    train(config, say=lines.append)
    assert any(line.startswith("one of 4 GPUs is used") and "accelerate launch" in line for line in lines)
    assert history(folder / "one")[-1]["epoch"] == pytest.approx(2 * 8 / 128)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"resume": True, "force": True}, "--resume goes on with a run and --force starts it anew"),
        ({"seed": -1}, "--seed must be in 0.."),
        ({"seed": 2**32}, "--seed must be in 0.."),
        ({"epochs": float("inf")}, "--epochs must be a finite number"),
        ({"lr": float("nan")}, "--lr must be a finite number"),
        ({"warmup": 500.0}, "--warmup is a fraction of the steps, at most 1, got 500"),
        ({"augment_probability": 0.2}, "--augment-probability 0.2 has no meaning without --augment"),
        ({"augment_candidates": 3}, "--augment-candidates 3 has no meaning without --augment"),
    ],
)
def test_values_that_cannot_be_are_refused(values: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        TrainConfig(**{"method": "fp32", "output": Path("x"), "task": "sst2", **values})


def test_classes_of_a_teacher_on_the_hub_keep_its_order(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = {0: "contradiction", 1: "neutral", 2: "entailment"}
    known = {"hub/mnli": BertConfig(id2label=names), "hub/plain": BertConfig(num_labels=3)}
    monkeypatch.setattr(pairing, "load_config", lambda name: known[name])
    found = {}
    for teacher in (*known, None):
        config = TrainConfig(method="kdlsq", output=folder, task="mnli", teacher=teacher)
        found[teacher] = pairing.teacher_labels(config)
    assert found == {"hub/mnli": list(names.values()), "hub/plain": None, None: None}


def test_force_leaves_nothing_of_the_run_before(folder: Path) -> None:
    output = run(folder, "out", max_steps=2)
    for name in ("vocab.txt", "modules.json", "notes.txt"):
        (output / name).write_text("{}")
    (output / "1_Pooling").mkdir()
    (output / "1_Pooling" / "config.json").write_text("{}")
    run(folder, "out", max_steps=2, force=True)
    left = {path.name for path in output.iterdir()}
    assert not left & {"vocab.txt", "modules.json", "1_Pooling", "checkpoints"}
    assert {"notes.txt", "model.safetensors", "tokenizer.json"} <= left


def test_loss_weights_leave_terms_out(folder: Path) -> None:
    output = run(
        folder,
        "student",
        method="ternarybert",
        model=None,
        teacher=str(folder / "start"),
        attention_weight=0.0,
        label_weight=0.5,
    )
    names = {name for line in history(output) for name in line if name.startswith("loss_")}
    assert names == {"loss_hidden", "loss_logits", "loss_label"}


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"temperature": 2.0}, "method fp32, task custom.*--temperature 2 has no meaning"),
        (
            {"method": "ghostbert", "attention_weight": 1.0},
            "no stage of ghostbert has the loss of --attention-weight 1",
        ),
    ],
)
def test_option_of_a_loss_that_the_run_has_not_is_refused(
    folder: Path, values: dict[str, Any], words: str
) -> None:
    teacher = str(folder / "start")
    ghosts = {"model": None, "teacher": teacher} if "method" in values else {}
    with pytest.raises(UsageError, match=words):
        run(folder, "refused", **ghosts, **values)


def test_temperature_softens_what_is_learned_from_the_teacher(folder: Path) -> None:
    student = {"method": "ternarybert", "model": None, "teacher": str(folder / "start"), "max_steps": 1}
    cold, hot = (
        next(
            line["loss_logits"]
            for line in history(run(folder, str(t), temperature=t, **student))
            if "loss" in line
        )
        for t in (1.0, 4.0)
    )
    assert cold != hot


def test_max_length_cuts_the_sentences(folder: Path) -> None:
    output = run(folder, "short", max_length=4)
    assert json.loads((output / "qexport_train.json").read_text())["max_length"] == 4


def test_regression_learns_a_number(folder: Path) -> None:
    for name, rows in (("train", 192), ("eval", 48)):
        with (folder / f"{name}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(("text", "score"))
            for row in range(rows):
                count = row % 6
                writer.writerow((" ".join(["the film is", *["very"] * count, "good"]), count / 2))
    start = save_model(folder / "number", num_labels=1)
    values = {"regression": True, "label_column": "score", "max_steps": 120, "logging_steps": 20,
              "group_by_length": False}  # fmt: skip  # the number is the length: a batch would have one label
    teacher = run(folder, "teacher", model=str(start), **values)
    report = json.loads((teacher / "qexport_train.json").read_text())
    assert report["kind"] == "regression" and report["metrics"]["validation/pearson"] > 0.95
    student = run(folder, "student", method="ternarybert", model=None, teacher=str(teacher), **values)
    report = json.loads((student / "qexport_train.json").read_text())
    assert report["metrics"]["validation/pearson"] > 0.85


def test_predictions_keep_the_order_of_the_rows(folder: Path) -> None:
    output = run(folder, "model", max_steps=60)
    data = load_task_data(None, train_file=folder / "train.csv", eval_file=folder / "eval.csv")
    encoded = encode(next(iter(data.evals.values())), load_tokenizer(output), 16)
    model = qexport.load(output)
    one, many = (predict_logits(model, encoded, pad_id=0, batch_size=size) for size in (1, 7))
    assert one.shape == (32, 2)
    assert abs(one - many).max() < 1e-4
    assert (one.argmax(-1) == encoded.labels).mean() > 0.9
