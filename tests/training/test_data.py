"""load_task_data, encode and pad: own files, samples, label order, the cache, batches."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from qexport.errors import DataError, UnknownNameError, UnsupportedModelError, UsageError
from qexport.training import data as data_module
from qexport.training.data import Encoded, Split, encode, load_task_data, load_tokenizer, pad, pad_token_id


def word_tokenizer(*, pair_types: bool = True) -> Tokenizer:
    """Give every word an id of its own, in BERT's template: [CLS] a [SEP] b [SEP]."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(f"w{number}" for number in range(50)), "a", "b"]
    tokenizer = Tokenizer(
        models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="[UNK]")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    second = 1 if pair_types else 0
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair=f"[CLS] $A [SEP] $B:{second} [SEP]:{second}",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return tokenizer


def split_of(texts: list[str], pairs: list[str] | None = None) -> Split:
    return Split("train", texts, pairs, np.arange(len(texts), dtype=np.int64) % 2)


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, str], Path]:
    def write(name: str, content: str) -> Path:
        path = tmp_path / name
        path.write_text(content, encoding="utf-8")
        return path

    return write


# Own files


def test_own_csv_takes_labels_from_train_in_sorted_order(write: Callable[[str, str], Path]) -> None:
    train = write("train.csv", 'text,label\n"good, really",up\nbad,down\nso so,flat\n')
    evaluation = write("dev.csv", "text,label\nfine,up\npoor,down\n")
    data = load_task_data(None, train_file=train, eval_file=evaluation)
    assert data.task.labels == ("down", "flat", "up")
    assert data.train is not None
    assert data.train.texts == ["good, really", "bad", "so so"]
    assert data.train.labels.tolist() == [2, 0, 1]
    assert data.train.labels.dtype == np.int64
    assert data.evals["validation"].labels.tolist() == [2, 0]
    assert data.source == "own files: train.csv, dev.csv"


def test_digits_of_other_scripts_are_names(write: Callable[[str, str], Path]) -> None:
    """Python calls them digits, and so it does the 5 of --5, yet none is a number."""
    train = write("train.csv", "text,label\na,²\nb,--5\nc,1\n")
    data = load_task_data(None, train_file=train, eval_file=train, text_column="text", label_column="label")
    assert data.task.labels == ("--5", "1", "²")


def test_own_number_labels_are_sorted_by_value(write: Callable[[str, str], Path]) -> None:
    lines = "".join(f"text {number},{number}\n" for number in (10, 9, 2))
    train = write("train.csv", "text,label\n" + lines)
    data = load_task_data(None, train_file=train, eval_file=train)
    assert data.task.labels == ("2", "9", "10")
    assert data.evals["validation"].labels.tolist() == [2, 1, 0]


def test_own_pairs_are_found_by_their_usual_names_and_by_option(write: Callable[[str, str], Path]) -> None:
    usual = write("usual.tsv", 'sentence1\tsentence2\tlabel\na "quote\tb\tyes\nc\td\tno\n')
    data = load_task_data(None, train_file=usual, eval_file=usual)
    assert data.train is not None
    assert (data.train.texts, data.train.pairs) == (['a "quote', "c"], ["b", "d"])
    named = write("named.jsonl", '{"x": "a", "y": "b", "z": 1}\n\n{"x": "c", "y": "d", "z": 0}\n')
    data = load_task_data(
        None, train_file=named, eval_file=named, text_column="x", text_pair_column="y", label_column="z"
    )
    assert data.train is not None
    assert (data.train.texts, data.train.pairs, data.train.labels.tolist()) == (
        ["a", "c"],
        ["b", "d"],
        [1, 0],
    )
    assert data.task.columns == ("x", "y")


def test_own_regression_labels_are_float32(write: Callable[[str, str], Path]) -> None:
    path = write("data.csv", "text,label\na,1.5\nb,-2\n")
    data = load_task_data(None, train_file=path, eval_file=path, regression=True)
    assert data.task.kind == "regression"
    assert data.evals["validation"].labels.dtype == np.float32
    assert data.evals["validation"].labels.tolist() == [1.5, -2.0]


def test_given_labels_fix_the_order_and_are_checked(write: Callable[[str, str], Path]) -> None:
    path = write("data.csv", "text,label\na,up\nb,down\n")
    data = load_task_data(None, eval_file=path, labels=["up", "down"], need_train=False)
    assert data.train is None
    assert data.evals["validation"].labels.tolist() == [0, 1]
    with pytest.raises(
        DataError, match=r"data\.csv, line 3: the label of task custom must be one of 'up', 'flat'"
    ):
        load_task_data(None, eval_file=path, labels=["up", "flat"], need_train=False)


def test_registered_task_reads_own_files_with_hub_and_glue_headers(write: Callable[[str, str], Path]) -> None:
    hub = write("hub.csv", "sentence1,sentence2,label\na,b,equivalent\nc,d,0\n")
    glue = write("glue.tsv", "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t7\t8\ta\tb\n0\t7\t8\tc\td\n")
    data = load_task_data("mrpc", train_file=hub, eval_file=hub)
    again = load_task_data("mrpc", train_file=glue, eval_file=glue)
    assert data.task.name == "mrpc"
    assert data.evals["validation"].labels.tolist() == [1, 0]
    assert again.fingerprint == data.fingerprint  # the same rows, whatever the file's layout


def test_registered_task_refuses_files_with_another_number_of_texts(
    write: Callable[[str, str], Path],
) -> None:
    path = write("one.csv", "text,label\na,1\nb,0\n")
    with pytest.raises(UsageError, match=r"mrpc has 2 text column\(s\), .*one\.csv gives 1"):
        load_task_data("mrpc", train_file=path, eval_file=path)


@pytest.mark.parametrize(
    ("name", "content", "options", "message"),
    [
        ("d.csv", "text,label\na,up\nb,\n", {}, r"line 3: column 'label' must hold a label"),
        ("d.csv", "text,label\na,up\n", {}, "at least two labels"),
        ("d.csv", "text,label\n" + "".join(f"t,{i / 7}\n" for i in range(150)), {}, "150 different values"),
        ("d.csv", "text,label\na,high\n", {"regression": True}, r"line 2: .* finite number, got 'high'"),
        ("d.csv", "text,label\na,nan\n", {"regression": True}, "finite number, got 'nan'"),
        ("d.csv", "text,label\na,1e40\n", {"regression": True}, "finite number, got '1e40'"),
        (
            "d.csv",
            "body,label\na,up\n",
            {},
            r"no column 'text' or 'sentence', its columns are 'body', 'label'",
        ),
        (
            "d.csv",
            "text,y\na,up\n",
            {},
            "no column 'label', its columns are 'text', 'y'; correct --label-column",
        ),
        ("d.csv", "text,label\na,up\n", {"text_pair_column": "b"}, "no column 'b'.*--text-pair-column"),
    ],
)
def test_own_files_are_refused_with_a_reason(
    write: Callable[[str, str], Path], name: str, content: str, options: dict[str, Any], message: str
) -> None:
    path = write(name, content)
    with pytest.raises((DataError, UsageError), match=message):
        load_task_data(None, train_file=path, eval_file=path, **options)


def test_eval_label_unknown_to_train_is_refused_with_file_and_line(write: Callable[[str, str], Path]) -> None:
    train = write("train.csv", "text,label\na,up\nb,down\n")
    evaluation = write("dev.csv", "text,label\na,up\nb,sideways\n")
    with pytest.raises(DataError, match=r"dev\.csv, line 3: .* 'down', 'up', .*got 'sideways'"):
        load_task_data(None, train_file=train, eval_file=evaluation)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"task_name": None}, UsageError, "no data was named"),
        ({"task_name": "sst3"}, UnknownNameError, "did you mean 'sst2'"),
        ({"task_name": None, "eval_file": Path("d.csv")}, UsageError, "needs --data"),
        ({"task_name": None, "train_file": Path("d.csv")}, UsageError, "need --eval"),
        ({"task_name": "rotten_tomatoes", "data_dir": Path()}, UsageError, "not a GLUE task"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        load_task_data(**arguments)


# Samples and label order


def glue_folder(root: Path, name: str, train: str, dev: str) -> Path:
    home = root / "glue" / name
    home.mkdir(parents=True)
    (home / "train.tsv").write_text(train, encoding="utf-8")
    (home / "dev.tsv").write_text(dev, encoding="utf-8")
    return root / "glue"


def test_samples_are_seeded_and_keep_the_order_of_rows(tmp_path: Path) -> None:
    lines = "sentence\tlabel\n" + "".join(f"text {number}\t{number % 2}\n" for number in range(100))
    glue = glue_folder(tmp_path, "SST-2", lines, lines)

    def load(seed: int, **counts: Any) -> data_module.TaskData:
        return load_task_data("sst2", data_dir=glue, seed=seed, **counts)

    some = load(1, train_samples=10, eval_samples=7)
    assert some.train is not None
    numbers = [int(text.split()[1]) for text in some.train.texts]
    assert numbers == sorted(set(numbers))
    assert len(numbers) == 10
    assert some.train.labels.tolist() == [number % 2 for number in numbers]
    assert len(some.evals["validation"]) == 7
    assert load(1, train_samples=10, eval_samples=7).fingerprint == some.fingerprint
    assert load(2, train_samples=10, eval_samples=7).fingerprint != some.fingerprint
    assert load(1, train_samples=1000).fingerprint == load(2).fingerprint
    with pytest.raises(UsageError, match="--train-samples must be at least 1"):
        load(1, train_samples=0)


NLI = "index\tsentence1\tsentence2\tlabel\n0\ta\tb\tentailment\n1\tc\td\tnot_entailment\n"


@pytest.mark.parametrize(
    ("labels", "expected_names", "expected_ids"),
    [
        (["entailment", "not_entailment"], ("entailment", "not_entailment"), [0, 1]),
        (["LABEL_0", "LABEL_1"], ("entailment", "not_entailment"), [0, 1]),
        (["ENTAILMENT", "NOT_ENTAILMENT"], ("entailment", "not_entailment"), [0, 1]),
        (["not_entailment", "entailment"], ("not_entailment", "entailment"), [1, 0]),
    ],
)
def test_task_labels_follow_the_order_of_the_model(
    tmp_path: Path, labels: list[str], expected_names: tuple[str, ...], expected_ids: list[int]
) -> None:
    data = load_task_data("rte", data_dir=glue_folder(tmp_path, "RTE", NLI, NLI), labels=labels)
    assert data.task.labels == expected_names
    assert data.train is not None
    assert data.train.labels.tolist() == data.evals["validation"].labels.tolist() == expected_ids


def test_labels_of_another_task_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the model has 'negative', 'positive'"):
        load_task_data(
            "rte", data_dir=glue_folder(tmp_path, "RTE", NLI, NLI), labels=["negative", "positive"]
        )


def test_labels_are_not_reordered_where_f1_has_a_positive_class(tmp_path: Path) -> None:
    rows = "Quality\t#1 String\t#2 String\n1\ta\tb\n"
    glue = glue_folder(tmp_path, "MRPC", rows, rows)
    with pytest.raises(DataError, match="labels of task mrpc are 'not_equivalent', 'equivalent'"):
        load_task_data("mrpc", data_dir=glue, labels=["equivalent", "not_equivalent"])


# Tokens


def test_encode_gives_ids_types_and_lengths(tmp_path: Path) -> None:
    encoded = encode(split_of(["w0 w1", "w2"], ["w3", "w4 w5"]), word_tokenizer(), 16, tmp_path)
    assert [ids.tolist() for ids in encoded.input_ids] == [[2, 4, 5, 3, 7, 3], [2, 6, 3, 8, 9, 3]]
    assert encoded.token_type_ids is not None
    assert [types.tolist() for types in encoded.token_type_ids] == [[0, 0, 0, 0, 1, 1], [0, 0, 0, 1, 1, 1]]
    assert encoded.lengths().tolist() == [6, 6]
    assert encoded.labels.tolist() == [0, 1]


def test_encode_truncates_the_longer_text_first(tmp_path: Path) -> None:
    encoded = encode(split_of(["w0 w1 w2 w3 w4 w5"], ["w6 w7"]), word_tokenizer(), 8, tmp_path)
    assert encoded.input_ids[0].tolist() == [2, 4, 5, 6, 3, 10, 11, 3]


def test_encode_has_token_types_for_sentences_only_where_pairs_have_them(tmp_path: Path) -> None:
    single = split_of(["w0"])
    assert encode(single, word_tokenizer(), 8, tmp_path).token_type_ids is not None
    assert encode(single, word_tokenizer(pair_types=False), 8, tmp_path).token_type_ids is None


def test_encode_leaves_the_tokenizer_as_it_was(tmp_path: Path) -> None:
    tokenizer = word_tokenizer()
    tokenizer.enable_padding(length=5)
    before = tokenizer.to_str()
    assert encode(split_of(["w0"]), tokenizer, 8, tmp_path).lengths().tolist() == [3]
    assert tokenizer.to_str() == before


def test_encode_reads_the_cache_and_notices_every_change(tmp_path: Path) -> None:
    split, tokenizer = split_of(["w0 w1 w2", "w3"], ["w4", ""]), word_tokenizer()
    first = encode(split, tokenizer, 8, tmp_path)
    files = list(tmp_path.rglob("*.npz"))
    assert len(files) == 1
    written = files[0].stat().st_mtime_ns
    second = encode(split, tokenizer, 8, tmp_path)
    assert files[0].stat().st_mtime_ns == written
    for mine, stored in zip(first.input_ids, second.input_ids, strict=True):
        np.testing.assert_array_equal(mine, stored)
    assert first.token_type_ids is not None
    assert second.token_type_ids is not None
    for mine, stored in zip(first.token_type_ids, second.token_type_ids, strict=True):
        np.testing.assert_array_equal(mine, stored)
    encode(split, tokenizer, 9, tmp_path)
    encode(split, word_tokenizer(pair_types=False), 8, tmp_path)
    encode(split_of(["w0 w1", "w3"], ["w2 w4", ""]), tokenizer, 8, tmp_path)
    assert len(list(tmp_path.rglob("*.npz"))) == 4


@pytest.mark.parametrize("damage", [b"", b"not a zip", None])
def test_encode_goes_on_when_a_cached_file_is_damaged(
    tmp_path: Path, damage: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    split, tokenizer = split_of(["w0 w1"]), word_tokenizer()
    encode(split, tokenizer, 8, tmp_path)
    (path,) = tmp_path.rglob("*.npz")
    path.write_bytes(path.read_bytes()[:100] if damage is None else damage)
    assert encode(split, tokenizer, 8, tmp_path).input_ids[0].tolist() == [2, 4, 5, 3]
    assert "cannot be read" in caplog.text
    caplog.clear()
    encode(split, tokenizer, 8, tmp_path)
    assert not caplog.text  # the damaged file was replaced


def test_encode_goes_on_when_the_cache_cannot_be_written(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    encoded = encode(split_of(["w0"]), word_tokenizer(), 8, blocked)
    assert encoded.input_ids[0].tolist() == [2, 4, 3]
    assert "not cached" in caplog.text


def test_encode_uses_the_folder_named_by_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QEXPORT_CACHE", str(tmp_path / "here"))
    encode(split_of(["w0"]), word_tokenizer(), 8)
    assert list((tmp_path / "here").rglob("*.npz"))


def test_encode_refuses_a_length_without_room_for_text(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="at least 5 tokens, 3 of them special, got 4"):
        encode(split_of(["w0"], ["w1"]), word_tokenizer(), 4, tmp_path)


# Batches


@given(
    st.lists(st.lists(st.integers(1, 99), min_size=1, max_size=9), min_size=1, max_size=8), st.integers(0, 5)
)
@settings(max_examples=60, deadline=None)
def test_pad_then_mask_gives_the_rows_back(rows: list[list[int]], extra: int) -> None:
    encoded = Encoded(
        [np.array(row, dtype=np.int32) for row in rows],
        [np.array([value % 2 for value in row], dtype=np.int32) for row in rows],
        np.zeros(len(rows), dtype=np.int64),
    )
    order = list(range(len(rows)))[::-1]
    longest = max(len(row) for row in rows)
    batch = pad(encoded, order, pad_id=0, pad_to=longest + extra)
    assert {name: array.shape for name, array in batch.items()} == dict.fromkeys(
        ("input_ids", "attention_mask", "token_type_ids"), (len(rows), longest + extra)
    )
    assert all(array.dtype == np.int64 for array in batch.values())
    for place, index in enumerate(order):
        kept = batch["attention_mask"][place] == 1
        assert batch["input_ids"][place][kept].tolist() == rows[index]
        assert batch["token_type_ids"][place][kept].tolist() == [value % 2 for value in rows[index]]
        assert not batch["input_ids"][place][~kept].any()


def test_pad_uses_the_longest_row_and_the_given_ids() -> None:
    encoded = Encoded(
        [np.array([5, 6], np.int32), np.array([7], np.int32), np.array([1] * 9, np.int32)], None, np.zeros(3)
    )
    batch = pad(encoded, np.array([1, 0]), pad_id=11)
    assert batch["input_ids"].tolist() == [[7, 11], [5, 6]]
    assert batch["attention_mask"].tolist() == [[1, 0], [1, 1]]
    assert set(batch) == {"input_ids", "attention_mask"}
    with pytest.raises(UsageError, match="pad_to must be at least 9"):
        pad(encoded, [2], pad_id=0, pad_to=8)
    with pytest.raises(UsageError, match="at least one row"):
        pad(encoded, [], pad_id=0)


# Tokenizer folders


def test_load_tokenizer_reads_tokenizer_json(tmp_path: Path) -> None:
    word_tokenizer().save(str(tmp_path / "tokenizer.json"))
    assert load_tokenizer(tmp_path).encode("w0").ids == [2, 4, 3]


def test_load_tokenizer_refuses_a_missing_or_broken_file(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match=r"has no tokenizer\.json"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UnsupportedModelError, match=r"tokenizer\.json is not a tokenizer"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("config", "tokenizer_config", "expected"),
    [
        ({"pad_token_id": 9}, {"pad_token": "[SEP]"}, 9),
        ({"pad_token_id": None}, {"pad_token": "[SEP]"}, 3),
        (None, {"pad_token": {"content": "[SEP]"}}, 3),
        (None, {"pad_token": "<unknown>"}, 0),
        (None, None, 0),
    ],
)
def test_pad_token_id_looks_at_the_configs_first(
    tmp_path: Path, config: Any, tokenizer_config: Any, expected: int
) -> None:
    word_tokenizer().save(str(tmp_path / "tokenizer.json"))
    for name, content in (("config.json", config), ("tokenizer_config.json", tokenizer_config)):
        if content is not None:
            (tmp_path / name).write_text(json.dumps(content))
    assert pad_token_id(tmp_path) == expected


def test_pad_token_id_refuses_a_folder_without_one(tmp_path: Path) -> None:
    Tokenizer(models.WordLevel({"x": 0}, unk_token="x")).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UnsupportedModelError, match="has no padding token"):
        pad_token_id(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UnsupportedModelError, match=r"config\.json must be valid JSON"):
        pad_token_id(tmp_path)


def test_data_modules_do_not_import_torch_or_transformers() -> None:
    code = (
        "import sys, qexport.training.data, qexport.training.metrics; "
        "print([name for name in ('torch', 'transformers', 'datasets', 'sklearn') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
