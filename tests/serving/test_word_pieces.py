"""Words to pieces and back: first pieces, windows, words without a piece."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from qexport.errors import UsageError
from qexport.serving.word_pieces import IGNORED, encode_words


def letters(*, byte_level: bool = False) -> Tokenizer:
    """Every letter is a piece; a word's later letters are ##letters."""
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"abcdefgh.", *(f"##{letter}" for letter in "abcdefgh.")]
    vocabulary = {name: number for number, name in enumerate(names)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    if byte_level:
        alphabet = {name: number for number, name in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
        tokenizer = Tokenizer(models.BPE({**alphabet, "[CLS]": 256, "[SEP]": 257}, []))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(name, tokenizer.token_to_id(name)) for name in ("[CLS]", "[SEP]")],
    )
    return tokenizer


def test_first_piece_of_each_word_is_labelled() -> None:
    encoded = encode_words([["ab", "c", "d.e"], ["h"]], letters(), 16)
    assert [words.tolist() for words in encoded.words] == [[-1, 0, -1, 1, 2, -1, -1, -1], [-1, 0, -1]]
    labels = encoded.labels([np.array([7, 8, 9]), np.array([5])])
    assert labels[0].tolist() == [IGNORED, 7, IGNORED, 8, 9, IGNORED, IGNORED, IGNORED]
    assert encoded.token_type_ids is not None
    assert encoded.counts.tolist() == [3, 1]


@pytest.mark.parametrize("byte_level", [False, True])
def test_places_count_words_over_sentences_and_leave_out_a_word_without_a_piece(byte_level: bool) -> None:
    words = [["ab", "\u0007", "é" if byte_level else "c"], ["d"]]
    encoded = encode_words(words, letters(byte_level=byte_level), 32)
    windows, pieces, judged = (array.tolist() for array in encoded.places())
    assert judged == ([0, 1, 2, 3] if byte_level else [0, 2, 3])
    assert windows == [0] * (len(judged) - 1) + [1]
    assert [int(encoded.words[w][p]) for w, p in zip(windows, pieces, strict=True)][-1] == 0


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.text("abcdefgh", min_size=1, max_size=6), min_size=1, max_size=20),
    st.integers(min_value=3, max_value=14),
)
def test_every_word_is_judged_once_when_windows_overlap(words: list[str], max_length: int) -> None:
    encoded = encode_words([words], letters(), max_length)
    assert encoded.lengths().max() <= max_length
    judged = np.concatenate([window[window >= 0] for window in encoded.words])
    assert sorted(judged.tolist()) == list(range(len(words)))
    whole = encode_words([words], letters(), 512)
    first = {int(word): int(ids) for word, ids in zip(whole.words[0], whole.input_ids[0], strict=True)}
    for window, ids in zip(encoded.words, encoded.input_ids, strict=True):
        assert all(first[int(word)] == int(one) for word, one in zip(window, ids, strict=True) if word >= 0)


def test_word_is_judged_where_its_context_is_widest() -> None:
    encoded = encode_words([["a", "b", "c", "d", "e", "f", "g", "h"]], letters(), 7)  # 5 pieces, 1 shared
    windows = [window[window >= 0].tolist() for window in encoded.words]
    assert windows[0][0] == 0 and windows[-1][-1] == 7
    assert [word for window in windows for word in window] == list(range(8))


def test_length_without_room_is_refused() -> None:
    with pytest.raises(UsageError, match="at least 3 tokens, 2 of them special, got 2"):
        encode_words([["a"]], letters(), 2)
