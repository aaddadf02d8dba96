"""Low-bit integer codes in bytes, and back: the storage formats of the `ai.qexport` operators.

A matrix of codes [N, K] is packed row by row, so that a row can be gathered without touching another one.

| bits | codes | in a byte | bytes of a row |
| --- | --- | --- | --- |
| 1 | {-1, 1} | eight, bit j of the byte is (code_j + 1) / 2 | ceil(K / 8) |
| 2 | {-1, 0, 1} | five trits, byte = sum_j (code_j + 1) * 3**j | ceil(K / 5) |
| 3..7 | -(2**(bits-1) - 1) .. 2**(bits-1) - 1 | planes of 4, 2 and 1 bits, see below | sum over the planes |
| 8 | -127 .. 127 | one, byte = code + 128 | K |

For 3 to 7 bits the offset code u = code + 2**(bits-1) is cut into planes: its low 4 bits (4 bits and more),
then the next 2, then the next 1, as the binary digits of `bits` say (3 = 2+1, 5 = 4+1, 6 = 4+2, 7 = 4+2+1).
A row is the bytes of its first plane, then of its second, and so on; digit j of a byte of a b-bit plane
sits at bit b*j. A last byte that is not full is filled with the digit 0.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import numpy.typing as npt

from qexport.errors import ShapeError, UsageError, ValueRangeError
from qexport.formats import max_code

__all__ = ["BITS", "Plane", "bits_per_weight", "pack", "packed_width", "planes", "unpack"]

Plane = tuple[int, int, int]
"""(base, digits in a byte, place value of the plane's digit in the offset code)."""

BITS = (1, 2, 3, 4, 5, 6, 7, 8)
"""Every width that can be packed; 2 is ternary."""


def planes(bits: int) -> tuple[Plane, ...]:
    """The planes that a row is cut into, in the order they lie in a row.

    Raises:
        UsageError: `bits` is not a whole number from 1 to 8.
    """
    if bits == 2:
        return ((3, 5, 1),)
    if bits == 8:
        return ((256, 1, 1),)
    if bits not in BITS:
        raise UsageError(f"packed weights have from 1 to 8 bits, got {bits}")
    result: list[Plane] = []
    shift = 0
    for size in (4, 2, 1):
        if bits & size:
            result.append((2**size, 8 // size, 2**shift))
            shift += size
    return tuple(result)


def packed_width(k: int, bits: int) -> int:
    """Bytes that a row of `k` codes takes.

    Raises:
        UsageError: see `planes`.
    """
    return sum(-(-k // digits) for _, digits, _ in planes(bits))


def bits_per_weight(bits: int) -> float:
    """Bits of storage that one code takes in a long row: 1.6 for ternary, `bits` for the rest."""
    return float(sum(Fraction(8, digits) for _, digits, _ in planes(bits)))


def offset(bits: int) -> int:
    """What is added to a code before its digits are taken (for 1 bit the sum is halved too)."""
    return 1 if bits <= 2 else int(2 ** (bits - 1))


def pack(codes: npt.NDArray[np.int8], bits: int) -> npt.NDArray[np.uint8]:
    """Pack codes [N, K] to bytes [N, packed_width(K, bits)].

    Args:
        codes: int8 [N, K].
        bits: the storage format, see the module's table.
    Returns:
        uint8 [N, packed_width(K, bits)].
    Raises:
        ShapeError: `codes` is not an int8 matrix.
        ValueRangeError: a code is not in the format; names the first one.
        UsageError: no such format.
    """
    cut = planes(bits)
    if codes.ndim != 2 or codes.dtype != np.int8:
        raise ShapeError(
            f"codes to pack must be an int8 matrix [N, K], got {codes.dtype} {list(codes.shape)}"
        )
    top = max_code(bits) if bits > 1 else 1
    wrong = (codes > top) | (codes < -top)
    if bits == 1:
        wrong |= codes == 0
    if wrong.any():
        row, column = (int(i) for i in np.argwhere(wrong)[0])
        allowed = "-1 or 1" if bits == 1 else f"in -{top}..{top}"
        raise ValueRangeError(
            f"a {bits}-bit code must be {allowed}, got {int(codes[row, column])} at [{row}, {column}]; "
            "clip or requantise the tensor before packing"
        )
    shifted = codes.astype(np.int16) + offset(bits)
    if bits == 1:
        shifted >>= 1
    return np.concatenate(
        [_pack_plane(shifted // place, base, digits) for base, digits, place in cut], axis=1
    )


def _pack_plane(values: npt.NDArray[np.int16], base: int, digits: int) -> npt.NDArray[np.uint8]:
    """Pack `values` modulo `base`, int16 [N, K], into bytes [N, ceil(K / digits)]."""
    n, k = values.shape
    width = -(-k // digits)
    padded = np.zeros((n, width * digits), np.int16)
    padded[:, :k] = values % base
    weights = (base ** np.arange(digits)).astype(np.int16)
    return np.asarray((padded.reshape(n, width, digits) * weights).sum(axis=2), np.uint8)


def digit_table(base: int, digits: int) -> npt.NDArray[np.int32]:
    """Digits of every byte that a plane can hold: int32 [base**digits, digits]."""
    return (np.arange(base**digits)[:, None] // base ** np.arange(digits) % base).astype(np.int32)


def unpack(packed: npt.NDArray[np.uint8], k: int, bits: int) -> npt.NDArray[np.int8]:
    """Undo `pack`.

    Args:
        packed: uint8 [N, packed_width(k, bits)].
        k: codes in a row.
        bits: the storage format.
    Returns:
        int8 [N, k].
    Raises:
        ShapeError: `packed` is not such a matrix.
        ValueRangeError: a byte that no codes pack to (ternary bytes end at 242).
        UsageError: no such format.
    """
    width = packed_width(k, bits)
    if packed.ndim != 2 or packed.dtype != np.uint8 or packed.shape[1] != width:
        raise ShapeError(
            f"packed {bits}-bit rows of {k} codes must be uint8 [N, {width}], "
            f"got {packed.dtype} {list(packed.shape)}"
        )
    total = np.zeros((packed.shape[0], k), np.int32)
    start = 0
    for base, digits, place in planes(bits):
        run = -(-k // digits)
        part = packed[:, start : start + run]
        if part.size and int(part.max()) >= base**digits:
            raise ValueRangeError(
                f"a packed {bits}-bit byte must be below {base**digits}, got {int(part.max())}; "
                "the file is corrupt"
            )
        total += place * digit_table(base, digits)[part].reshape(len(packed), run * digits)[:, :k]
        start += run
    return ((total * 2 if bits == 1 else total) - offset(bits)).astype(np.int8)
