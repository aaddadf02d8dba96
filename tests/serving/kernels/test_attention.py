"""Attention: equal up to the softmax, then within a bound that says which codes may be neighbouring ones."""

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
from qexport.graphs.operators import attention_name
from qexport.graphs.operators.quantize import dynamic_scale

Array = np.ndarray
U = 2.0**-24
FORMS = [(activation, pv) for activation in ACTIVATION_MODES for pv in (True, False)]
forms = pytest.mark.parametrize(("activation", "quantize_pv"), FORMS)


def exact(
    q: Array,
    k: Array,
    v: Array,
    mask: Array,
    *,
    activation: str,
    quantize_pv: bool,
    num_heads: int,
    scaling: float,
    clip: float = 0.0,
    fixed: tuple[float, ...] = (),
    top: int = 127,
    p_top: int = 127,
) -> tuple[Array, Array]:
    """Attention with exp, sums and quotients in float64, and how far the kernel may be from it; [B, S, C].

    With u = 2**-24. Scales are the same float32 numbers everywhere. The kernel multiplies by 1 / scale, a
    body divides: a code of q, k or v may be the neighbour where x / scale is within 4 u of itself of a tie,
    and then a score moves by the other side's code times the scales. exp is within 2 ulp, 4 u; a sum of S
    powers has (S / 4 + 8) u of itself. So a probability has a relative error of r = 10 u + (S / 4 + 8) u, and
    more in rows whose scores may move.
    QK forms: the sum of p v in S steps adds (S + 2) u: (r + (S + 2) u) * sum of p |v|.
    Else p / p_scale has r of both: it may have another code, and then Y moves by p_scale |v|; so it does
    where v has another code; the scale p_scale * v_scale has r too, and its rounding with Y's 4 u.
    """

    def split(x: Array) -> Array:
        return x.reshape(*x.shape[:2], num_heads, x.shape[2] // num_heads).swapaxes(1, 2)

    def join(x: Array) -> Array:
        return x.swapaxes(1, 2).reshape(shape)

    def scale(x: Array, site: int) -> Any:
        if activation == "static":
            return np.float32(fixed[site])
        if activation == "dynamic-tensor":
            return dynamic_scale(np.asarray(np.abs(x).max()), clip)
        return dynamic_scale(np.abs(x).max(axis=-1, keepdims=True), clip)

    def codes(x: Array, scale: Any) -> tuple[Array, Array]:
        """Codes, and by how much each may be another one."""
        steps = x / scale
        code = np.clip(np.rint(steps), -top, top).astype(np.float64)
        ends = (np.clip(np.rint(steps * (1 + side * 4 * U)), -top, top) for side in (-1, 1))
        return code, np.maximum(*(np.abs(end - code) for end in ends))

    shape, tokens = q.shape, q.shape[1]
    q, k, v = (split(x) for x in (q, k, v))
    q_scale, k_scale = scale(q, 0), scale(k, 1)
    (q_codes, q_moved), (k_codes, k_moved) = codes(q, q_scale), codes(k, k_scale)
    sums = np.matmul(q_codes, k_codes.swapaxes(-1, -2))
    sums_moved = np.matmul(np.abs(q_codes) + q_moved, (np.abs(k_codes) + k_moved).swapaxes(-1, -2))
    sums_moved -= np.matmul(np.abs(q_codes), np.abs(k_codes).swapaxes(-1, -2))
    factor = (q_scale * np.float32(scaling)) * (k_scale.swapaxes(-1, -2) if k_scale.ndim else k_scale)
    scores = sums.astype(np.float32) * factor
    scores = (scores + np.where(mask, np.float32(0), np.float32(-10000))).astype(np.float64)
    powers = np.exp(scores - scores.max(axis=-1, keepdims=True))
    p = powers / powers.sum(axis=-1, keepdims=True)
    moved = (sums_moved * factor).max(axis=-1, keepdims=True)
    relative = 10 * U + (tokens / 4 + 8) * U + np.expm1(2 * moved)
    if not quantize_pv:
        spread = np.matmul(p, np.abs(v.astype(np.float64)))
        return join(np.matmul(p, v.astype(np.float64))), join((relative + (tokens + 2) * U) * spread)
    v_scale = scale(v, 3)
    if activation == "dynamic-token":
        kept = np.where(mask.swapaxes(-1, -2), np.abs(v).max(axis=-1, keepdims=True), np.float32(0))
        v_scale = dynamic_scale(kept.max(axis=2, keepdims=True), clip)
    v_codes, v_moved = codes(v, v_scale)
    p_scale, of_scale = np.float64(np.float32(fixed[2])) if fixed else None, 0.0
    if activation != "static":
        p_scale = p.max(axis=-1 if activation == "dynamic-token" else None, keepdims=True) / 127
        of_scale = relative if activation == "dynamic-token" else relative.max()
    steps = p / p_scale
    code = np.clip(np.rint(steps), 0, p_top)
    ends = [np.clip(np.rint(steps * (1 + side * (relative + of_scale))), 0, p_top) for side in (-1, 1)]
    if activation == "dynamic-token":  # the largest has p_top, whatever its error
        ends = [np.where(steps >= 127 * (1 - 1e-9), 127, end) for end in ends]
    other = np.maximum(*(np.abs(end - code) for end in ends))
    unit = p_scale * v_scale.astype(np.float64)
    y = np.matmul(code, v_codes) * unit
    moved = (np.matmul(other, np.abs(v_codes)) + np.matmul(code + other, v_moved)) * unit
    return join(y), join(moved + (of_scale + 4 * U) * (np.abs(y) + moved))


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
def test_attention_is_within_its_bound(
    activation: str, quantize_pv: bool, batch: int, tokens: int, num_heads: int, width: int, mask: str,
    sharpness: float, clip: float, seed: int, each: Hooks,
) -> None:  # fmt: skip
    inputs = arrays(seed, batch, tokens, num_heads * width, sharpness)
    kept = masks(mask, batch, tokens, seed)
    chosen = settings_of(activation, quantize_pv, num_heads, width, clip)
    expected, bound = exact(*inputs, kept, **chosen)
    for isa in each.isas:
        y = each.attention(isa, *inputs, kept, **chosen)
        assert (np.abs(y - expected) <= bound + 1e-30).all(), (isa, np.abs(y - expected).max())


def test_most_outputs_are_not_near_a_tie() -> None:
    """So that the bound above means something: it is that of roundings alone for most outputs."""
    share = []
    for seed in range(8):
        inputs = arrays(seed, 2, 64, 128)
        _, bound = exact(*inputs, masks("suffix", 2, 64, 0), **settings_of("dynamic-token", True, 2, 64, 0.0))
        share.append(np.mean(bound < 1e-5))
    assert np.mean(share) > 0.8, share


@pytest.mark.parametrize("site", [0, 1, 2])
def test_a_code_at_a_tie_stays_within_the_bound(site: int, each: Hooks) -> None:
    """Values that lie exactly between two codes, where a quotient and a product may go apart."""
    chosen = settings_of("static", True, 2, 32, 0.0)
    inputs = arrays(site, 2, 33, 64)
    step = np.float32(chosen["fixed"][site if site < 2 else 3])
    inputs[site] = (np.round(inputs[site] / step) + np.float32(0.5)) * step
    mask = masks("none", 2, 33, 0)
    expected, bound = exact(*inputs, mask, **chosen)
    for isa in each.isas:
        y = each.attention(isa, *inputs, mask, **chosen)
        assert (np.abs(y - expected) <= bound).all(), isa


@forms
@pytest.mark.parametrize("optimize", [False, True])
def test_attention_and_its_body_agree(
    activation: str, quantize_pv: bool, optimize: bool, hooks: Hooks, library: Path
) -> None:
    """Each is within the bound of the exact result; the number of threads does not matter to the kernel."""
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
        expected, bound = exact(*values, inputs["mask"], **chosen)
        body = run(model, inputs, None, optimize=optimize)["Y"]
        assert (np.abs(body - expected) <= bound + 1e-30).all()
        for isa in hooks.isas:
            hooks.set_isa(isa)
            kernel = run(model, inputs, library, optimize=optimize)
            assert (np.abs(kernel["Y"] - expected) <= bound + 1e-30).all(), isa
            for threads in (2, 3):
                assert same(run(model, inputs, library, optimize=optimize, threads=threads), kernel), isa


@pytest.mark.parametrize(("top", "p_top"), [(7, 15), (1, 1), (127, 127), (31, 63)])
def test_attention_with_bounded_codes_and_its_body_agree(
    top: int, p_top: int, hooks: Hooks, library: Path
) -> None:
    fixed = (0.3, 0.25, 1 / p_top, 0.2)
    values = arrays(top, 2, 33, 60)
    inputs = dict(zip("qkv", values, strict=True)) | {"mask": masks("suffix", 2, 33, 0)}
    stored = ("q_scale", "k_scale", "p_scale", "v_scale")
    inputs |= {name: np.array(value, np.float32) for name, value in zip(stored, fixed, strict=True)}
    attributes = {"num_heads": 3, "scaling": 0.2, "top": top, "p_top": p_top}
    model = one_node("QuantizedAttentionStaticBounded", inputs, attributes, stored)
    expected, bound = exact(
        *values, inputs["mask"], activation="static", quantize_pv=True, num_heads=3, scaling=0.2, fixed=fixed,
        top=top, p_top=p_top,
    )  # fmt: skip
    assert (np.abs(run(model, inputs, None)["Y"] - expected) <= bound + 1e-30).all()
    for isa in hooks.isas:
        hooks.set_isa(isa)
        assert (np.abs(run(model, inputs, library, threads=2)["Y"] - expected) <= bound + 1e-30).all(), isa


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
def test_padding_moves_no_more_than_the_last_bits(quantize_pv: bool, each: Hooks) -> None:
    chosen = settings_of("dynamic-token", quantize_pv, 2, 20, 0.0)
    inputs = arrays(8, 2, 40, 40)
    mask = masks("suffix", 2, 40, 0)
    for x in inputs:
        x[:, 20:] *= 5
    short = [np.ascontiguousarray(x[:, :20]) for x in inputs]
    expected, bound = exact(*short, mask[..., :20], **chosen)
    for isa in each.isas:
        y = each.attention(isa, *inputs, mask, **chosen)[:, :20]
        assert (np.abs(y - expected) <= bound + (40 / 4) * U * np.abs(expected).max()).all(), isa


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
