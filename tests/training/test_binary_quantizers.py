"""Binary weights and the ternary split: the vectors worked out by hand, and their defining properties."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qexport.training.quantizers import binary_weight_network, split_ternary, ternary_weight_network

W = torch.tensor([[0.9, -0.05, 0.4, -0.7], [0.02, -0.3, 0.55, -0.1]])


def value(weight: torch.Tensor, granularity: str) -> torch.Tensor:
    codes, scale = binary_weight_network(weight, granularity)
    return codes * scale.unsqueeze(-1)


def test_binary_scales_are_the_known_means() -> None:
    codes, scale = binary_weight_network(W, "matrix")
    assert codes.tolist() == [[1, -1, 1, -1], [1, -1, 1, -1]]
    assert scale.tolist() == pytest.approx([0.3775])
    assert binary_weight_network(W, "row")[1].tolist() == pytest.approx([0.5125, 0.2425])


def test_binary_code_of_zero_is_plus_one() -> None:
    codes, scale = binary_weight_network(torch.tensor([[0.0, -0.0, -1.0]]), "row")
    assert codes.tolist() == [[1, 1, -1]]
    assert scale.tolist() == pytest.approx([1 / 3])


def test_split_per_matrix_gives_the_known_halves() -> None:
    first, second = split_ternary(W, "matrix")
    np.testing.assert_allclose(
        first,
        [[0.470526, 0.256667, 0.209123, -0.365965], [0.276667, -0.156842, 0.287544, 0.256667]],
        atol=1e-6,
    )
    np.testing.assert_allclose(
        second,
        [[0.429474, -0.306667, 0.190877, -0.334035], [-0.256667, -0.143158, 0.262456, -0.356667]],
        atol=1e-6,
    )
    for half in (first, second):
        assert binary_weight_network(half, "matrix")[1].tolist() == pytest.approx([0.285])


def test_split_per_row_gives_the_known_coefficients() -> None:
    first, second = split_ternary(W, "row")
    ratio = first / W
    assert ratio[0, 0].item() == pytest.approx(0.5125, abs=1e-6) and ratio[1, 2].item() == pytest.approx(
        0.547059, abs=1e-6
    )
    assert first[0, 1].item() == pytest.approx(
        0.308333, abs=1e-6
    )  # b of the first row, its only zero is negative
    assert second[1, 0].item() == pytest.approx(-0.1825, abs=1e-6)  # -b of the second row, at a positive zero
    for half in (first, second):
        assert binary_weight_network(half, "row")[1].tolist() == pytest.approx([0.333333, 0.2125], abs=1e-6)


def test_split_with_the_printed_formula_would_miss_the_ternary_value() -> None:
    """The formula as printed swaps J and K in a; the error of the toy example is known."""
    magnitude = W.double().abs()
    codes, _ = ternary_weight_network(W, "matrix")
    kept, positive = codes != 0, (codes == 0) & (W > 0)
    rest = ~kept & ~positive
    a = (magnitude[kept].sum() + magnitude[positive].sum() - magnitude[rest].sum()) / (
        2 * magnitude[kept].sum()
    )
    assert float(a) == pytest.approx(0.477193, abs=1e-6)
    first, second = split_ternary(W, "matrix")
    wrong = [torch.where(kept, part * W, half) for part, half in ((a, first), (1 - a, second))]
    ternary = codes * 0.57
    missed = value(wrong[0].float(), "matrix") + value(wrong[1].float(), "matrix") - ternary
    assert float(missed.abs().max()) == pytest.approx(0.0325, abs=1e-4)
    exact = value(first, "matrix") + value(second, "matrix") - ternary
    assert float(exact.abs().max()) < 1e-6


@pytest.mark.parametrize("granularity", ["row", "matrix"])
@given(st.integers(0, 10_000), st.integers(1, 40))
@settings(max_examples=50, deadline=None)
def test_halves_add_up_to_latent_and_ternary_value(granularity: str, seed: int, width: int) -> None:
    generator = np.random.default_rng(seed)
    weight = torch.tensor(generator.normal(0.01, 0.05, (5, width)), dtype=torch.float32)
    weight[0] = 0.0  # a padding row
    weight[1] = 0.03 * torch.sign(weight[1])  # nothing is set to 0
    first, second = split_ternary(weight, granularity)
    codes, scale = ternary_weight_network(weight, granularity)
    np.testing.assert_allclose(first + second, weight, atol=1e-7)
    # float32 halves: their means round once more
    np.testing.assert_allclose(
        value(first, granularity) + value(second, granularity), codes * scale.unsqueeze(-1), atol=2e-7
    )
