"""Quantisers against hand-computed vectors, brute force and their stated gradients."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from qexport.formats import max_code
from qexport.training.quantizers import (
    ActivationQuantizer,
    loss_aware_ternary,
    minmax,
    ternary_weight_network,
)
from qexport.training.quantizers.lat import loss_aware_ternary_exact

Solver = Callable[[torch.Tensor, str, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]

W = torch.tensor([[0.9, -0.05, 0.4, -0.7], [0.02, -0.3, 0.55, -0.1]])
PATTERN = [[1, 0, 1, -1], [0, -1, 1, 0]]
D = torch.tensor([[1, 2, 1, 0.5], [3, 1, 0.5, 1]])


def test_twn_gives_the_known_pattern_and_scale_per_matrix() -> None:
    codes, scale = ternary_weight_network(W, "matrix")
    assert codes.tolist() == PATTERN
    assert scale.tolist() == pytest.approx([0.57])


def test_twn_gives_the_known_scales_per_row() -> None:
    codes, scale = ternary_weight_network(W, "row")
    assert codes.tolist() == PATTERN
    assert scale.tolist() == pytest.approx([2 / 3, 0.425])


def test_twn_of_a_zero_row_is_zero_and_finite() -> None:
    codes, scale = ternary_weight_network(torch.zeros(2, 5), "row")
    assert codes.abs().sum() == 0
    assert scale.tolist() == [0, 0]


@pytest.mark.parametrize("solver", [loss_aware_ternary, loss_aware_ternary_exact])
def test_lat_reaches_the_known_optimum(solver: Solver) -> None:
    codes, scale = solver(W, "matrix", D)
    assert codes.tolist() == PATTERN
    assert scale.tolist() == pytest.approx([0.55625])
    assert float((D * (scale * codes - W) ** 2).sum()) == pytest.approx(0.234794, abs=1e-6)
    twn, alpha = ternary_weight_network(W, "matrix")
    assert float((D * (alpha * twn - W) ** 2).sum()) == pytest.approx(0.23555, abs=1e-5)


def test_lat_alternating_comes_close_to_exact_at_layer_size() -> None:
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(256, 256, generator=generator) * 0.02
    d = torch.randn(256, 256, generator=generator).exp()

    def objective(codes: torch.Tensor, scale: torch.Tensor) -> float:
        return float((d * (codes * scale - w) ** 2).sum())

    exact = objective(*loss_aware_ternary_exact(w, "matrix", d))
    assert objective(*loss_aware_ternary(w, "matrix", d)) <= exact * 1.0001
    assert objective(*ternary_weight_network(w, "matrix")) > exact * 1.001


def test_lat_without_curvature_is_the_best_flat_ternarisation() -> None:
    flat = loss_aware_ternary_exact(W, "row", torch.zeros_like(W))
    ones = loss_aware_ternary_exact(W, "row", torch.ones_like(W))
    assert torch.equal(flat[0], ones[0]) and torch.equal(flat[1], ones[1])


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7, 8])
@pytest.mark.parametrize("granularity", ["row", "matrix"])
def test_minmax_stays_in_range_and_reaches_the_top(bits: int, granularity: str) -> None:
    w = torch.randn(7, 33, generator=torch.Generator().manual_seed(bits))
    codes, scale = minmax(w, granularity, bits)
    assert codes.abs().max() == max_code(bits)
    assert torch.equal(codes, codes.round())
    assert (codes * scale.unsqueeze(-1) - w).abs().max() <= scale.max() / 2 * 1.0001
    assert scale.shape == ((7,) if granularity == "row" else (1,))


def test_activation_matches_the_known_vector_with_clip() -> None:
    x = torch.tensor([-3, -0.6, 0.013, 0.4, 1.2, 2])
    codes, scale = ActivationQuantizer("dynamic-tensor", clip=2.5).codes(x)
    assert codes.tolist() == [-127, -30, 1, 20, 61, 102]
    assert float(scale) == pytest.approx(2.5 / 127)
    values = ActivationQuantizer("dynamic-tensor", clip=2.5)(x)
    assert values.tolist() == pytest.approx(
        [-2.5, -0.590551, 0.019685, 0.393701, 1.200787, 2.007874], abs=1e-6
    )


def test_activation_gradient_is_zero_at_and_outside_the_clip() -> None:
    x = torch.tensor([-3.0, -2.5, 0.3, 2.4, 2.5], requires_grad=True)
    ActivationQuantizer("dynamic-tensor", clip=2.5)(x).sum().backward()
    assert x.grad is not None and x.grad.tolist() == [0, 0, 1, 1, 0]


def test_activation_gradient_passes_everywhere_without_a_clip() -> None:
    x = torch.tensor([-30.0, 0.0, 30.0], requires_grad=True)
    ActivationQuantizer("dynamic-token")(x).sum().backward()
    assert x.grad is not None and x.grad.tolist() == [1, 1, 1]


def test_dynamic_token_scale_does_not_see_other_tokens() -> None:
    x = torch.randn(3, 4, 8, generator=torch.Generator().manual_seed(1))
    y = x.clone()
    y[1] *= 100
    quantizer = ActivationQuantizer("dynamic-token")
    assert torch.equal(quantizer.codes(x)[0][0], quantizer.codes(y)[0][0])
    tensor = ActivationQuantizer("dynamic-tensor")
    assert not torch.equal(tensor.codes(x)[0][0], tensor.codes(y)[0][0])


def test_dynamic_sequence_scale_does_not_see_masked_tokens() -> None:
    x = torch.randn(2, 3, 4, 8, generator=torch.Generator().manual_seed(1))
    mask = torch.ones(2, 1, 1, 4, dtype=torch.bool)
    mask[0, ..., 2:] = False
    y = x.clone()
    y[0, :, 2:] *= 50
    quantizer = ActivationQuantizer("dynamic-sequence")
    (a, s), (b, t) = quantizer.codes(x, mask), quantizer.codes(y, mask)
    assert torch.equal(s, t) and torch.equal(a[0, :, :2], b[0, :, :2])
    assert s.shape == (2, 3, 1, 1) and b.abs().max() <= 127


def test_zeros_quantise_to_zero_and_stay_finite() -> None:
    for mode in ("dynamic-token", "dynamic-tensor", "static"):
        codes, scale = ActivationQuantizer(mode).codes(torch.zeros(2, 3))
        assert torch.isfinite(scale).all() and codes.abs().sum() == 0


def test_static_scale_averages_in_training_and_is_frozen_in_evaluation() -> None:
    quantizer = ActivationQuantizer("static", ema=0.5)
    quantizer(torch.tensor([127.0]))
    assert float(quantizer.scale) == 1.0
    quantizer(torch.tensor([3 * 127.0]))
    assert float(quantizer.scale) == 2.0
    quantizer.eval()
    codes, scale = quantizer.codes(torch.tensor([1000.0, -4.0]))
    assert float(scale) == 2.0 and codes.tolist() == [127, -2]
