"""Attention: Y of the kernels is that of the body and of the reference, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kernel_hooks import Hooks
from kernel_models import one_node, run, same

from qexport.formats import ACTIVATION_MODES
from qexport.graphs.operators import OPERATORS, attention_name

Array = np.ndarray
FORMS = [(activation, pv) for activation in ACTIVATION_MODES for pv in (True, False)]
forms = pytest.mark.parametrize(("activation", "quantize_pv"), FORMS)


def reference(
    q: Array, k: Array, v: Array, mask: Array, *, activation: str, quantize_pv: bool,
    fixed: tuple[float, ...] = (), clip: float = 0.0, **attributes: Any,
) -> Array:  # fmt: skip
    """Y of the operator's numpy reference, [B, S, C]."""
    if activation != "static":
        attributes["clip"] = clip
    operator = OPERATORS[attention_name(activation, quantize_pv=quantize_pv, bounded="top" in attributes)]
    (y,) = operator.reference(q, k, v, mask, *(np.float32(scale) for scale in fixed), **attributes)
    return np.asarray(y)


def agrees(y: Array, q: Array, k: Array, v: Array, mask: Array, *, quantize_pv: bool, **chosen: Any) -> bool:
    """Whether Y is the reference's, bit for bit.

    Of the QK forms one value may be its neighbour: the order of a sum in float64 shows in one of 10**8.
    """
    exact = reference(q, k, v, mask, quantize_pv=quantize_pv, **chosen)
    if quantize_pv or np.array_equal(y, exact):
        return np.array_equal(y, exact)
    return np.count_nonzero(y != exact) == 1 and np.allclose(y, exact, rtol=2**-23, atol=0)


def arrays(seed: int, batch: int, tokens: int, channels: int, sharpness: float = 1.0) -> list[Array]:
    rng = np.random.default_rng(seed)
    q, k, v = (rng.normal(size=(batch, tokens, channels)).astype(np.float32) for _ in range(3))
    return [q * np.float32(sharpness), k, v]


def masks(kind: str, batch: int, tokens: int, seed: int) -> Array:
    """bool [B, 1, 1, S]; sentence 0 of "padding" is all padding."""
    mask = np.ones((batch, 1, 1, tokens), bool)
    if kind == "suffix":
        mask[..., (tokens + 1) // 2 :] = False
    elif kind == "random":
        mask = np.random.default_rng(seed).random(mask.shape) < 0.6
    elif kind == "padding":
        mask[0] = False
    return mask


def settings_of(
    activation: str, quantize_pv: bool, num_heads: int, width: int, clip: float
) -> dict[str, Any]:
    """Arguments of `exact` and of Hooks.attention."""
    fixed = (0.02, 0.03, 1 / 127, 0.025)[: 4 if quantize_pv else 2]
    return {
        "activation": activation, "quantize_pv": quantize_pv, "num_heads": num_heads, "scaling": width**-0.5,
        "clip": clip, "fixed": fixed if activation == "static" else (),
    }  # fmt: skip


@forms
@settings(
    max_examples=30,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    batch=st.integers(1, 3),
    tokens=st.one_of(st.integers(1, 50), st.sampled_from([1, 16, 24, 25, 48, 64, 65, 97, 130])),
    num_heads=st.integers(1, 3),
    width=st.sampled_from([1, 3, 20, 32, 64, 80]),
    mask=st.sampled_from(["none", "suffix", "random", "padding"]),
    sharpness=st.sampled_from([0.01, 1.0, 20.0]),
    clip=st.sampled_from([0.0, 1.5]),
    seed=st.integers(0, 2**32 - 1),
)
def test_attention_equals_its_reference(
    activation: str, quantize_pv: bool, batch: int, tokens: int, num_heads: int, width: int, mask: str,
    sharpness: float, clip: float, seed: int, each: Hooks,
) -> None:  # fmt: skip
    inputs = arrays(seed, batch, tokens, num_heads * width, sharpness)
    kept = masks(mask, batch, tokens, seed)
    chosen = settings_of(activation, quantize_pv, num_heads, width, clip)
    for isa in each.isas:
        assert agrees(each.attention(isa, *inputs, kept, **chosen), *inputs, kept, **chosen), isa


@pytest.mark.parametrize("site", [0, 1, 2])
@pytest.mark.parametrize("quantize_pv", [True, False])
def test_codes_at_a_tie_are_those_of_the_quotient(site: int, quantize_pv: bool, each: Hooks) -> None:
    """Values that lie between two codes, where a quotient and a product with 1 / scale go apart."""
    chosen = settings_of("static", quantize_pv, 2, 32, 0.0)
    inputs = arrays(site, 2, 33, 64)
    if site == 2 and not quantize_pv:
        return
    step = np.float32(chosen["fixed"][site if site < 2 else 3])
    inputs[site] = (np.round(inputs[site] / step) + np.float32(0.5)) * step
    mask = masks("none", 2, 33, 0)
    for isa in each.isas:
        assert agrees(each.attention(isa, *inputs, mask, **chosen), *inputs, mask, **chosen), isa


def test_every_power_is_exact(each: Hooks) -> None:
    """round(1117 exp(j / 256)) for j = 0..-2400: in sentences of two tokens whose scores are 0 and j.

    With v of 0 and 1 the QK form gives p = E / (1117 + E), another number for every E.
    """
    j = np.arange(2401)
    k = np.zeros((j.size, 2, 2), np.float32)
    k[:, 1] = np.stack([j // 127, j % 127], axis=1)
    q = np.broadcast_to(np.array([-127, -1], np.float32), k.shape).copy()
    v = np.zeros_like(k)
    v[:, 1] = 1
    exact = np.rint(1117 * np.exp(j / -256.0)).astype(np.float32)
    expected = exact / (np.float32(1117) + exact)
    assert np.unique(expected).size == np.unique(exact).size > 600 and exact[-1] == 0
    for isa in each.isas:
        y = each.attention(
            isa, q, k, v, np.ones((j.size, 2), bool), activation="static", quantize_pv=False, num_heads=1,
            scaling=1 / 256, fixed=(1.0, 1.0),
        )  # fmt: skip
        assert np.array_equal(y, np.broadcast_to(expected[:, None, None], y.shape)), isa


@forms
@pytest.mark.parametrize("optimize", [False, True])
def test_attention_equals_its_body(
    activation: str, quantize_pv: bool, optimize: bool, hooks: Hooks, library: Path
) -> None:
    """Whatever the number of threads."""
    stored = ("q_scale", "k_scale", "p_scale", "v_scale")
    for shape, mask in (((2, 33, 3, 20), "suffix"), ((3, 9, 2, 32), "padding"), ((1, 1, 1, 1), "none")):
        batch, tokens, num_heads, width = shape
        chosen = settings_of(activation, quantize_pv, num_heads, width, 1.5)
        values = arrays(tokens, batch, tokens, num_heads * width)
        inputs = dict(zip("qkv", values, strict=True)) | {"mask": masks(mask, batch, tokens, 0)}
        inputs |= {
            name: np.array(value, np.float32) for name, value in zip(stored, chosen["fixed"], strict=False)
        }
        attributes = {"num_heads": num_heads, "scaling": chosen["scaling"]}
        if activation != "static":
            attributes["clip"] = 1.5
        name = attention_name(activation, quantize_pv=quantize_pv)
        model = one_node(name, inputs, attributes, [key for key in stored if key in inputs])
        body = run(model, inputs, None, optimize=optimize)["Y"]
        assert agrees(body, *values, inputs["mask"], **chosen)
        for isa in hooks.isas:
            hooks.set_isa(isa)
            kernel = run(model, inputs, library, optimize=optimize)
            assert agrees(kernel["Y"], *values, inputs["mask"], **chosen), isa
            for threads in (2, 3):
                assert same(run(model, inputs, library, optimize=optimize, threads=threads), kernel), isa


@pytest.mark.parametrize(("top", "p_top"), [(7, 15), (1, 1), (127, 127), (31, 63)])
def test_attention_with_bounded_codes_equals_its_body(
    top: int, p_top: int, hooks: Hooks, library: Path
) -> None:
    fixed = (0.3, 0.25, 1 / p_top, 0.2)
    values = arrays(top, 2, 33, 60)
    inputs = dict(zip("qkv", values, strict=True)) | {"mask": masks("suffix", 2, 33, 0)}
    stored = ("q_scale", "k_scale", "p_scale", "v_scale")
    inputs |= {name: np.array(value, np.float32) for name, value in zip(stored, fixed, strict=True)}
    attributes = {"num_heads": 3, "scaling": 0.2, "top": top, "p_top": p_top}
    model = one_node("QuantizedAttentionStaticBounded", inputs, attributes, stored)
    expected = reference(
        *values, inputs["mask"], activation="static", quantize_pv=True, fixed=fixed, **attributes
    )
    assert np.array_equal(run(model, inputs, None)["Y"], expected)
    for isa in hooks.isas:
        hooks.set_isa(isa)
        assert np.array_equal(run(model, inputs, library, threads=2)["Y"], expected), isa


@pytest.mark.parametrize(("top", "p_top"), [(0, 7), (128, 7), (7, 0), (7, 128), (-1, 7)])
def test_codes_beyond_eight_bits_are_refused(top: int, p_top: int, library: Path) -> None:
    inputs = dict(zip("qkv", arrays(0, 1, 4, 8), strict=True)) | {"mask": masks("none", 1, 4, 0)}
    stored = ("q_scale", "k_scale", "p_scale", "v_scale")
    inputs |= {name: np.array(0.1, np.float32) for name in stored}
    attributes = {"num_heads": 2, "scaling": 1.0, "top": top, "p_top": p_top}
    model = one_node("QuantizedAttentionStaticBounded", inputs, attributes, stored)
    with pytest.raises(Exception, match=r"the_node.*top and p_top must be from 1 to 127"):
        run(model, inputs, library)


@pytest.mark.parametrize("quantize_pv", [True, False])
def test_a_sentence_does_not_depend_on_its_batch(quantize_pv: bool, each: Hooks) -> None:
    """Not even where another sentence holds NaN and infinite values."""
    inputs = arrays(7, 3, 21, 40)
    mask = masks("suffix", 3, 21, 0)
    chosen = settings_of("dynamic-token", quantize_pv, 2, 20, 0.0)
    broken = [x.copy() for x in inputs]
    broken[0][0, 3], broken[1][0, 4, 5], broken[2][0, 6] = np.nan, np.inf, -np.inf
    for isa in each.isas:
        whole = each.attention(isa, *inputs, mask, **chosen)
        alone = each.attention(isa, *(np.ascontiguousarray(x[2:]) for x in inputs), mask[2:], **chosen)
        assert np.array_equal(whole[2:], alone)
        assert np.array_equal(each.attention(isa, *broken, mask, **chosen)[1:], whole[1:])


@pytest.mark.parametrize("quantize_pv", [True, False])
def test_padding_changes_nothing(quantize_pv: bool, each: Hooks) -> None:
    chosen = settings_of("dynamic-token", quantize_pv, 2, 20, 0.0)
    inputs = arrays(8, 2, 40, 40)
    mask = masks("suffix", 2, 40, 0)
    for x in inputs:
        x[:, 20:] *= 5
    short = [np.ascontiguousarray(x[:, :20]) for x in inputs]
    for isa in each.isas:
        y = each.attention(isa, *inputs, mask, **chosen)[:, :20]
        alone = each.attention(isa, *short, np.ascontiguousarray(mask[..., :20]), **chosen)
        assert np.array_equal(y, alone), isa


@forms
def test_scores_that_are_not_finite_have_no_probability(
    activation: str, quantize_pv: bool, each: Hooks
) -> None:
    """A query without a finite score has Y = 0; a key with an infinite scale is as if it were dropped."""
    chosen = settings_of(activation, quantize_pv, 1, 20, 0.0)
    q, k, v = arrays(9, 1, 33, 20)
    mask = masks("none", 1, 33, 0)
    q[0, 4] = np.inf
    if activation != "dynamic-token":  # one scale of all: there is nothing but such scores
        chosen["fixed"] = (np.inf, *chosen["fixed"][1:])
        for isa in each.isas:
            assert not each.attention(isa, q, k, v, mask, **chosen).any(), isa
        return
    k[0, 7] = -np.inf
    dropped = mask.copy()
    dropped[..., 7] = False
    v[0, 7] = 0
    zero, finite = np.where(np.isinf(q), np.float32(0), q), np.where(np.isinf(k), np.float32(0), k)
    for isa in each.isas:
        y = each.attention(isa, q, k, v, mask, **chosen)
        assert not y[0, 4].any(), isa
        y[0, 4] = each.attention(isa, zero, finite, v, dropped, **chosen)[0, 4]
        assert np.array_equal(y, each.attention(isa, zero, finite, v, dropped, **chosen)), isa


@pytest.mark.parametrize("heads", [0, -1, 3, 2**40])
def test_heads_that_do_not_fit_are_refused(heads: int, library: Path) -> None:
    inputs = dict(zip("qkv", arrays(0, 1, 4, 8), strict=True)) | {"mask": masks("none", 1, 4, 0)}
    model = one_node("QuantizedAttention", inputs, {"num_heads": heads, "scaling": 1.0, "clip": 0.0})
    with pytest.raises(Exception, match=r"the_node.*num_heads"):
        run(model, inputs, library)


def test_a_mask_of_another_shape_is_refused(library: Path) -> None:
    inputs = dict(zip("qkv", arrays(0, 2, 4, 8), strict=True)) | {"mask": masks("none", 2, 4, 0)}
    model = one_node("QuantizedAttention", inputs, {"num_heads": 2, "scaling": 1.0, "clip": 0.0})
    for shape in ((2, 1, 1, 3), (1, 1, 1, 4), (4, 1, 1, 2), (2, 1, 4, 4), (0, 1, 1, 4)):
        with pytest.raises(Exception, match=r"the_node.*mask"):
            run(model, {**inputs, "mask": np.ones(shape, bool)}, library)
