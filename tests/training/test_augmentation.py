"""Augmented rows: what may be replaced, by what, how often, and what stays; and a run on them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import save_model, tiny_tokenizer
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoConfig, AutoModelForMaskedLM, PreTrainedModel

from qexport.errors import DataError, UnsupportedModelError, UsageError
from qexport.training.augmentation import Word, augment_split, copies, is_replaceable
from qexport.training.candidates import CandidateFinder
from qexport.training.config import TrainConfig
from qexport.training.glove import WordVectors
from qexport.training.rows import Split
from qexport.training.trainer import train

Files = tuple[Path, Path]


def words_of(text: str, choices: dict[str, tuple[str, ...]]) -> list[Word]:
    found, end = [], 0
    for part in text.split(" "):
        if part in choices:
            found.append(Word(end, end + len(part), choices[part]))
        end += len(part) + 1
    return found


@given(
    st.lists(st.sampled_from(["the", "film", "was", "good", "x9", "dull"]), min_size=1, max_size=8),
    st.integers(0, 6),
    st.floats(0, 1),
    st.integers(0, 5),
)
@settings(max_examples=60, deadline=None)
def test_copies_differ_and_keep_every_other_word(
    parts: list[str], count: int, probability: float, seed: int
) -> None:
    text, choices = " ".join(parts), {"film": ("plot", "film"), "good": ("fine", "great"), "dull": ("dull",)}

    def draw() -> list[str]:
        generator = np.random.default_rng(seed)
        words = words_of(text, choices)
        return copies(text, words, count=count, probability=probability, generator=generator)

    found = draw()
    assert found == draw() and len(found) <= count and len({text, *found}) == len(found) + 1
    for other in found:
        pairs = list(zip(parts, other.split(" "), strict=True))
        assert all(new == old or new in choices.get(old, ()) for old, new in pairs)
    if probability == 0 or not set(parts) & {"film", "good"}:
        assert not found


def test_share_of_replaced_words_is_the_probability() -> None:
    text = " ".join(["good"] * 5000)
    words = words_of(text, {"good": ("fine",)})
    [other] = copies(text, words, count=1, probability=0.4, generator=np.random.default_rng(0))
    assert other.count("fine") / 5000 == pytest.approx(0.4, abs=0.03)  # four deviations


def test_pairs_are_replaced_one_text_at_a_time_and_labels_are_kept() -> None:
    split = Split("train", ["good film", "so"], ["dull plot", "x"], np.array([1, 0]))
    choices = {"good": ("fine",), "dull": ("poor",)}
    columns = [split.texts, split.pairs or []]
    words = [[words_of(text, choices) for text in column] for column in columns]
    grown = augment_split(split, words, count=3, probability=1.0, seed=0)
    assert list(zip(grown.texts, grown.pairs or [], grown.labels.tolist(), strict=True)) == [
        ("good film", "dull plot", 1),
        ("fine film", "dull plot", 1),
        ("good film", "poor plot", 1),
        ("so", "x", 0),
    ]


def test_draws_of_a_row_do_not_depend_on_the_rows_before() -> None:
    rows = [f"good film {number}" for number in range(4)]
    choices = {"good": ("fine", "great", "superb"), "film": ("plot", "story")}

    def texts(first: str) -> list[str]:
        split = Split("train", [first, *rows], None, np.zeros(5, np.int64))
        words = [[words_of(text, choices) for text in split.texts]]
        return augment_split(split, words, count=4, probability=0.5, seed=1).texts

    assert texts("so")[1:] == [text for text in texts("good")[1:] if text[-1].isdigit()]


def test_stop_words_numbers_and_signs_are_not_replaced() -> None:
    assert [is_replaceable(word) for word in ("film", "Über", "The", "x9", "n't", "", "42")] == [
        True, True, False, False, False, False, False,
    ]  # fmt: skip


def masked_lm(vocabulary: int = 40) -> PreTrainedModel:
    torch.manual_seed(0)
    sizes = {"num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 20, "intermediate_size": 24}
    config = AutoConfig.for_model("bert", vocab_size=vocabulary, max_position_embeddings=40, **sizes)
    config.initializer_range = 0.5
    factory: Any = AutoModelForMaskedLM
    model: PreTrainedModel = factory.from_config(config).eval()
    return model


def tokenizer() -> Tokenizer:
    """The tiny one with word pieces and a mask."""
    words = ["story", "##s", "[MASK]"]
    order = {word: index for index, word in enumerate(dict.fromkeys([*_ordered(), *words]))}
    result = Tokenizer(models.WordPiece(order, unk_token="[UNK]"))
    result.pre_tokenizer = pre_tokenizers.Whitespace()
    result.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    result.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    return result


def _ordered() -> list[str]:
    vocabulary = tiny_tokenizer().get_vocab()
    return sorted(vocabulary, key=lambda word: vocabulary[word])


def test_candidates_are_the_likeliest_whole_words_at_the_masked_place(tmp_path: Path) -> None:
    model, tokens = masked_lm(), tokenizer()
    finder = CandidateFinder(model, tokens, count=6, cache=tmp_path)
    text = "The  film was good!"
    [found] = finder.find([text])
    assert [text[word.start : word.end] for word in found] == ["film", "good"]  # stop words and signs stay
    pair = tokens.encode(text, text)
    ids = torch.tensor([pair.ids])
    ids[0, 4] = tokens.token_to_id("[MASK]")  # [CLS] The film was good !
    assert pair.tokens[4] == "good"
    with torch.no_grad():
        types = torch.tensor([pair.type_ids])
        logits = model(input_ids=ids, token_type_ids=types, attention_mask=torch.ones_like(ids)).logits
    names = [tokens.id_to_token(token) or "[" for token in logits[0, 4].topk(6).indices.tolist()]
    assert found[1].choices == tuple(name for name in names if name[0] not in "[#")


def test_results_come_from_the_cache_and_a_half_written_line_is_found_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = ["film was good", "plot is dull", "film was good"]
    finder = CandidateFinder(masked_lm(), tokenizer(), cache=tmp_path)
    first = finder.find(texts)
    assert first[0] == first[2]
    [file] = tmp_path.rglob("*.jsonl")
    asked: list[str] = []
    search = finder._search

    def spy(some: list[str]) -> list[list[Word]]:
        asked.extend(some)
        return search(some)

    monkeypatch.setattr(finder, "_search", spy)
    assert finder.find(texts) == first and not asked
    file.write_text(file.read_text().rstrip()[:-7])
    assert finder.find(texts) == first and asked == ["plot is dull"]
    assert finder.find(texts) == first and len(asked) == 1
    other = CandidateFinder(masked_lm(), tokenizer(), count=3, cache=tmp_path)
    other.find(texts[:1])
    assert len(list(tmp_path.rglob("*.jsonl"))) == 2  # another question, another file


def test_text_longer_than_the_model_is_cut_before_it_is_read(tmp_path: Path) -> None:
    finder = CandidateFinder(masked_lm(), tokenizer(), cache=tmp_path)
    [found] = finder.find([" ".join(["film"] * 60)])
    assert 10 < len(found) < 20  # half of 40 positions, less the special tokens


def test_words_of_several_tokens_take_neighbours_of_word_vectors_or_stay(tmp_path: Path) -> None:
    file = tmp_path / "glove.txt"
    file.write_text("storys 1 0\ntale 0.9 0.1\nplot 0.5 0.5\ncar 0 1\n")
    vectors = WordVectors(file)
    assert vectors.nearest("storys", 2) == ("tale", "plot") and vectors.nearest("none", 2) == ()
    model, tokens = masked_lm(), tokenizer()
    [without] = CandidateFinder(model, tokens, cache=tmp_path).find(["storys"])
    finder = CandidateFinder(model, tokens, count=2, vectors=vectors, cache=tmp_path)
    [with_them] = finder.find(["storys"])
    assert not without and with_them == [Word(0, 6, ("tale", "plot"))]


def test_words_with_blanks_among_word_vectors_are_words(tmp_path: Path) -> None:
    """The largest public file has some, such as ". . ."."""
    (tmp_path / "glove.txt").write_text("tale 1 0\n. . . 0 1\nplot 0.9 0.1\n")
    vectors = WordVectors(tmp_path / "glove.txt")
    assert vectors.nearest("tale", 1) == ("plot",) and vectors.nearest(". . .", 1) == ("plot",)


@pytest.mark.parametrize("content", ["", "word\n", "a 1 2\nb 1\n", "a 1 x\n"])
def test_file_that_holds_no_word_vectors_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "glove.txt").write_text(content)
    with pytest.raises(DataError, match="correct --glove"):
        WordVectors(tmp_path / "glove.txt")


def config(files: Files, output: Path, **values: Any) -> TrainConfig:
    defaults: dict[str, Any] = {"method": "fp32", "batch_size": 16, "max_steps": 2, "threads": 1}
    return TrainConfig(train_file=files[0], eval_file=files[1], output=output, **{**defaults, **values})


def test_run_trains_on_augmented_rows_and_says_so_in_its_report(reviews: Files, tmp_path: Path) -> None:
    words = tmp_path / "words"
    masked_lm().save_pretrained(words)
    tokenizer().save(str(words / "tokenizer.json"))
    start = save_model(tmp_path / "start")
    values = {"model": str(start), "augment": 2, "augment_model": str(words)}
    lines: list[str] = []
    train(config(reviews, tmp_path / "more", **values), say=lines.append)
    assert any(line.startswith("augmentation: ") and "copies of 256 rows" in line for line in lines)
    found = json.loads((tmp_path / "more" / "qexport_train.json").read_text())["data"]
    train(config(reviews, tmp_path / "plain", model=str(start)))
    data = json.loads((tmp_path / "plain" / "qexport_train.json").read_text())["data"]
    assert data["augmentation"] is None
    assert found["fingerprint"] == data["fingerprint"] and found["train_rows"] > data["train_rows"]
    record = found["augmentation"]
    assert record["rows"] == 256 and record["rows"] + record["added"] == found["train_rows"]
    assert (record["model"], record["copies"], record["candidates"]) == (str(words), 2, 15)
    assert len(record["fingerprint"]) == 64


def test_model_without_a_head_for_masked_words_is_refused(reviews: Files, tmp_path: Path) -> None:
    start = save_model(tmp_path / "start")
    with pytest.raises(UnsupportedModelError, match=r"no head for masked words .*--augment-model") as caught:
        train(config(reviews, tmp_path / "x", model=str(start), augment=2))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"augment_model": "m"}, "--augment-model m has no meaning without --augment"),
        ({"glove": Path("g")}, "--glove g has no meaning without --augment"),
        ({"augment": 0}, "--augment must be greater than 0"),
        ({"augment": 1, "augment_probability": 1.5}, r"--augment-probability must be in 0\.\.1, got 1\.5"),
    ],
)
def test_options_that_cannot_be_are_refused(reviews: Files, values: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        config(reviews, Path("x"), **values)
