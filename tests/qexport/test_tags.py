"""entity_spans reads all three schemes, as seqeval does."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from seqeval.metrics.sequence_labeling import get_entities

from qexport.tags import Span, entity_spans, split_tag

_TAGS = ("O", *(f"{prefix}-{kind}" for prefix in "BIES" for kind in ("PER", "LOC")))


@pytest.mark.parametrize(
    ("tags", "spans"),
    [
        (["B-PER", "I-PER", "O", "B-LOC"], [Span("PER", 0, 2), Span("LOC", 3, 4)]),  # IOB2
        (["I-PER", "I-PER", "B-PER", "I-LOC"], [Span("PER", 0, 2), Span("PER", 2, 3), Span("LOC", 3, 4)]),
        (["B-PER", "E-PER", "S-PER", "O"], [Span("PER", 0, 2), Span("PER", 2, 3)]),  # IOBES
        (["O", "I-LOC"], [Span("LOC", 1, 2)]),
        ([], []),
    ],
)
def test_entity_spans_follow_the_scheme(tags: list[str], spans: list[Span]) -> None:
    assert entity_spans(tags) == spans


@settings(deadline=None, max_examples=200)
@given(st.lists(st.sampled_from(_TAGS), max_size=8))
def test_entity_spans_equal_seqeval_when_tags_are_anything(tags: list[str]) -> None:
    expected = [(kind, start, end + 1) for kind, start, end in get_entities(tags)]
    assert [(span.type, span.start, span.end) for span in entity_spans(tags)] == expected


def test_split_tag_refuses_what_is_no_tag() -> None:
    assert split_tag("B-PER-X") == ("B", "PER-X")
    assert [split_tag(tag) for tag in ("PER", "U-PER", "B-", "B", "")] == [None] * 5
