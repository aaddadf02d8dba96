"""Parameters that a loss does not depend on are found, and not trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import save_model, tiny_model, write_reviews

from qexport.training import trainer as module
from qexport.training.config import TrainConfig
from qexport.training.distiller import Distiller
from qexport.training.unused import unused_parameters

IDS = torch.randint(4, 20, (2, 7), generator=torch.Generator().manual_seed(0))


def test_unused_parameters_are_those_without_a_gradient() -> None:
    model = tiny_model("bert", hidden_dropout_prob=0.0)
    found: Any = model(input_ids=IDS, output_hidden_states=True)
    loss = found.hidden_states[1].square().mean()
    names = unused_parameters(model, loss)
    torch.autograd.backward(loss)
    assert names == [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert "classifier.weight" in names and "bert.encoder.layer.1.output.dense.weight" in names
    assert "bert.encoder.layer.0.output.dense.weight" not in names
    assert unused_parameters(model, found.logits.sum()) == []


def test_of_attention_scores_alone_the_last_layer_only_has_its_queries_and_keys() -> None:
    model = tiny_model("bert")
    model.set_attn_implementation("qexport")
    found: Any = model(input_ids=IDS, output_attentions=True)
    names = unused_parameters(model, torch.stack([scores.mean() for scores in found.attentions]).sum())
    last = [name.split("layer.1.")[1] for name in names if "layer.1." in name]
    assert "attention.self.value.weight" in last and "intermediate.dense.weight" in last
    assert not any("query" in name or "key" in name for name in last)
    assert not any("layer.0." in name for name in names)


def test_every_trained_parameter_gets_a_gradient(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several processes wait for the gradient of each, and stop with an error where there is none."""
    found: dict[str, tuple[bool, bool]] = {}
    scales: list[float] = []

    class Watched(Distiller):
        def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
            stored = [buffer for name, buffer in self.student.named_buffers() if name.endswith(".scale")]
            scales.extend(float(scale) for scale in stored)
            loss = super().training_step(*args, **kwargs)
            for name, each in self.student.named_parameters():
                found[name] = (each.requires_grad, each.grad is not None)
            return loss

    monkeypatch.setattr(module, "Distiller", Watched)
    config = TrainConfig(
        method="ternarybert", activations="static", logits_weight=0.0, max_steps=1, threads=1,
        teacher=str(save_model(tmp_path / "teacher")), output=tmp_path / "out",
        train_file=write_reviews(tmp_path / "train.csv", 8, 1),
        eval_file=write_reviews(tmp_path / "eval.csv", 8, 2),
    )  # fmt: skip
    module.train(config)
    assert found["classifier.weight"] == (False, False)
    assert [name for name, (trained, has_one) in found.items() if trained != has_one] == []
    assert scales and set(scales) == {0.0}  # the first batch sets them
