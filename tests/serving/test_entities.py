"""Words of a raw text, and entities with their places in it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qexport.serving.entities import Entity, entities_of, split_words


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("EU rejects  German call.", ["EU", "rejects", "German", "call", "."]),
        ('"Peter" (U.S.) left...', ['"', "Peter", '"', "(", "U.S.", ")", "left", ".", ".", "."]),
        ("well-known C++ e.g. 3.5, O'Neill's", ["well-known", "C++", "e.g.", "3.5", ",", "O'Neill's"]),
        ("...", [".", ".", "."]),
        (" \n", []),
    ],
)
def test_marks_around_a_word_are_words(text: str, words: list[str]) -> None:
    assert [text[start:end] for start, end in split_words(text)] == words


@settings(deadline=None, max_examples=100)
@given(st.text(max_size=30))
def test_words_cover_everything_but_blanks(text: str) -> None:
    spans = split_words(text)
    assert "".join(text[start:end] for start, end in spans) == "".join(text.split())
    assert spans == sorted(spans)


def test_entities_have_their_places_and_the_mean_of_their_scores() -> None:
    text = "In  New York, Ann."
    words = split_words(text)
    tags = ["O", "B-LOC", "I-LOC", "O", "B-PER", "O"]
    scores = np.array([1.0, 0.5, 1.0, 1.0, 0.25, 1.0], np.float32)
    found = entities_of(text, words, tags, scores)
    assert found == [Entity("LOC", "New York", 4, 12, 0.75), Entity("PER", "Ann", 14, 17, 0.25)]
    assert all(text[entity.start : entity.end] == entity.text for entity in found)
