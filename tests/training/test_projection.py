"""The projection of hidden states: its fit, its gradient, and students of another size than their teacher."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import save_model
from tiny_runs import StopAt
from torch.nn import functional

from qexport.errors import Interrupted, UsageError
from qexport.graphs.config import ExportConfig
from qexport.graphs.export import to_onnx
from qexport.training.config import TrainConfig
from qexport.training.distill import attention_loss, hidden_loss
from qexport.training.layer_map import uniform_map
from qexport.training.models import load_encoder
from qexport.training.projection import (
    attach_projection,
    drop_projection,
    fit_linear,
    hidden_states,
    projection_of,
)
from qexport.training.trainer import train

Files = tuple[Path, Path]
BIG: dict[str, Any] = {
    "num_hidden_layers": 3,
    "hidden_size": 24,
    "num_attention_heads": 3,
    "intermediate_size": 32,
}
"""Deeper and wider than the tiny model of 2 layers and width 20, and of other heads."""


def batch() -> dict[str, torch.Tensor]:
    ids = torch.randint(4, 20, (16, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[3, 5:] = 0
    return {"input_ids": ids, "attention_mask": mask, "labels": torch.zeros(16, dtype=torch.int64)}


def test_fit_finds_a_linear_map_again_from_parts() -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(60, 5, generator=generator)
    weight, bias = torch.randn(7, 5, generator=generator), torch.randn(7, generator=generator)
    y = x @ weight.T + bias
    found = fit_linear([(x[:20], y[:20]), (x[20:], y[20:])])
    assert torch.allclose(found[0], weight, atol=1e-4) and torch.allclose(found[1], bias, atol=1e-4)


def test_fit_is_defined_with_fewer_rows_than_columns() -> None:
    weight, bias = fit_linear([(torch.ones(2, 5), torch.full((2, 3), 4.0))])
    assert torch.allclose(torch.ones(2, 5) @ weight.T + bias, torch.full((2, 3), 4.0), atol=1e-3)


def test_projection_starts_at_the_least_error_and_gets_a_gradient_from_every_state(tmp_path: Path) -> None:
    student = load_encoder(str(save_model(tmp_path / "small")))
    teacher = load_encoder(str(save_model(tmp_path / "big", seed=1, **BIG)))
    layers = uniform_map(2, 3)
    attach_projection(student, teacher, layers, [batch()])
    projection = projection_of(student)
    assert projection is not None and projection.weight.shape == (24, 20)
    states = hidden_states(student, batch())
    targets = [hidden_states(teacher, batch())[index] for index in layers.states]
    assert len(states) == len(targets) == 3 and states[0].shape == (16 * 9 - 4, 20)

    def loss() -> torch.Tensor:
        return hidden_loss([projection(state) for state in states], targets)

    best = loss()
    torch.autograd.backward(best)
    slope = projection.weight.grad
    assert slope is not None and float(slope.abs().max()) < 1e-4  # flat: it is the least
    projection.zero_grad()
    torch.autograd.backward(functional.mse_loss(projection(states[0]), targets[0] + 1))
    assert projection.weight.grad is not None and float(projection.weight.grad.abs().sum()) > 0
    with torch.no_grad():
        projection.weight.mul_(1.1)
    assert loss() > best
    drop_projection(student)
    assert projection_of(student) is None and not any("projection" in name for name in student.state_dict())


def test_attention_loss_compares_the_means_where_heads_differ() -> None:
    student = [torch.tensor([[[[1.0]], [[3.0]]]])]  # mean 2
    teacher = [torch.tensor([[[[5.0]], [[6.0]], [[7.0]]]])]  # mean 6
    assert float(attention_loss(student, teacher)) == 16.0


def run(files: Files, output: Path, **values: Any) -> TrainConfig:
    defaults: dict[str, Any] = {"method": "kdlsq", "batch_size": 16, "lr": 2e-3, "threads": 1, "dropout": 0.0}
    return TrainConfig(
        train_file=files[0], eval_file=files[1], output=output, **{**defaults, "logging_steps": 2, **values}
    )


@pytest.fixture
def pair(tmp_path: Path) -> dict[str, str]:
    """A float start, and a teacher that is deeper and wider."""
    return {
        "model": str(save_model(tmp_path / "small")),
        "teacher": str(save_model(tmp_path / "big", seed=1, **BIG)),
    }


def test_quantised_student_learns_from_a_deeper_and_wider_teacher_and_exports(
    reviews: Files, tmp_path: Path, pair: dict[str, str]
) -> None:
    shallow = str(save_model(tmp_path / "shallow", num_hidden_layers=1))
    train(run(reviews, tmp_path / "student", epochs=2, **{**pair, "model": shallow}))
    values = json.loads((tmp_path / "student" / "qexport_train.json").read_text())
    terms = [line for line in values["history"] if "loss_hidden" in line]
    assert terms[-1]["loss_hidden"] < terms[0]["loss_hidden"]
    assert terms[-1]["loss_attention"] < terms[0]["loss_attention"]
    names = load_file(tmp_path / "student" / "model.safetensors").keys()
    assert not any("projection" in name for name in names)
    exported = to_onnx(ExportConfig(model=tmp_path / "student", output=tmp_path / "onnx"))
    assert exported.parity is not None and exported.parity.agreement == 1
    assert exported.parity.max_abs_difference < 2e-6


def test_training_with_a_projection_resumes_to_the_same_end(
    reviews: Files, tmp_path: Path, pair: dict[str, str]
) -> None:
    values = {**pair, "method": "ternarybert", "max_steps": 6, "eval_steps": 2}
    train(run(reviews, tmp_path / "whole", **values))

    with pytest.raises(Interrupted):
        train(run(reviews, tmp_path / "cut", **values), say=StopAt("step 2/6"))
    kept = sorted((tmp_path / "cut" / "checkpoints").glob("checkpoint-*/model.safetensors"))
    assert "qexport_projection.weight" in load_file(kept[0])
    train(run(reviews, tmp_path / "cut", **values, resume=True))
    whole, cut = (load_file(tmp_path / folder / "model.safetensors") for folder in ("whole", "cut"))
    assert whole.keys() == cut.keys() and all(torch.equal(whole[key], cut[key]) for key in whole)


def test_deeper_student_is_refused_unless_only_logits_are_distilled(
    reviews: Files, tmp_path: Path, pair: dict[str, str]
) -> None:
    turned = {"model": pair["teacher"], "teacher": pair["model"], "method": "ternarybert", "max_steps": 1}
    with pytest.raises(UsageError, match=r"student of 3 layers .* --hidden-weight 0 --attention-weight 0"):
        train(run(reviews, tmp_path / "x", **turned))
    train(run(reviews, tmp_path / "y", **turned, hidden_weight=0.0, attention_weight=0.0))


def test_teacher_of_another_vocabulary_is_refused(
    reviews: Files, tmp_path: Path, pair: dict[str, str]
) -> None:
    other = save_model(tmp_path / "other", vocab_size=44)
    with pytest.raises(UsageError, match="same tokens, their vocabularies have 40 and 44"):
        train(run(reviews, tmp_path / "x", **{**pair, "teacher": str(other)}))
