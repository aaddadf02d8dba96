"""Operators on rows: quantisers, equal to their bodies; GELU and LayerNorm with codes, within bounds."""

from __future__ import annotations

import ctypes
import math
from pathlib import Path
from typing import Any

import kernel_build
import numpy as np
import pytest
import scipy.special
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kernel_hooks import Hooks
from kernel_models import one_node, run, same

from qexport.graphs.operators import OPERATORS, SMALLEST_SCALE

Array = np.ndarray
U = 2.0**-24
"""Largest relative error of a rounding in float32."""

quick = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def codes_of(y: Array, scale: Array) -> Array:
    """round_half_even(y / scale) as uint8 codes; 128 for NaN. y and scale float32."""
    with np.errstate(all="ignore"):
        steps = np.clip(np.rint(y / scale), -127, 127)
    return np.asarray(np.where(np.isnan(steps), 0, steps) + 128, np.uint8)


@st.composite
def rows(draw: st.DrawFn, *, ranks: tuple[int, ...] = (1, 2, 3)) -> Array:
    """float32 [..., K], finite: any size, ties between codes, zeros, denormals."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    rank = draw(st.sampled_from(ranks))
    width = draw(st.one_of(st.integers(1, 80), st.sampled_from([127, 128, 129, 768, 1000])))
    shape = (*(draw(st.integers(1, 9)) for _ in range(rank - 1)), width)[:rank]
    x = rng.normal(size=shape) * draw(st.sampled_from([1.0, 1e-38, 1e-30, 1e-3, 1e4, 1e38]))
    kind = draw(st.sampled_from(["any", "ties", "zeros"]))
    if kind == "ties" and rank:
        x = (rng.integers(-254, 255, shape) / 2) * draw(st.sampled_from([1.0, 0.25, 2.0**-100]))
    if kind == "zeros":
        x = np.where(rng.random(shape) < 0.5, 0, x)
    return np.asarray(np.clip(x, -3e38, 3e38), np.float32)


clips = st.sampled_from([0.0, 2.5, 1e-3, 1e30, -1.0])


def check_all_isas(hooks: Hooks, library: Path, operator: str, x: Array, clip: float) -> None:
    inputs = {"x": x}
    model = one_node(operator, inputs, {"clip": clip})
    with np.errstate(all="ignore"):
        body = run(model, inputs, None)
    for isa in hooks.isas:
        hooks.set_isa(isa)
        assert same(run(model, inputs, library, threads=2), body), isa


@quick
@given(x=rows(), clip=clips)
def test_quantize_per_token_equals_the_body(x: Array, clip: float, hooks: Hooks, library: Path) -> None:
    check_all_isas(hooks, library, "QuantizePerToken", x, clip)


@quick
@given(x=rows(ranks=(0, 1, 2, 3)), clip=clips)
def test_quantize_per_tensor_equals_the_body(x: Array, clip: float, hooks: Hooks, library: Path) -> None:
    check_all_isas(hooks, library, "QuantizePerTensor", x, clip)


def test_quantisers_of_infinite_values_and_nan(hooks: Hooks, library: Path) -> None:
    """NaN: code 128, no part in the scale. Infinite: an infinite scale and codes of 128, or the clip's."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(6, 37)).astype(np.float32)
    x[1, 5], x[2, 7], x[3, :], x[4, 9], x[4, 20] = np.nan, -np.inf, np.nan, np.inf, np.nan
    without = np.where(np.isnan(x), 0, x)
    for clip in (0.0, 1.5):
        largest = np.abs(without).max(axis=1, keepdims=True)
        if clip:
            largest = np.minimum(largest, np.float32(clip))
        scale = np.maximum(largest / np.float32(127), SMALLEST_SCALE)
        codes = codes_of(np.where(np.isnan(x), 0, x), scale)
        assert clip or (codes[2] == 128).all()
        assert not clip or (codes[2, 7], codes[4, 9]) == (1, 255)
        for isa in hooks.isas:
            hooks.set_isa(isa)
            y = run(one_node("QuantizePerToken", {"x": x}, {"clip": clip}), {"x": x}, library)
            assert np.array_equal(y["scale"], scale) and np.array_equal(y["q"], codes), isa
            finite = {"x": np.ascontiguousarray(x[:2])}
            y = run(one_node("QuantizePerTensor", finite, {"clip": clip}), finite, library)
            assert y["scale"] == scale[:2].max()
            assert np.array_equal(y["q"], codes_of(without[:2], scale[:2].max())), isa


def test_rows_of_no_values_have_the_smallest_scale(hooks: Hooks, library: Path) -> None:
    x = np.zeros((4, 0), np.float32)
    y = run(one_node("QuantizePerToken", {"x": x}, {"clip": 0.0}), {"x": x}, library)
    assert y["q"].shape == (4, 0) and np.array_equal(y["scale"], np.full((4, 1), SMALLEST_SCALE))
    x = np.zeros((0, 4), np.float32)
    y = run(one_node("QuantizePerToken", {"x": x}, {"clip": 0.0}), {"x": x}, library)
    assert y["q"].shape == (0, 4) and y["scale"].shape == (0, 1)


@pytest.fixture(scope="module")
def functions() -> ctypes.CDLL:
    return ctypes.CDLL(str(kernel_build.vector_functions()))


def applied(functions: ctypes.CDLL, name: str, x: Array) -> Array:
    y = np.empty_like(x)
    pointers = (array.ctypes.data_as(ctypes.c_void_p) for array in (x, y))
    getattr(functions, name)(*pointers, ctypes.c_int64(x.size))
    return y


def floats_between(low: float, high: float, count: int) -> Array:
    """About `count` floats from low to high, evenly over their representations; 0 < low < high."""
    ends = np.array([low, high], np.float32).view(np.int32)
    return np.arange(ends[0], ends[1] + 1, max(1, (ends[1] - ends[0]) // count), np.int32).view(np.float32)


@pytest.mark.parametrize("kind", ["plain", "fused"])
def test_exp_is_within_two_ulp(kind: str, functions: ctypes.CDLL) -> None:
    x = -np.concatenate(
        [floats_between(1e-10, 87.0, 1_000_000), np.linspace(0, 87, 500_001, dtype=np.float32)]
    )
    y = applied(functions, f"{kind}_exp", x)
    exact = np.exp(x.astype(np.float64))
    ulp = np.spacing(exact.astype(np.float32)).astype(np.float64)
    assert (np.abs(y - exact) / ulp).max() <= 2
    edges = np.array([0, -0.0, -87.1, -1e4, -3e38, -np.inf], np.float32)
    assert np.array_equal(applied(functions, f"{kind}_exp", edges), [1, 1, 0, 0, 0, 0])


@pytest.mark.parametrize("kind", ["plain", "fused"])
def test_erf_is_within_its_bound(kind: str, functions: ctypes.CDLL) -> None:
    half = np.concatenate(
        [floats_between(1e-30, 1e30, 1_000_000), np.linspace(0, 6, 500_001, dtype=np.float32)]
    )
    x = np.concatenate([half, -half, np.array([np.inf, -np.inf], np.float32)])
    y = applied(functions, f"{kind}_erf", x)
    exact = scipy.special.erf(x.astype(np.float64))
    assert np.abs(y - exact).max() <= 5e-7
    assert np.abs(y).max() <= 1
    assert np.array_equal(y[: half.size], -y[half.size : 2 * half.size])


def exact_gelu(x: Array) -> Array:
    return np.asarray(0.5 * x * scipy.special.erfc(-x.astype(np.float64) / math.sqrt(2)))


GELU = 2.0**-21
"""Times |x|: how far the kernel may be from GELU.

erf: 5e-7, and its argument has 1.5 roundings, which move it by at most 0.49 * 1.5 * U; erf + 1 is below 2 and
rounded once; y is rounded once more. Half the sum: (5e-7 + 0.74 U + 2 U + 2 U) / 2 = 4e-7 < 2**-21.
"""


def values(seed: int, shape: tuple[int, ...]) -> Array:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=shape) * rng.choice([0.1, 1.0, 3.0, 30.0], (shape[0], *(1,) * (len(shape) - 1)))
    return np.asarray(x, np.float32)


@pytest.mark.parametrize("width", [1, 7, 20, 64, 100, 3072, 4096, 4097])
def test_gelu_is_within_its_bound_and_its_codes_are_exact(width: int, each: Hooks) -> None:
    for clip in (0.0, 1.5):
        x = values(width, (19, width))
        x[3] = 0
        for isa in each.isas:
            y, codes, scale = each.gelu(isa, x, clip)
            assert (np.abs(y - exact_gelu(x)) <= GELU * np.abs(x)).all(), isa
            (q, s) = OPERATORS["QuantizePerToken"].reference(y, clip=clip)
            assert np.array_equal(codes, q) and np.array_equal(scale, s), isa


def check_codes(q: Array, body: Array, steps: Array, distance: Array) -> None:
    """Codes of two computations of the same value: neighbours where it lies nearly between two codes.

    Args:
        steps: value / scale, exactly.
        distance: how far each computation may be from it.
    """
    assert (np.abs(q.astype(int) - body) <= 1).all()
    between = np.abs(steps - np.floor(steps) - 0.5)
    assert (between <= distance)[q != body].all()
    inside = np.abs(steps) < 127
    assert np.array_equal(q[~inside & (between > distance)], body[~inside & (between > distance)])


@pytest.mark.parametrize("optimize", [False, True])
@pytest.mark.parametrize("clip", [0.0, 1.5])
def test_gelu_and_its_body_have_the_same_codes_but_for_ties(
    clip: float, optimize: bool, hooks: Hooks, library: Path
) -> None:
    """Each side is within 2**-21 |x| of GELU, so scales differ by 2**-20 max |x| / 127 and roundings."""
    x = np.random.default_rng(5).normal(size=(8, 9, 300)).astype(np.float32) * 2
    inputs = {"x": x, "scale": np.array(0.02, np.float32)}
    per_token = one_node("GeluQuantizePerToken", {"x": x}, {"clip": clip})
    linear = one_node("GeluQuantizeLinear", inputs, {}, ("scale",))
    largest = np.abs(x).max(axis=-1, keepdims=True).astype(np.float64)
    y = exact_gelu(x)
    for isa in hooks.isas:
        hooks.set_isa(isa)
        body = run(per_token, inputs, None, optimize=optimize)
        kernel = run(per_token, inputs, library, optimize=optimize, threads=2)
        assert (np.abs(kernel["scale"] - body["scale"]) <= 2.0**-20 * largest / 127 + U * body["scale"]).all()
        scale = np.abs(y).max(axis=-1, keepdims=True) / 127
        if clip:
            scale = np.minimum(scale, clip / 127)
        check_codes(kernel["q"], body["q"], y / scale, 2.0**-20 * largest / scale + 127 * 4 * U)
        body = run(linear, inputs, None, optimize=optimize)
        kernel = run(linear, inputs, library, optimize=optimize, threads=2)
        check_codes(kernel["q"], body["q"], y / 0.02, 2.0**-21 * largest / 0.02 + 127 * 2 * U)


def exact_norm(inputs: dict[str, Array], epsilon: float) -> tuple[Array, Array]:
    """LayerNorm in float64 of the float32 sum x + residual, and the bound of the kernel's error.

    u = 2**-24, n values, sums in 4 lanes or more: a sum of n is within c = (n / 4 + 8) u of the sum of
    magnitudes. The mean moves by d = c mean |z|; the variance by d**2 and by c of itself; its root, the
    division and three products round. With s = sqrt(var + epsilon):
    |gamma| (d / s + |z'| (c / 2 + (d / s)**2 / 2 + 6 u)) + 2 u |y|, z' the normalised value.
    """
    z = (inputs["x"] + inputs["residual"]).astype(np.float64)
    mean = z.mean(axis=-1, keepdims=True)
    root = np.sqrt(((z - mean) ** 2).mean(axis=-1, keepdims=True) + epsilon)
    normal = (z - mean) / root
    y = normal * inputs["gamma"] + inputs["beta"]
    c = (z.shape[-1] / 4 + 8) * U
    moved = c * np.abs(z).mean(axis=-1, keepdims=True) / root
    gamma = np.abs(inputs["gamma"]).astype(np.float64)
    bound = gamma * (moved + np.abs(normal) * (c / 2 + moved**2 / 2 + 6 * U)) + 2 * U * np.abs(y)
    return y, bound


def norm_inputs(
    seed: int, shape: tuple[int, ...], residual: tuple[int, ...], shift: float
) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    return {
        "x": (rng.normal(size=shape) * 3 + shift).astype(np.float32),
        "residual": rng.normal(size=residual).astype(np.float32),
        "gamma": rng.normal(size=shape[-1]).astype(np.float32),
        "beta": rng.normal(size=shape[-1]).astype(np.float32),
    }


@pytest.mark.parametrize("shift", [0.0, 50.0])
@pytest.mark.parametrize("width", [1, 2, 7, 20, 33, 64, 312, 768, 1024, 4099])
def test_layer_norm_is_within_its_bound_and_its_codes_are_exact(
    width: int, shift: float, each: Hooks
) -> None:
    for clip, epsilon in ((0.0, 1e-12), (1.5, 1e-5)):
        inputs = norm_inputs(width, (19, width), (19, width), shift)
        y, bound = exact_norm(inputs, epsilon)
        for isa in each.isas:
            arrays = (inputs[name] for name in ("x", "residual", "gamma", "beta"))
            found, codes, scale = each.add_layer_norm(isa, *arrays, epsilon=epsilon, clip=clip)
            assert (np.abs(found - y) <= bound).all(), (isa, (np.abs(found - y) / bound).max())
            (q, s) = OPERATORS["QuantizePerToken"].reference(found, clip=clip)
            assert np.array_equal(codes, q) and np.array_equal(scale, s), isa


@pytest.mark.parametrize("optimize", [False, True])
@pytest.mark.parametrize("residual", [(2, 9, 96), (1, 9, 96), (9, 96), (1, 1, 96), (96,)])
def test_layer_norm_and_its_body_agree(
    residual: tuple[int, ...], optimize: bool, hooks: Hooks, library: Path
) -> None:
    """y within 2**-20 of the largest |y| (both are within 2**-21 for such values); codes but for ties."""
    inputs = norm_inputs(1, (2, 9, 96), residual, 0.3)
    stored = ("gamma", "beta", "scale")
    forms: list[tuple[str, dict[str, Array], dict[str, Any]]] = [
        ("AddLayerNormQuantizePerToken", inputs, {"epsilon": 1e-12, "clip": 0.0}),
        ("AddLayerNormQuantizePerToken", inputs, {"epsilon": 1e-5, "clip": 1.5}),
        ("AddLayerNormQuantizeLinear", {**inputs, "scale": np.array(0.02, np.float32)}, {"epsilon": 1e-12}),
    ]
    for operator, arrays, attributes in forms:
        model = one_node(operator, arrays, attributes, [name for name in stored if name in arrays])
        body = run(model, arrays, None, optimize=optimize)
        y, _ = exact_norm(inputs, attributes["epsilon"])
        near = 2.0**-20 * np.abs(y).max(axis=-1, keepdims=True)
        for isa in hooks.isas:
            hooks.set_isa(isa)
            for threads in (1, 2, 3):
                kernel = run(model, arrays, library, optimize=optimize, threads=threads)
                assert (np.abs(kernel["y"] - body["y"]) <= near).all(), (isa, operator)
                scale = kernel.get("scale", np.array(0.02, np.float32))
                assert np.array_equal(kernel["q"], codes_of(kernel["y"], scale)), (isa, operator)
                if "scale" in body:
                    assert (np.abs(kernel["scale"] - body["scale"]) <= near / 127).all()
                check_codes(kernel["q"], body["q"], y / scale, 2 * near / scale + 127 * 4 * U)


def test_layer_norm_refuses_a_residual_of_another_shape(library: Path) -> None:
    good = norm_inputs(1, (2, 9, 8), (2, 9, 8), 0.0)
    for shape in ((2, 1, 8), (3, 9, 8), (2, 9, 1), (8, 8)):
        inputs = {**good, "residual": np.zeros(shape, np.float32)}
        model = one_node("AddLayerNormQuantizePerToken", inputs, {"epsilon": 1e-12, "clip": 0.0})
        with pytest.raises(Exception, match=r"the_node.*residual"):
            run(model, inputs, library)


def test_threads_do_not_change_gelu(hooks: Hooks, library: Path) -> None:
    x = values(3, (101, 4100))
    model = one_node("GeluQuantizePerToken", {"x": x}, {"clip": 0.0})
    one = run(model, {"x": x}, library)
    assert all(same(run(model, {"x": x}, library, threads=threads), one) for threads in (2, 3))
