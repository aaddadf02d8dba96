"""Reading CSV, TSV and JSONL, and turning rows into splits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qexport.errors import DataError
from qexport.training.rows import FileColumns, Row, Split, make_split, read_rows
from qexport.training.tasks import TASKS, custom_task

TEXT = FileColumns(("text",), "label")
YES_NO = custom_task(labels=("no", "yes"))


def file(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_csv_keeps_quotes_line_ends_and_unusual_characters_inside_a_field(tmp_path: Path) -> None:
    content = '\ufefftext,label\r\n"a ""b"",\nc",yes\r\nx\x85y\u2028z,no\r\n\r\n'
    assert [
        (line, row["text"], row["label"]) for line, row in read_rows(file(tmp_path, "d.csv", content))
    ] == [
        (3, 'a "b",\nc', "yes"),
        (4, "x\x85y\u2028z", "no"),
    ]


def test_tsv_has_no_quotes_and_keeps_a_lone_carriage_return(tmp_path: Path) -> None:
    rows = read_rows(file(tmp_path, "d.tsv", 'text\tlabel\n"unpaired\tyes\na\rb\tno\r\n'))
    assert [row["text"] for _, row in rows] == ['"unpaired', "a\rb"]
    assert rows[1][1]["label"] == "no"


def test_jsonl_keeps_types_and_line_numbers(tmp_path: Path) -> None:
    rows = read_rows(
        file(tmp_path, "d.jsonl", '{"text": "a\\nb", "label": true}\n\n{"text": "c", "label": 1}\n')
    )
    assert rows == [(1, {"text": "a\nb", "label": True}), (3, {"text": "c", "label": 1})]


@given(st.lists(st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1), min_size=1, max_size=5))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_tsv_gives_back_any_text_without_control_characters(tmp_path: Path, texts: list[str]) -> None:
    content = "text\tlabel\n" + "".join(f"{text}\tyes\n" for text in texts)
    split = make_split("train", YES_NO, Path("d.tsv"), read_rows(file(tmp_path, "d.tsv", content)), TEXT)
    assert split.texts == texts


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("d.csv", "", "is empty"),
        ("d.csv", "text,label\n", "holds no rows"),
        ("d.jsonl", "\n\n", "holds no rows"),
        ("d.csv", "text,label\na,b,c\n", "line 2: a row must have the header's 2 columns, got 3"),
        ("d.tsv", "text\tlabel\na\n", "line 2: a row must have the header's 2 columns, got 1"),
        ("d.csv", "text,label,text\na,b,c\n", "'text' comes twice"),
        ("d.csv", 'text,label\na,"b\n', "not valid CSV"),
        ("d.csv", b"text,label\na,b\n\xff\xfe,c\n", "line 3: text must be UTF-8, byte 0xff is not"),
        ("d.jsonl", '{"text": "a"}\n{"text": \n', "line 2: not valid JSON"),
        ("d.jsonl", "[1]\n", "must be a JSON object .* got list"),
        ("d.parquet", "x", "must end in .csv, .tsv or .jsonl, got '.parquet'"),
    ],
)
def test_read_rows_refuses(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_rows(file(tmp_path, name, content))


def test_read_rows_refuses_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.csv does not exist"):
        read_rows(tmp_path / "none.csv")
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(DataError, match="is a folder"):
        read_rows(tmp_path / "folder.csv")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "a"}, "line 7 has no column 'label', its columns are 'text'"),
        ({"label": "yes"}, "line 7 has no column 'text'"),
        ({"text": 3, "label": "yes"}, "line 7: column 'text' must hold text, got 3"),
        ({"text": "\ud800", "label": "yes"}, "half of a surrogate pair"),
        ({"text": "a", "label": "maybe"}, "line 7: .* one of 'no', 'yes', '0', '1', got 'maybe'"),
        ({"text": "a", "label": 2}, "got 2"),
        ({"text": "a", "label": None}, "got None"),
    ],
)
def test_make_split_refuses_a_row_with_its_line(row: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        make_split("train", YES_NO, Path("d.jsonl"), [(7, row)], TEXT)


def test_make_split_reads_names_or_ids_as_asked() -> None:
    rows: list[Row] = [(1, {"text": "a", "label": "yes"}), (2, {"text": "b", "label": 1})]
    assert make_split("train", YES_NO, Path("d"), rows, TEXT).labels.tolist() == [1, 1]
    with pytest.raises(DataError, match="one of 'no', 'yes', got 1"):
        make_split("train", YES_NO, Path("d"), rows, TEXT, accept="names")
    with pytest.raises(DataError, match="one of '0', '1', got 'yes'"):
        make_split("train", YES_NO, Path("d"), rows, TEXT, accept="ids")


def test_number_labels_are_names_not_positions() -> None:
    stars = custom_task(labels=("1", "2", "3"))
    rows: list[Row] = [(1, {"text": "a", "label": "1"}), (2, {"text": "b", "label": 3})]
    assert make_split("train", stars, Path("d"), rows, TEXT).labels.tolist() == [0, 2]
    with pytest.raises(DataError, match="got '0'"):
        make_split("train", stars, Path("d"), [(1, {"text": "a", "label": "0"})], TEXT)


def test_digest_depends_on_every_text_pair_and_label_and_on_nothing_else() -> None:
    labels = np.array([0, 1], dtype=np.int64)
    base = Split("train", ["ab", "c"], None, labels)
    assert base.digest == Split("dev", ["ab", "c"], None, labels.copy()).digest
    others = [
        Split("train", ["a", "bc"], None, labels),
        Split("train", ["c", "ab"], None, labels),
        Split("train", ["ab", "c"], None, labels[::-1]),
        Split("train", ["ab", "c"], ["", ""], labels),
    ]
    assert len({base.digest, *(other.digest for other in others)}) == 5


def test_regression_split_takes_numbers_as_text_or_json() -> None:
    columns = FileColumns(("sentence1", "sentence2"), "score")
    rows: list[Row] = [
        (1, {"sentence1": "a", "sentence2": "b", "score": "3.800"}),
        (2, {"sentence1": "c", "sentence2": "d", "score": 5}),
    ]
    split = make_split("train", TASKS["stsb"], Path("d"), rows, columns)
    assert split.labels.dtype == np.float32
    assert split.labels.tolist() == [np.float32(3.8), 5.0]
    with pytest.raises(DataError, match="finite number, got True"):
        make_split(
            "train",
            TASKS["stsb"],
            Path("d"),
            [(1, {"sentence1": "a", "sentence2": "b", "score": True})],
            columns,
        )
