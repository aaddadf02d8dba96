"""Ranking, reordering and cutting of heads and neurons."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tiny_models import tiny_model
from torch import nn

from qexport.errors import UnsupportedModelError
from qexport.training.attention import ATTENTION_NAME
from qexport.training.kinds import get_kind
from qexport.training.width import Importance, cut_width, layer_sizes, reorder, unit_importance

FAMILIES = ("bert", "roberta", "distilbert", "electra")


def model_of(family: str) -> Any:
    """A tiny encoder with random biases, in evaluation mode."""
    model = (
        tiny_model(family, num_attention_heads=4) if family != "distilbert" else tiny_model(family, n_heads=4)
    )
    generator = torch.Generator().manual_seed(3)
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    model.set_attn_implementation(ATTENTION_NAME)
    model.train(False)
    return model


def batch(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(4, 40, (6, 9), generator=generator)
    mask = torch.ones_like(ids)
    mask[0, 5:] = 0
    labels = torch.randint(0, 2, (6,), generator=generator)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def features(seed: int = 0) -> dict[str, torch.Tensor]:
    return {name: value for name, value in batch(seed).items() if name != "labels"}


def random_importance(model: nn.Module, layers: int = 2) -> list[Importance]:
    generator = torch.Generator().manual_seed(5)
    heads, neurons = layer_sizes(model)
    return [
        Importance(torch.rand(heads, generator=generator), torch.rand(neurons, generator=generator))
        for _ in range(layers)
    ]


@pytest.mark.parametrize("family", FAMILIES)
def test_reordered_model_computes_the_same(family: str) -> None:
    model = model_of(family)
    with torch.no_grad():
        before = model(**features()).logits
        reorder(model, random_importance(model))
        after = model(**features()).logits
    torch.testing.assert_close(after, before, atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_cut_model_equals_the_one_whose_last_units_are_silenced(family: str) -> None:
    """Zero columns of what reads a unit remove it; cutting must give the same logits."""
    model = model_of(family)
    cut = copy.deepcopy(model)
    cut_width(cut, heads=2, neurons=22)
    assert layer_sizes(cut) == (2, 22) and layer_sizes(model) == (4, 44)
    distil = family == "distilbert"
    for name, module in model.named_modules():
        if name.endswith(("out_lin", "attention.output.dense")):
            module.weight.data[:, 10:] = 0
        elif name.endswith("lin2") or (name.endswith("output.dense") and not distil):
            module.weight.data[:, 22:] = 0
    with torch.no_grad():
        torch.testing.assert_close(cut(**features()).logits, model(**features()).logits, atol=1e-5, rtol=0)
    cut_width(cut, heads=2, neurons=22)  # a second cut changes nothing
    assert layer_sizes(cut) == (2, 22)


def test_cut_to_more_than_there_is_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="asks for 8 heads and 22 neurons"):
        cut_width(model_of("bert"), heads=8, neurons=22)


@pytest.mark.parametrize("regression", [False, True])
def test_importance_is_the_derivative_by_a_mask(regression: bool) -> None:
    """Finite differences: scale what reads a unit by 1 + e and see how the loss moves."""
    model = model_of("bert").double()
    sample = batch(1)
    if regression:
        model.classifier = nn.Linear(20, 1, dtype=torch.float64)
        sample["labels"] = torch.linspace(-1, 1, 6, dtype=torch.float64)

    def loss() -> float:
        with torch.no_grad():
            logits = model(**features(1)).logits
            if regression:
                value = (logits.squeeze(-1) - sample["labels"]).square().mean()
            else:
                value = nn.functional.cross_entropy(logits, sample["labels"])
            return float(value)

    found = unit_importance(model, [sample], kind=get_kind("regression" if regression else "classification"))
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    output = model.get_submodule("bert.encoder.layer.1.attention.output.dense").weight
    down = model.get_submodule("bert.encoder.layer.0.output.dense").weight
    up = model.get_submodule("bert.encoder.layer.0.intermediate.dense")

    def slope(*parts: torch.Tensor) -> float:
        values, moved = [], 1e-2  # the softmax is float32, smaller steps drown
        for sign in (1, -1):
            for part in parts:
                part.data *= 1 + sign * moved
            values.append(loss())
            for part in parts:
                part.data /= 1 + sign * moved
        return abs(values[0] - values[1]) / (2 * moved)

    for head in range(4):
        expected = slope(output[:, head * 5 : head * 5 + 5])
        assert float(found[1].heads[head]) == pytest.approx(expected, rel=1e-2, abs=1e-5)
    for neuron in (0, 13, 43):
        expected = slope(up.weight[neuron], up.bias[neuron : neuron + 1]) + slope(down[:, neuron])
        assert float(found[0].neurons[neuron]) == pytest.approx(expected, rel=1e-2, abs=1e-5)


def test_importance_adds_up_over_batches_and_orders_the_cut() -> None:
    model = model_of("bert")
    one, two = unit_importance(model, [batch(1)]), unit_importance(model, [batch(2)])
    both = unit_importance(model, [batch(1), batch(2)])
    torch.testing.assert_close(both[0].heads, one[0].heads + two[0].heads)
    before = model.get_submodule("bert.encoder.layer.1.intermediate.dense").weight.detach().clone()
    query = model.get_submodule("bert.encoder.layer.0.attention.self.query").weight.detach().clone()
    reorder(model, both)
    ranked = model.get_submodule("bert.encoder.layer.0.attention.self.query").weight
    order = sorted(range(4), key=lambda head: -float(both[0].heads[head]))
    assert order != sorted(order) and torch.equal(ranked.view(4, 5, 20), query.view(4, 5, 20)[order])
    after = model.get_submodule("bert.encoder.layer.1.intermediate.dense").weight
    assert torch.equal(after[0], before[int(both[1].neurons.argmax())])
    assert torch.equal(after[-1], before[int(both[1].neurons.argmin())])
