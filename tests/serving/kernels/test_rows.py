"""Operators on rows, quantisers, GELU and LayerNorm: equal to bodies and references, bit for bit.

The mean and the deviation of LayerNorm are sums in float64, of any order, rounded to float32. About one row
in 10**8 may come out otherwise; seeds are fixed.
"""

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
def test_powers_are_exact_and_rounded_first(kind: str, functions: ctypes.CDLL) -> None:
    """round(1117 exp(round(t) / 256)); test_attention.py looks at every whole t on every instruction set."""
    t = -np.concatenate([floats_between(1e-10, 3e38, 100_000), np.arange(8192, dtype=np.float32) / 4])
    exact = np.rint(1117 * np.exp(np.rint(t).astype(np.float64) / 256))
    assert np.array_equal(applied(functions, f"{kind}_powers", t), exact)
    edges = np.array([0, -0.0, -np.inf, np.nan], np.float32)
    assert np.array_equal(applied(functions, f"{kind}_powers", edges), [1117, 1117, 0, 0])


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
    assert (np.abs(y) == 1)[np.abs(x) >= 4.05].all()
    assert np.array_equal(y[: half.size], -y[half.size : 2 * half.size])


def exact_gelu(x: Array) -> Array:
    """round(h (1 + erf(h / (128 sqrt 2)))) / 256 with h = round(128 x): what is rounded last in float64."""
    with np.errstate(over="ignore"):
        h = np.rint(x * np.float32(128))
        rounded = np.rint(h * scipy.special.erfc(-h.astype(np.float64) / (128 * math.sqrt(2))))
        return np.asarray(rounded.astype(np.float32) / np.float32(256))


def values(seed: int, shape: tuple[int, ...]) -> Array:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=shape) * rng.choice([0.1, 1.0, 3.0, 30.0], (shape[0], *(1,) * (len(shape) - 1)))
    return np.asarray(x, np.float32)


@pytest.mark.parametrize("width", [1, 7, 20, 64, 100, 3072, 4096, 4097])
def test_gelu_and_its_codes_are_exact(width: int, each: Hooks) -> None:
    for clip in (0.0, 1.5):
        x = values(width, (19, width))
        x[3] = 0
        expected = exact_gelu(x)
        for isa in each.isas:
            y, codes, scale = each.gelu(isa, x, clip)
            assert np.array_equal(y, expected), isa
            (q, s) = OPERATORS["QuantizePerToken"].reference(y, clip=clip)
            assert np.array_equal(codes, q) and np.array_equal(scale, s), isa


def test_gelu_of_every_step_is_exact(each: Hooks) -> None:
    """Every whole h where erf is not yet 1 or -1, and on; the ties between them; floats of any size."""
    half = np.arange(-2 * 128 * 16, 2 * 128 * 16 + 1, dtype=np.float32)[None] / 256
    huge = floats_between(1e-40, 2.6e36, 100_000)[None]  # from 2.66e36 on 128 x is infinite
    for x in (half, huge, -huge, np.array([[0, -0.0, 2.0**14 + 1 / 256, 2.0**15 + 1 / 128]], np.float32)):
        expected = exact_gelu(x)
        for isa in each.isas:
            assert np.array_equal(each.gelu(isa, x)[0], expected), isa


def test_gelu_of_values_whose_steps_overflow(each: Hooks) -> None:
    """128 x is infinite: so is y, or NaN on the negative side, with code 128 and no part in the scale."""
    x = np.array([[3e38, 1.0], [np.inf, 1.0], [-3e38, 1.0], [-np.inf, 1.0], [np.nan, 1.0]], np.float32)
    for isa in each.isas:
        y, codes, scale = each.gelu(isa, x)
        assert np.array_equal(y[:, 0], [np.inf, np.inf, np.nan, np.nan, np.nan], equal_nan=True), isa
        assert (codes[:2] == 128).all() and np.isinf(scale[:2]).all(), isa
        assert (codes[2:] == [128, 255]).all() and np.isfinite(scale[2:]).all(), isa


def check_row_operator(
    operator: str,
    inputs: dict[str, Array],
    attributes: dict[str, Any],
    optimize: bool,
    hooks: Hooks,
    library: Path,
) -> None:
    """Body, reference and kernels give the same bits; `inputs` may hold more than the operator reads."""
    kind = OPERATORS[operator]
    arrays = {name: inputs[name] for name in kind.inputs}
    stored = [name for name in ("gamma", "beta", "scale") if name in arrays]
    model = one_node(operator, arrays, attributes, stored)
    expected = dict(zip(kind.outputs, kind.reference(*arrays.values(), **attributes), strict=True))
    assert same(run(model, arrays, None, optimize=optimize), expected), operator
    for isa in hooks.isas:
        hooks.set_isa(isa)
        for threads in (1, 2, 3):
            kernel = run(model, arrays, library, optimize=optimize, threads=threads)
            assert same(kernel, expected), (isa, operator)


@pytest.mark.parametrize("optimize", [False, True])
def test_gelu_equals_its_body_and_reference(optimize: bool, hooks: Hooks, library: Path) -> None:
    x = np.random.default_rng(5).normal(size=(8, 9, 300)).astype(np.float32) * 2
    inputs = {"x": x, "scale": np.array(0.02, np.float32)}
    forms: list[tuple[str, dict[str, Any]]] = [
        ("Gelu", {}),
        ("GeluQuantizePerToken", {"clip": 0.0}),
        ("GeluQuantizePerToken", {"clip": 1.5}),
        ("GeluQuantizeLinear", {}),
    ]
    for operator, attributes in forms:
        check_row_operator(operator, inputs, attributes, optimize, hooks, library)


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
def test_layer_norm_and_its_codes_are_exact(width: int, shift: float, each: Hooks) -> None:
    for clip, epsilon in ((0.0, 1e-12), (1.5, 1e-5)):
        inputs = norm_inputs(width, (19, width), (19, width), shift)
        arrays = [inputs[name] for name in ("x", "residual", "gamma", "beta")]
        kind = OPERATORS["AddLayerNormQuantizePerToken"]
        expected, _, _ = kind.reference(*arrays, epsilon=epsilon, clip=clip)
        for isa in each.isas:
            found, codes, scale = each.add_layer_norm(isa, *arrays, epsilon=epsilon, clip=clip)
            assert np.array_equal(found, expected), isa
            (q, s) = OPERATORS["QuantizePerToken"].reference(found, clip=clip)
            assert np.array_equal(codes, q) and np.array_equal(scale, s), isa


@pytest.mark.parametrize("optimize", [False, True])
@pytest.mark.parametrize("residual", [(2, 9, 96), (1, 9, 96), (9, 96), (1, 1, 96), (96,)])
def test_layer_norm_equals_its_body_and_reference(
    residual: tuple[int, ...], optimize: bool, hooks: Hooks, library: Path
) -> None:
    inputs = {**norm_inputs(1, (2, 9, 96), residual, 0.3), "scale": np.array(0.02, np.float32)}
    forms: list[tuple[str, dict[str, Any]]] = [
        ("LayerNorm", {"epsilon": 1e-12}),
        ("AddLayerNormQuantizePerToken", {"epsilon": 1e-12, "clip": 0.0}),
        ("AddLayerNormQuantizePerToken", {"epsilon": 1e-5, "clip": 1.5}),
        ("AddLayerNormQuantizeLinear", {"epsilon": 1e-12}),
    ]
    for operator, attributes in forms:
        check_row_operator(operator, inputs, attributes, optimize, hooks, library)


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
