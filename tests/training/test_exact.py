"""Softmax, GELU and LayerNorm of a student in evaluation mode: the bits of the operators."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import tiny_model
from torch import nn
from transformers.activations import GELUActivation

from qexport.formats import (
    GELU_INPUT_STEPS,
    GELU_OUTPUT_STEPS,
    LARGEST_POWER,
    LARGEST_VARIANCE,
    ROOT_STEPS,
    SCORE_STEPS,
)
from qexport.graphs.operators import OPERATORS
from qexport.graphs.operators.attention import softmax
from qexport.training.exact import (
    ExactGELU,
    ExactLayerNorm,
    exact_gelu,
    exact_layer_norm,
    exact_softmax,
)
from qexport.training.quant_config import QuantConfig
from qexport.training.student import quantize_model

ROUNDING = 2.0**-24  # of a float32 operation, relative


@given(seed=st.integers(0, 2**32 - 1), spread=st.sampled_from([1e-3, 1.0, 30.0, 1e4]))
def test_pytorch_gives_the_bits_of_the_operators(seed: int, spread: float) -> None:
    rng = np.random.default_rng(seed)
    x = (spread * rng.normal(size=(5, 33))).astype(np.float32)
    gamma, beta = (rng.normal(size=33).astype(np.float32) for _ in range(2))
    values, weight, bias = (torch.from_numpy(array) for array in (x, gamma, beta))
    np.testing.assert_array_equal(exact_softmax(values), softmax(x))
    np.testing.assert_array_equal(exact_gelu(values), OPERATORS["Gelu"].reference(x)[0])
    (expected,) = OPERATORS["LayerNorm"].reference(x, gamma, beta, epsilon=1e-12)
    np.testing.assert_array_equal(exact_layer_norm(values, weight, bias, 1e-12), expected)


def test_no_exponential_is_near_a_tie() -> None:
    scores = np.arange(0, 16 * SCORE_STEPS) / SCORE_STEPS  # e^-16 of the largest is 0 long since
    powers = LARGEST_POWER * np.exp(-scores)
    distance = np.abs(powers - np.floor(powers) - 0.5)
    assert (distance / powers - ROUNDING).min() > 5e-6  # a float32 exp is within 2e-7
    assert LARGEST_POWER % 2 == 1  # 127 e / LARGEST_POWER is never halfway between two codes


def test_no_gelu_is_near_a_tie() -> None:
    h = np.arange(1, 8 * GELU_INPUT_STEPS + 1, dtype=np.float64)
    h = np.concatenate([-h, h])
    erf = np.array([math.erf(value / (GELU_INPUT_STEPS * math.sqrt(2))) for value in h])
    product = h * (1 + erf)  # GELU in steps of the output
    assert GELU_OUTPUT_STEPS == 2 * GELU_INPUT_STEPS
    distance = np.abs(product - np.floor(product) - 0.5)
    steps = ROUNDING * (1 + np.abs(erf)) + ROUNDING * (1 + erf)
    assert (distance / np.abs(h) - steps).min() > 5e-6  # a float32 erf is within 5e-7


def test_no_square_root_is_near_a_tie() -> None:
    whole = np.arange(1, int(ROOT_STEPS * LARGEST_VARIANCE) + 1, dtype=np.float64)
    root = np.sqrt(whole)
    places = np.abs(root - np.floor(root) - 0.5) / np.spacing(root.astype(np.float32))
    assert places.min() > 7.9  # ONNX Runtime 1.16 is up to 3.5 off


def test_softmax_does_not_depend_on_order_or_padding() -> None:
    rng = np.random.default_rng(0)
    scores = torch.from_numpy(rng.normal(0, 4, (50, 200)).astype(np.float32))
    order = torch.from_numpy(rng.permutation(200))
    assert torch.equal(exact_softmax(scores)[:, order], exact_softmax(scores[:, order]))
    padded = torch.cat([scores, torch.full((50, 56), -10000.0)], dim=1)
    assert torch.equal(exact_softmax(padded)[:, :200], exact_softmax(scores))
    assert (exact_softmax(padded)[:, 200:] == 0).all()


def student(bits: str, family: str = "bert") -> nn.Module:
    return quantize_model(tiny_model(family), QuantConfig(method="test", bits=bits))


def test_modules_are_those_of_pytorch_while_training() -> None:
    model = student("2-2-8").train()
    norm = next(module for module in model.modules() if isinstance(module, ExactLayerNorm))
    x = torch.randn(3, 7, norm.normalized_shape[0])
    expected = nn.functional.layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps)
    assert torch.equal(norm(x), expected)
    assert torch.equal(ExactGELU().train()(x), nn.functional.gelu(x))
    norm.eval()
    assert not torch.equal(norm(x), expected)
    deviation = (norm(x) - expected).abs()  # steps of 1 / 64 and of 1 in a row that is stretched to 128
    assert deviation.max() < 3e-4 and deviation.mean() < 5e-5


@pytest.mark.parametrize("family", ["bert", "distilbert", "electra"])
def test_every_layer_norm_and_gelu_of_the_encoder_is_exact(family: str) -> None:
    plain = tiny_model(family)
    names = set(plain.state_dict())
    layers = plain.config.num_hidden_layers
    model = quantize_model(plain, QuantConfig(method="test", bits="2-2-8"))
    kinds = [type(module) for module in model.modules()]
    assert nn.LayerNorm not in kinds
    assert kinds.count(ExactGELU) == layers
    assert kinds.count(GELUActivation) == (family == "electra")  # its head, before a float layer
    assert names <= set(model.state_dict())


def test_float_activations_keep_the_modules_of_pytorch() -> None:
    kinds = [type(module) for module in student("2-2-32").modules()]
    assert ExactLayerNorm not in kinds and ExactGELU not in kinds
