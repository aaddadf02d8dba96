"""TinyBERT runs on a tiny task: a smaller float student in two stages, and what is quantised from it."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import tiny_runs
import torch
from safetensors.torch import load_file
from tiny_models import save_model, write_reviews
from tiny_runs import Files, StopAt, report
from transformers import AutoModelForSequenceClassification

from qexport.errors import Interrupted, UsageError
from qexport.training import trainer as trainer_module
from qexport.training.distiller import Distiller
from qexport.training.trainer import train

config = partial(tiny_runs.config, method="tinybert", lr=1e-3, logging_steps=2)

SMALL: dict[str, Any] = {"layers": 1, "hidden_size": 12, "intermediate_size": 30, "heads": 2}


@pytest.fixture
def teacher(reviews: Files, tmp_path: Path) -> Path:
    start = save_model(tmp_path / "start")
    train(config(reviews, tmp_path / "teacher", method="fp32", model=str(start), epochs=6, lr=3e-3))
    return tmp_path / "teacher"


@pytest.fixture
def untrained(tmp_path: Path) -> Path:
    return save_model(tmp_path / "untrained")


def test_small_student_learns_in_two_stages_and_is_a_start_for_quantising(
    reviews: Files, teacher: Path, tmp_path: Path
) -> None:
    lines: list[str] = []
    output = tmp_path / "small"
    result = train(config(reviews, output, teacher=str(teacher), epochs=6, **SMALL), say=lines.append)
    assert result.metrics["validation/accuracy"] >= 0.85
    assert "[1/2 layers] model: float32, 1 layers of width 12" in lines
    layers, prediction = report(output)["stages"]
    first, last = ([line for line in layers["history"] if "loss_hidden" in line][n] for n in (0, -1))
    assert last["loss_hidden"] < first["loss_hidden"] and last["loss_attention"] < first["loss_attention"]
    steady = [line["learning_rate"] for line in layers["history"] if "loss" in line]
    assert steady == pytest.approx([5e-3 / 3] * len(steady))
    rates = [line["learning_rate"] for line in prediction["history"] if "loss" in line]
    assert max(rates) <= 1e-3 and rates[-1] < 0.2e-3
    assert all("loss_logits" in line for line in prediction["history"] if "loss" in line)
    factory: Any = AutoModelForSequenceClassification
    model = factory.from_pretrained(output)
    assert (model.config.num_hidden_layers, model.config.hidden_size) == (1, 12)
    assert load_file(output / "model.safetensors").keys() == model.state_dict().keys()  # and no projection
    # the small model is quantised with the large one as its teacher
    values: dict[str, Any] = {"method": "ternarybert", "model": str(output), "teacher": str(teacher)}
    quantised = train(config(reviews, tmp_path / "quantised", **values, epochs=2))
    assert quantised.metrics["validation/accuracy"] >= 0.8
    assert report(tmp_path / "quantised")["bits"] == "2-2-8"


def test_losses_of_one_batch_fall_and_all_that_is_compared_learns(
    tmp_path: Path, untrained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, torch.Tensor]] = []

    class Watched(Distiller):
        def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
            seen.append({name: value.detach().clone() for name, value in self.student.named_parameters()})
            return super().training_step(*args, **kwargs)

    monkeypatch.setattr(trainer_module, "Distiller", Watched)
    files = write_reviews(tmp_path / "batch.csv", 16, 1), write_reviews(tmp_path / "dev.csv", 8, 2)
    values = {**SMALL, "layers": 2, "teacher": str(untrained), "max_steps": 21, "logging_steps": 1}
    train(config(files, tmp_path / "small", **values))
    history = report(tmp_path / "small")["stages"][0]["history"]
    for name in ("loss_hidden", "loss_attention"):
        terms = [line[name] for line in history if name in line][::5]
        assert sorted(terms, reverse=True) == terms and terms[-1] < 0.85 * terms[0]
    first, last = seen[0], seen[20]
    still = {name for name in first if torch.equal(first[name], last[name])}
    assert "qexport_projection.weight" in first
    assert still == {name for name in first if name.startswith(("bert.pooler", "classifier"))}


def test_interrupted_stage_resumes_to_the_same_end(reviews: Files, untrained: Path, tmp_path: Path) -> None:
    values = {"teacher": str(untrained), "max_steps": 4, "eval_steps": 2, "dropout": 0.1, **SMALL}
    train(config(reviews, tmp_path / "whole", **values))
    with pytest.raises(Interrupted, match=r"in stage layers \(1 of 2\)"):
        train(config(reviews, tmp_path / "cut", **values), say=StopAt("[1/2 layers] step 2/4"))
    train(config(reviews, tmp_path / "cut", **values, resume=True))
    whole, cut = (load_file(tmp_path / folder / "model.safetensors") for folder in ("whole", "cut"))
    assert whole.keys() == cut.keys() and all(torch.equal(whole[key], cut[key]) for key in whole)


def test_named_start_keeps_its_size(reviews: Files, untrained: Path, tmp_path: Path) -> None:
    start = save_model(tmp_path / "own", num_hidden_layers=1, hidden_size=12, num_attention_heads=3)
    values = {"teacher": str(untrained), "model": str(start), "max_steps": 2}
    train(config(reviews, tmp_path / "small", **values))
    shapes = {
        name: value.shape for name, value in load_file(tmp_path / "small" / "model.safetensors").items()
    }
    assert shapes == {name: value.shape for name, value in load_file(start / "model.safetensors").items()}


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (
            {"model": "m", "layers": 2},
            "has the size of its start m, so --layers has no meaning; leave it out",
        ),
        ({"method": "kdlsq", "heads": 2}, "method kdlsq does not change the size .* --heads .* tinybert"),
        ({"bits": "8-8-8"}, "method tinybert trains a float model; --bits 8-8-8"),
        ({"teacher": None}, "needs --teacher"),
        ({"layers": 0}, "--layers must be greater than 0"),
    ],
)
def test_what_the_method_does_not_define_is_refused(
    reviews: Files, tmp_path: Path, values: dict[str, Any], words: str
) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        train(config(reviews, tmp_path / "x", **{"teacher": "t", **values}))
    assert "\n" not in str(caught.value) and not (tmp_path / "x").exists()
