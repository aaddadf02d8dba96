"""Integer products and embedding rows: the kernels give the numbers of the function bodies, bit for bit."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kernel_hooks import Hooks
from kernel_models import one_node, run, same

from qexport.graphs.operators import OPERATORS, gather_name, matmul_name
from qexport.graphs.packing import pack

STORED = ("a_zero_point", "B", "b_scale", "bias")
SPECIAL = np.array([0, -0.0, 1e-40, -3e-45, np.inf, -np.inf, np.nan, 3e38, -2.5, 1e-30], np.float32)
WIDTHS = st.one_of(st.integers(1, 70), st.integers(71, 700), st.sampled_from([64, 128, 320, 640]))

quick = settings(
    max_examples=30,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def top_code(bits: int) -> int:
    return 1 if bits <= 2 else 2 ** (bits - 1) - 1


def codes_of(rng: np.random.Generator, shape: tuple[int, int], bits: int, kind: str = "any") -> np.ndarray:
    """int8 codes: any, or the extremes that overflow a sum first."""
    top = top_code(bits)
    if kind == "highest":
        return np.full(shape, top, np.int8)
    if kind == "lowest":
        return np.full(shape, -top, np.int8)
    if kind == "signs" or bits == 1:
        return ((rng.integers(0, 2, shape) * 2 - 1) * top).astype(np.int8)
    return rng.integers(-top, top + 1, shape).astype(np.int8)


def activations(rng: np.random.Generator, shape: tuple[int, ...], kind: str) -> np.ndarray:
    if kind == "any":
        return rng.integers(0, 256, shape).astype(np.uint8)
    return np.full(shape, {"highest": 255, "lowest": 0}[kind], np.uint8)


def floats(rng: np.random.Generator, shape: tuple[int, ...], special: bool) -> np.ndarray:
    values = rng.normal(size=shape).astype(np.float32)
    if special:
        values = np.where(rng.random(shape) < 0.3, rng.choice(SPECIAL, shape), values)
    return np.asarray(values, np.float32)


@st.composite
def products(draw: st.DrawFn) -> dict[str, Any]:
    """Everything about a product but the bits."""
    rows = draw(st.one_of(st.integers(1, 14), st.sampled_from([31, 33, 95, 96, 97, 101])))
    return {
        "leading": draw(st.sampled_from([(rows,), (1, rows), (rows, 1), (2, rows)])),
        "n": draw(st.one_of(st.integers(1, 20), st.integers(21, 100), st.sampled_from([16, 32, 48, 96]))),
        "k": draw(WIDTHS),
        "zero": draw(st.sampled_from([0, 1, 127, 128, 129, 255])),
        "a_scale": draw(st.sampled_from(["scalar", "one", "token"])),
        "b_scale": draw(st.sampled_from(["scalar", "one", "row"])),
        "codes": draw(st.sampled_from(["any", "any", "highest", "lowest", "signs"])),
        "a": draw(st.sampled_from(["any", "any", "highest", "lowest"])),
        "special": draw(st.booleans()),
        "seed": draw(st.integers(0, 2**32 - 1)),
    }


def inputs_of(bits: int, case: dict[str, Any]) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(case["seed"])
    leading, n, k = case["leading"], case["n"], case["k"]
    a_shape = {"scalar": (), "one": (1,), "token": (*leading, 1)}[case["a_scale"]]
    b_shape = {"scalar": (), "one": (1,), "row": (n,)}[case["b_scale"]]
    return {
        "A": activations(rng, (*leading, k), case["a"]),
        "a_scale": floats(rng, a_shape, case["special"]),
        "a_zero_point": np.array(case["zero"], np.uint8),
        "B": pack(codes_of(rng, (n, k), bits, case["codes"]), bits),
        "b_scale": floats(rng, b_shape, case["special"]),
        "bias": floats(rng, (n,), case["special"]),
    }


def check_all_isas(
    hooks: Hooks, library: Path, model: bytes, inputs: dict[str, np.ndarray], *, threads: int = 1
) -> dict[str, np.ndarray]:
    """The body's outputs; every instruction set of this machine must give the same."""
    body = run(model, inputs, None)
    for isa in hooks.isas:
        hooks.set_isa(isa)
        assert same(run(model, inputs, library, threads=threads), body), isa
    return body


@pytest.mark.parametrize("bits", range(1, 9))
@quick
@given(case=products())
def test_product_equals_the_body(bits: int, case: dict[str, Any], hooks: Hooks, library: Path) -> None:
    inputs = inputs_of(bits, case)
    model = one_node(matmul_name(bits), inputs, {"K": case["k"]}, STORED)
    check_all_isas(hooks, library, model, inputs)


@pytest.mark.parametrize("bits", range(1, 9))
@settings(quick, max_examples=6)
@given(case=products())
def test_product_of_every_instruction_set_equals_the_body(
    bits: int, case: dict[str, Any], emulated: Path
) -> None:
    inputs = inputs_of(bits, case)
    model = one_node(matmul_name(bits), inputs, {"K": case["k"]}, STORED)
    hooks = Hooks(emulated)
    assert {"scalar", "avx2", "avx-vnni", "avx512-vnni", "amx"} == set(hooks.isas)
    check_all_isas(hooks, emulated, model, inputs, threads=2)


@pytest.mark.parametrize("k", [1024, 1025, 65536])
@pytest.mark.parametrize("bits", range(1, 9))
def test_longest_sums_are_exact_at_the_extremes(bits: int, k: int, each: Hooks) -> None:
    """Codes are unpacked 1024 at a time; 65536 is the largest K. Sums go up to 2,122,383,360."""
    rng = np.random.default_rng(k + bits)
    top, one = top_code(bits), np.ones(1, np.float32)
    codes = np.stack([codes_of(rng, (1, k), bits, kind)[0] for kind in ("highest", "lowest", "signs", "any")])
    a = np.stack([np.full(k, 255), np.zeros(k), rng.integers(0, 2, k) * 255, rng.integers(0, 256, k)])
    a = np.repeat(a.astype(np.uint8), 2, axis=0)
    for zero in (0, 128, 255):
        exact = (a.astype(np.float64) - zero) @ codes.T.astype(np.float64)
        assert abs(exact).max() <= 255.0 * top * k < 2**31
        for isa in each.isas:
            y = each.matmul(isa, bits, a, zero, one, pack(codes, bits), one, np.zeros(4, np.float32))
            assert np.array_equal(y, exact.astype(np.int32).astype(np.float32)), isa


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_no_row_or_column_of_a_tile_is_mistaken(bits: int, each: Hooks) -> None:
    """Every count of rows around the tiles and the row block, and of columns around a panel."""
    rng = np.random.default_rng(bits)
    k = 70
    codes = codes_of(rng, (52, k), bits)
    a = activations(rng, (195, k), "any")
    a_scale, w_scale, bias = (floats(rng, (count,), False) for count in (195, 52, 52))
    for m in (*range(1, 20), 24, 25, 26, 31, 32, 33, 48, 95, 96, 97, 193):
        for n in (1, 16, 17, 33, 48, 52):
            inputs = (a[:m], a_scale[:m, None], np.uint8(128), pack(codes[:n], bits), w_scale[:n], bias[:n])
            (expected,) = OPERATORS[matmul_name(bits)].reference(*inputs, K=k)
            for isa in each.isas:
                y = each.matmul(
                    isa, bits, a[:m], 128, a_scale[:m], pack(codes[:n], bits), w_scale[:n], bias[:n]
                )
                assert np.array_equal(y, expected), (isa, m, n)


def test_tiles_get_the_shapes_back_that_they_had(emulated: Path) -> None:
    """ONNX Runtime shapes a thread's tiles once and trusts them from then on."""
    hooks = Hooks(emulated)
    one = np.ones(1, np.float32)

    def tiles_after_a_product(shapes: np.ndarray | None) -> np.ndarray:
        found = np.full(64, 255, np.uint8)
        load = None if shapes is None else ctypes.c_void_p(shapes.ctypes.data)
        hooks.library.qexport_emulated_tiles(load, None)
        a, codes = np.ones((20, 64), np.uint8), np.ones((16, 64), np.int8)
        y = hooks.matmul("amx", 2, a, 0, one, pack(codes, 2), one, np.zeros(16, np.float32))
        assert (y == 64).all()
        hooks.library.qexport_emulated_tiles(None, ctypes.c_void_p(found.ctypes.data))
        return found

    assert (tiles_after_a_product(None) == 0).all()
    shapes = np.zeros(64, np.uint8)
    shapes[0], shapes[16:32:2], shapes[48:56] = 1, 64, 16
    shapes[48] = 3
    assert np.array_equal(tiles_after_a_product(shapes), shapes)


@pytest.mark.parametrize("scale", ["scalar", "token"])
@pytest.mark.parametrize("bits", range(1, 9))
def test_product_equals_the_optimised_body(bits: int, scale: str, hooks: Hooks, library: Path) -> None:
    rng = np.random.default_rng(bits)
    case = {
        "leading": (2, 40), "n": 65, "k": 301, "zero": 128, "a_scale": scale, "b_scale": "row",
        "codes": "any", "a": "any", "special": False, "seed": int(rng.integers(2**32)),
    }  # fmt: skip
    inputs = inputs_of(bits, case)
    model = one_node(matmul_name(bits), inputs, {"K": 301}, STORED)
    kernel = run(model, inputs, library, optimize=True)
    assert same(kernel, run(model, inputs, library))
    assert same(kernel, run(model, inputs, None, optimize=True))


@pytest.mark.parametrize("bits", range(1, 9))
def test_threads_do_not_change_a_product(bits: int, hooks: Hooks, library: Path) -> None:
    case = {
        "leading": (205,), "n": 100, "k": 130, "zero": 128, "a_scale": "token", "b_scale": "row",
        "codes": "any", "a": "any", "special": False, "seed": bits,
    }  # fmt: skip
    inputs = inputs_of(bits, case)
    model = one_node(matmul_name(bits), inputs, {"K": 130}, STORED)
    for threads in (1, 2, 3):
        check_all_isas(hooks, library, model, inputs, threads=threads)


@pytest.mark.parametrize("bits", range(1, 9))
@quick
@given(data=st.data())
def test_gather_equals_the_body(bits: int, data: st.DataObject, hooks: Hooks, library: Path) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    rows, k = data.draw(st.integers(1, 40)), data.draw(WIDTHS)
    shape = data.draw(st.sampled_from([(), (1,), (5,), (2, 7), (1, 3, 4)]))
    scale = data.draw(st.sampled_from([(), (1,), (rows,)]))
    inputs = {
        "indices": rng.integers(-rows, rows, shape),
        "table": pack(codes_of(rng, (rows, k), bits, data.draw(st.sampled_from(["any", "lowest"]))), bits),
        "scale": floats(rng, scale, data.draw(st.booleans())),
    }
    model = one_node(gather_name(bits), inputs, {"K": k}, ("table", "scale"))
    check_all_isas(hooks, library, model, inputs)


@pytest.mark.parametrize("bits", range(1, 9))
def test_gather_of_the_longest_rows(bits: int, hooks: Hooks, library: Path) -> None:
    """Rows are unpacked 2000 codes at a time."""
    rng = np.random.default_rng(bits)
    for k in (1999, 2000, 2001, 4003):
        codes = codes_of(rng, (3, k), bits)
        inputs = {
            "indices": np.array([2, 0, -1]),
            "table": pack(codes, bits),
            "scale": np.ones(1, np.float32),
        }
        model = one_node(gather_name(bits), inputs, {"K": k}, ("table", "scale"))
        assert np.array_equal(run(model, inputs, library)["Y"], codes[[2, 0, -1]])


@pytest.mark.parametrize("index", [5, -6, 2**40, -(2**63)])
def test_gather_refuses_an_index_outside_the_table(index: int, hooks: Hooks, library: Path) -> None:
    inputs = {
        "indices": np.array([0, 1]),
        "table": pack(np.ones((5, 9), np.int8), 2),
        "scale": np.ones(5, np.float32),
    }
    model = one_node("TernaryGather", inputs, {"K": 9}, ("table", "scale"))
    with pytest.raises(Exception, match=rf"the_node.*index {index} is outside the table"):
        run(model, {**inputs, "indices": np.array([0, index])}, library)


def test_no_rows_give_no_rows(hooks: Hooks, library: Path) -> None:
    """Where some of the bodies give up."""
    table = pack(np.ones((5, 9), np.int8), 2)
    inputs = {"indices": np.zeros((2, 0), np.int64), "table": table, "scale": np.ones(5, np.float32)}
    model = one_node("TernaryGather", inputs, {"K": 9}, ("table", "scale"))
    assert run(model, inputs, library)["Y"].shape == (2, 0, 9)
    case = {
        "leading": (2, 0), "n": 5, "k": 9, "zero": 128, "a_scale": "token", "b_scale": "row", "codes": "any",
        "a": "any", "special": False, "seed": 0,
    }  # fmt: skip
    inputs = inputs_of(2, case)
    model = one_node("TernaryMatMul", inputs, {"K": 9}, STORED)
    assert run(model, inputs, library)["Y"].shape == (2, 0, 5)
