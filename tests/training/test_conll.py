"""CoNLL files and JSONL of tagged words: what is read, and what each mistake says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from qexport.errors import DataError
from qexport.training.conll import Sentence, read_sentences, scheme_of, tag_names

Write = Callable[[str, str], Path]

CONLL_2003 = """-DOCSTART- -X- -X- O

EU NNP B-NP B-ORG
rejects VBZ B-VP O
German JJ B-NP B-MISC

-DOCSTART- -X- -X- O

Peter NNP B-NP B-PER
Blackburn NNP I-NP I-PER
"""


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(name: str, content: str) -> Path:
        path = tmp_path / name
        path.write_bytes(content.encode())
        return path

    return write


def test_conll_2003_gives_sentences_with_the_last_column_as_tag(write: Write) -> None:
    path = write("train.conll", CONLL_2003)
    assert read_sentences(path) == [
        Sentence(["EU", "rejects", "German"], ["B-ORG", "O", "B-MISC"], [3, 4, 5]),
        Sentence(["Peter", "Blackburn"], ["B-PER", "I-PER"], [9, 10]),
    ]
    chunks = read_sentences(path, tag_column="2")
    assert chunks[0].tags == ["B-NP", "B-VP", "B-NP"]
    assert read_sentences(path, tag_column="-2") == chunks


def test_tabs_keep_blanks_in_words_and_comments_are_left_out(write: Write) -> None:
    path = write(
        "dev.tsv", "# id 1 domain=en\n1\tNew York\tB-LOC\r\n2\t#\tO\r\n\r\n# id 2 domain=en\n1\tis\tO"
    )
    found = read_sentences(path, word_column="1")
    assert [(sentence.words, sentence.tags) for sentence in found] == [
        (["New York", "#"], ["B-LOC", "O"]),
        (["is"], ["O"]),
    ]
    assert read_sentences(write("hash.conll", "# O\nhi O\n"))[0].words == ["#", "hi"]


def test_jsonl_gives_the_same_sentences(write: Write) -> None:
    path = write("a.jsonl", '{"tokens": ["EU", "rejects"], "ner_tags": ["B-ORG", "O"]}\n')
    assert read_sentences(path) == [Sentence(["EU", "rejects"], ["B-ORG", "O"], [1, 1])]
    numbers = write("b.jsonl", '{"words": ["EU"], "labels": [1]}\n')
    assert read_sentences(numbers, labels=("O", "B-ORG"))[0].tags == ["B-ORG"]
    with pytest.raises(DataError, match=r"b.jsonl, line 1: tags must be names such as B-PER, got 1"):
        read_sentences(numbers)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.conll", "EU B-ORG\nrejects\n", r"a.conll, line 2: a line must have 2 columns .* got 1"),
        ("a.conll", "\nEU\n", r"a.conll, line 2: a line must have a word and its tag, got 1"),
        ("a.conll", "EU B-ORG\nrejects VBZ\n", r"line 2: a tag must be O, or B-, .* got 'VBZ'"),
        ("a.conll", "EU U-ORG\n", r"line 1: .* 'U-ORG'; write L- as E- and U- as S-"),
        ("a.tsv", "EU\tB-ORG\n \tO\n", r"line 2: the word is empty"),
        ("a.conll", "\n\n", r"a.conll holds no sentences"),
        ("a.jsonl", '{"tokens": ["EU"], "ner_tags": ["O", "O"]}', r"line 1: .* 1 words and 2 tags"),
        ("a.jsonl", '{"tokens": "EU", "ner_tags": ["O"]}', r"line 1: 'tokens' must hold a list"),
        ("a.jsonl", '{"tokens": [7], "ner_tags": ["O"]}', r"line 1: a word must be text, got 7"),
    ],
)
def test_mistake_names_file_and_line(write: Write, name: str, content: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_sentences(write(name, content))


def test_column_that_is_none_is_refused(write: Write) -> None:
    path = write("a.conll", CONLL_2003)
    with pytest.raises(DataError, match=r"has 4 columns, --label-column 4 is none of them"):
        read_sentences(path, tag_column="4")
    with pytest.raises(DataError, match=r"--text-column must be the number of a column .* got 'word'"):
        read_sentences(path, word_column="word")


@pytest.mark.parametrize(
    ("tags", "scheme"),
    [
        ("B-PER I-PER O B-PER B-LOC", "IOB2"),
        ("I-PER I-PER B-PER O I-LOC", "IOB1"),
        ("I-PER O I-LOC I-PER", "IOB1"),
        ("B-PER E-PER S-LOC O", "IOBES"),
        ("B-PER O", "IOB2"),
    ],
)
def test_scheme_is_told_from_the_tags(tags: str, scheme: str) -> None:
    names = tags.split()
    assert scheme_of(Path("a"), [Sentence(names, names, list(range(len(names))))]) == scheme


@pytest.mark.parametrize(
    ("tags", "message"),
    [
        ("B-PER O I-PER", r"a: line 3 begins an entity with I-PER, which only IOB1 does, line 1 .* B-PER"),
        ("S-PER I-LOC", r"a, line 2: I-LOC must follow a word of the same entity in IOBES"),
        ("B-PER E-PER I-PER", r"a, line 3: I-PER must follow"),
        ("O O", r"a: every tag is O"),
    ],
)
def test_tags_of_no_scheme_are_refused_with_their_lines(tags: str, message: str) -> None:
    names = tags.split()
    with pytest.raises(DataError, match=message):
        scheme_of(Path("a"), [Sentence(names, names, list(range(1, len(names) + 1)))])


def test_tags_come_with_o_first_then_by_type(write: Write) -> None:
    sentences = read_sentences(write("train.conll", CONLL_2003))
    assert tag_names(sentences) == ("O", "B-MISC", "B-ORG", "B-PER", "I-PER")
