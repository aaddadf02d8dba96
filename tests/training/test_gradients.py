"""The gradient that each quantiser hands on to what is trained."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from qexport.training.quantizers import ActivationQuantizer, straight_through
from qexport.training.quantizers.learned import threshold_rule
from qexport.training.splitting import SplitEmbedding, SplitLinear
from qexport.training.student import QuantEmbedding, QuantLinear

RULES: dict[str, dict[str, Any]] = {
    "twn": {"bits": 2, "weight_quantizer": "twn"},
    "lat": {"bits": 2, "weight_quantizer": "lat"},
    "lat-exact": {"bits": 2, "weight_quantizer": "lat", "solver": "exact"},
    "minmax": {"bits": 8, "weight_quantizer": "minmax"},
    "bwn": {"bits": 1, "weight_quantizer": "bwn"},
    "lsq": {"bits": 4, "weight_quantizer": "lsq"},
}


def linear() -> nn.Linear:
    torch.manual_seed(0)
    layer = nn.Linear(12, 5)
    layer.weight.data.mul_(6)  # some lie beyond a clip of 1
    return layer


def quantised(rule: str, granularity: str, **values: Any) -> QuantLinear:
    layer = QuantLinear(linear(), granularity=granularity, **RULES[rule], **values)
    if layer.learns_steps:
        layer.set_threshold(threshold_rule(None))
    return layer.train()


X = torch.randn(7, 12, generator=torch.Generator().manual_seed(1))
UP = torch.randn(7, 5, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("granularity", ["row", "matrix"])
@pytest.mark.parametrize("rule", RULES)
def test_weight_gradient_is_that_of_the_quantised_weight(rule: str, granularity: str) -> None:
    """Straight through, everywhere: dL/dw = dL/dw^ = up.T @ x, whatever the rule."""
    layer = quantised(rule, granularity)
    (layer(X) * UP).sum().backward()
    assert layer.weight.grad is not None and layer.bias.grad is not None
    torch.testing.assert_close(layer.weight.grad, UP.T @ X)
    torch.testing.assert_close(layer.bias.grad, UP.sum(0))


@pytest.mark.parametrize("rule", ["twn", "lat", "minmax"])
def test_weight_gradient_is_zero_at_and_beyond_the_clip(rule: str) -> None:
    layer = quantised(rule, "row", weight_clip=1.0)
    layer.weight.data[0, :2] = torch.tensor([1.0, -1.0])
    (layer(X) * UP).sum().backward()
    inside = layer.weight.detach().abs() < 1
    assert not inside[0, :2].any() and inside.any() and not inside.all()
    assert layer.weight.grad is not None
    torch.testing.assert_close(layer.weight.grad, (UP.T @ X) * inside)


@pytest.mark.parametrize("mode", ["dynamic-token", "dynamic-tensor", "static"])
def test_input_gradient_is_that_of_the_quantised_input(mode: str) -> None:
    layer = quantised("twn", "row", activation=ActivationQuantizer(mode, clip=1.0))
    x = X.clone().requires_grad_()
    (layer(x) * UP).sum().backward()
    codes, scale = layer.weight_codes()
    assert x.grad is not None
    expected = (UP @ (codes.float() * scale.unsqueeze(-1))) * (X.abs() < 1)
    torch.testing.assert_close(x.grad, expected)


@pytest.mark.parametrize("granularity", ["row", "matrix"])
@pytest.mark.parametrize("rule", RULES)
def test_embedding_gradient_reaches_the_rows_that_were_looked_up(rule: str, granularity: str) -> None:
    torch.manual_seed(0)
    table = QuantEmbedding(nn.Embedding(9, 12), granularity=granularity, **RULES[rule]).train()
    if table.learns_steps:
        table.set_threshold(threshold_rule(None))
    ids = torch.tensor([[1, 4, 4]])
    up = torch.randn(1, 3, 12, generator=torch.Generator().manual_seed(3))
    (table(ids) * up).sum().backward()
    expected = torch.zeros(9, 12).index_add_(0, ids[0], up[0])
    assert table.weight.grad is not None
    torch.testing.assert_close(table.weight.grad, expected)


def test_each_half_of_a_split_layer_gets_the_whole_gradient() -> None:
    layer = SplitLinear(linear(), granularity="row", activation=ActivationQuantizer("dynamic-token")).train()
    (layer(X) * UP).sum().backward()
    assert layer.first.activation is not None
    x = layer.first.activation(X)
    for half in (layer.first, layer.second):
        assert half.weight.grad is not None and half.bias.grad is not None
        torch.testing.assert_close(half.weight.grad, UP.T @ x)
        torch.testing.assert_close(half.bias.grad, UP.sum(0))
    table = SplitEmbedding(nn.Embedding(4, 6)).train()
    table(torch.tensor([2])).sum().backward()
    for part in (table.first, table.second):
        assert part.weight.grad is not None and part.weight.grad.sum(1).tolist() == [0, 0, 6, 0]


def test_straight_through_passes_the_value_of_one_and_the_gradient_of_the_other() -> None:
    latent = torch.tensor([-3.0, -1.0, 0.5, 1.0], requires_grad=True)
    out = straight_through(latent, torch.tensor([9.0, 8.0, 7.0, 6.0]), 1.0)
    (out * torch.tensor([1.0, 2.0, 3.0, 4.0])).sum().backward()
    assert out.tolist() == [9, 8, 7, 6] and latent.grad is not None and latent.grad.tolist() == [0, 0, 3, 0]
