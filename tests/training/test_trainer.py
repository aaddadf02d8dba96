"""Training runs on a tiny task: what is learned, written, refused, interrupted and resumed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import save_model
from tiny_runs import Files, config, report

import qexport
from qexport.errors import OutputExistsError, UnknownNameError, UsageError
from qexport.serving.machine import environment
from qexport.training.recipes import RECIPES
from qexport.training.student import QuantLinear
from qexport.training.trainer import train


@pytest.fixture
def teacher(reviews: Files, tmp_path: Path) -> Path:
    start = save_model(tmp_path / "start")
    train(config(reviews, tmp_path / "teacher", model=str(start), epochs=6))
    return tmp_path / "teacher"


def test_teacher_learns_and_its_folder_is_complete(teacher: Path) -> None:
    values = report(teacher)
    assert values["metrics"]["validation/accuracy"] >= 0.95
    assert values["labels"] == ["negative", "positive"] and values["seed"] == 42
    assert values["data"]["train_rows"] == 256 and len(values["data"]["fingerprint"]) == 64
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {file.name for file in teacher.iterdir()}
    assert not (teacher / "checkpoints").exists()
    assert values["machine"]["cpu"] == environment().cpu
    assert set(values["metrics"]) == {f"validation/{name}" for name in ("loss", "accuracy", "f1")}
    evaluations = [line for line in values["history"] if "eval_loss" in line]
    assert set(evaluations[0]) == {"eval_loss", "eval_accuracy", "eval_f1", "epoch", "step"}
    model: Any = qexport.load(teacher)
    assert model.config.id2label == {0: "negative", 1: "positive"}


@pytest.mark.parametrize(
    ("method", "values"),
    [
        ("ternarybert", {}),
        ("ternarybert", {"bits": "8-8-8", "activations": "static"}),
        ("ternarybert", {"as_published": True}),
        ("ternarybert-lat", {}),
    ],
)
def test_student_keeps_what_its_teacher_knows(
    reviews: Files, teacher: Path, tmp_path: Path, method: str, values: dict[str, Any]
) -> None:
    result = train(
        config(
            reviews, tmp_path / "student", method=method, teacher=str(teacher), epochs=6, lr=2e-3, **values
        )
    )
    assert result.metrics["validation/accuracy"] >= 0.85
    history = [line for line in report(tmp_path / "student")["history"] if "loss_hidden" in line]
    assert {"loss_hidden", "loss_attention", "loss_logits"} <= set(history[0])
    assert history[-1]["loss_hidden"] < history[0]["loss_hidden"]
    model = qexport.load(tmp_path / "student")
    layer = model.get_submodule("bert.encoder.layer.0.attention.self.query")
    assert isinstance(layer, QuantLinear)
    state = load_file(tmp_path / "student" / "model.safetensors")
    if method == "ternarybert-lat":
        curvature = state["bert.encoder.layer.0.attention.self.query.curvature"]
        assert (curvature > 0).all() and curvature.std() > 0
    if values.get("as_published"):
        assert layer.weight_codes()[1].shape == (1,) and layer.activation is not None
        assert layer.activation.clip == 2.5 and layer.activation.mode == "dynamic-tensor"


@pytest.mark.parametrize(("as_published", "mode"), [(False, "dynamic-token"), (True, "static")])
def test_q8bert_trains_without_a_teacher(
    reviews: Files, tmp_path: Path, as_published: bool, mode: str
) -> None:
    start = save_model(tmp_path / "start")
    values = {"method": "q8bert", "model": str(start), "epochs": 6, "as_published": as_published}
    result = train(config(reviews, tmp_path / "q8", **values))
    assert result.metrics["validation/accuracy"] >= 0.9
    head = qexport.load(tmp_path / "q8").get_submodule("classifier")
    assert isinstance(head, QuantLinear) and head.bits == 8 and head.activation is not None
    assert head.activation.mode == mode
    if mode == "static":
        assert float(head.activation.scale) > 0


def test_training_the_same_twice_gives_the_same_weights(reviews: Files, tmp_path: Path) -> None:
    start = save_model(tmp_path / "start")
    for name in ("a", "b"):
        train(config(reviews, tmp_path / name, model=str(start), max_steps=6, dropout=0.1))
    a, b = (load_file(tmp_path / name / "model.safetensors") for name in ("a", "b"))
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_finished_folder_is_not_overwritten_without_force(reviews: Files, teacher: Path) -> None:
    before = (teacher / "model.safetensors").read_bytes()
    with pytest.raises(OutputExistsError, match="--force"):
        train(config(reviews, teacher, model="minilm", epochs=1))
    assert (teacher / "model.safetensors").read_bytes() == before


def test_resume_without_a_checkpoint_says_so(reviews: Files, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no checkpoint"):
        train(config(reviews, tmp_path / "none", model="minilm", resume=True))


def test_distillation_without_a_teacher_is_refused_before_any_work(reviews: Files, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--teacher"):
        train(config(reviews, tmp_path / "student", method="ternarybert"))
    assert not (tmp_path / "student").exists()


def test_teacher_with_other_labels_is_refused(reviews: Files, tmp_path: Path) -> None:
    start = save_model(tmp_path / "three", num_labels=3)
    with pytest.raises(UsageError, match="3 outputs"):
        train(config(reviews, tmp_path / "student", method="ternarybert", teacher=str(start)))


def test_unknown_method_suggests_the_nearest(reviews: Files, tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'ternarybert'"):
        train(config(reviews, tmp_path / "x", method="ternerybert"))


@pytest.mark.parametrize(
    ("method", "values"),
    [
        ("fp32", {"bits": "2-2-8"}),
        ("ternarybert", {"bits": "4-4-8"}),
        ("ternarybert", {"bits": "2-2-4"}),
        ("q8bert", {"bits": "1-1-8"}),
    ],
)
def test_widths_a_method_does_not_define_are_refused(
    reviews: Files, tmp_path: Path, method: str, values: dict[str, Any]
) -> None:
    with pytest.raises(UsageError, match="method"):
        train(config(reviews, tmp_path / "x", method=method, teacher="t", **values))


@pytest.mark.parametrize("values", [{"lr": 0.0}, {"epochs": -1}, {"activations": "x"}, {"warmup": -0.1}])
def test_impossible_values_are_refused(reviews: Files, tmp_path: Path, values: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        config(reviews, tmp_path / "x", **values)


def test_every_recipe_names_its_source() -> None:
    for name, recipe in RECIPES.items():
        assert recipe.name == name and recipe.summary and recipe.source
