"""Packing of low-bit codes: round trips, the layouts written out by hand, bad input."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qexport.errors import ShapeError, UsageError, ValueRangeError
from qexport.graphs.packing import BITS, bits_per_weight, pack, packed_width, unpack


def random_codes(rng: np.random.Generator, shape: tuple[int, int], bits: int) -> np.ndarray:
    if bits == 1:
        return (rng.integers(0, 2, shape) * 2 - 1).astype(np.int8)
    top = 2 ** (bits - 1) - 1
    return rng.integers(-top, top + 1, shape).astype(np.int8)


@settings(max_examples=60, deadline=None)
@given(bits=st.sampled_from(BITS), n=st.integers(0, 9), k=st.integers(1, 70), seed=st.integers(0, 2**32 - 1))
def test_unpack_undoes_pack(bits: int, n: int, k: int, seed: int) -> None:
    codes = random_codes(np.random.default_rng(seed), (n, k), bits)
    packed = pack(codes, bits)
    assert packed.dtype == np.uint8
    assert packed.shape == (n, packed_width(k, bits))
    back = unpack(packed, k, bits)
    assert back.dtype == np.int8
    assert np.array_equal(back, codes)


@settings(max_examples=30, deadline=None)
@given(bits=st.sampled_from(BITS), k=st.integers(1, 40), seed=st.integers(0, 2**32 - 1))
def test_rows_pack_on_their_own(bits: int, k: int, seed: int) -> None:
    codes = random_codes(np.random.default_rng(seed), (4, k), bits)
    assert np.array_equal(pack(codes, bits)[2:3], pack(codes[2:3], bits))


@pytest.mark.parametrize(
    ("bits", "codes", "expected"),
    [
        (1, [1, -1, 1, 1, -1, -1, -1, -1, 1], [0b00001101, 0b1]),
        (2, [1, -1, 0, 1, -1, 0], [2 + 0 + 9 + 54 + 0, 1]),
        (3, [3, -3, 0, 1, -2], [0b01_00_01_11, 0b10, 0b01101]),
        (4, [7, -7, 0], [0x1F, 0x8]),
        (6, [31, -31, 0], [0x1F, 0x0, 0b10_00_11]),
        (8, [127, -127, 0], [255, 1, 128]),
    ],
)
def test_layout(bits: int, codes: list[int], expected: list[int]) -> None:
    assert pack(np.array([codes], np.int8), bits)[0].tolist() == expected


def test_size_of_long_rows() -> None:
    assert [bits_per_weight(bits) for bits in BITS] == [1, 1.6, 3, 4, 5, 6, 7, 8]
    for bits in BITS:
        assert packed_width(3072, bits) / 3072 * 8 == pytest.approx(bits_per_weight(bits), abs=2e-2)


@pytest.mark.parametrize("bits", [0, 9, -1, 32])
def test_unknown_width(bits: int) -> None:
    with pytest.raises(UsageError, match=f"from 1 to 8 bits, got {bits}"):
        pack(np.zeros((1, 1), np.int8), bits)


@pytest.mark.parametrize(
    ("bits", "bad"), [(1, 0), (1, 2), (2, 2), (2, -2), (3, -4), (6, 32), (7, -64), (8, -128)]
)
def test_code_outside_the_format(bits: int, bad: int) -> None:
    codes = np.ones((3, 7), np.int8)
    codes[1, 4] = bad
    with pytest.raises(ValueRangeError, match=rf"got {bad} at \[1, 4\]"):
        pack(codes, bits)


@pytest.mark.parametrize(
    "codes", [np.zeros(4, np.int8), np.zeros((2, 2), np.int32), np.zeros((2, 2), np.float32)]
)
def test_not_an_int8_matrix(codes: np.ndarray) -> None:
    with pytest.raises(ShapeError, match="int8 matrix"):
        pack(codes, 2)


def test_unpack_checks_shape_and_bytes() -> None:
    with pytest.raises(ShapeError, match=r"uint8 \[N, 2\]"):
        unpack(np.zeros((1, 3), np.uint8), 10, 2)
    with pytest.raises(ValueRangeError, match="below 243, got 243"):
        unpack(np.array([[243]], np.uint8), 5, 2)
