"""W-E-A notation."""

from __future__ import annotations

import pytest

from qexport.errors import UsageError
from qexport.formats import Bits, max_code, parse_bits


@pytest.mark.parametrize("text", ["2-2-8", "8-8-8", "1-1-4", "32-32-32", "3-7-8"])
def test_notation_round_trips(text: str) -> None:
    assert str(parse_bits(text)) == text


def test_order_is_weights_embedding_activations() -> None:
    assert parse_bits("2-3-8") == Bits(weight=2, embedding=3, activation=8)


@pytest.mark.parametrize(
    "text", ["", "2", "2-2", "2-2-8-8", "a-2-8", "2-2-9", "0-2-8", "2--8", "-1-2-8", "16-2-8"]
)
def test_wrong_notation_is_refused_with_what_came(text: str) -> None:
    with pytest.raises(UsageError, match=f"got '{text}'"):
        parse_bits(text)


@pytest.mark.parametrize(("bits", "code"), [(1, 1), (2, 1), (3, 3), (4, 7), (8, 127)])
def test_largest_code(bits: int, code: int) -> None:
    assert max_code(bits) == code
