"""Token classification from CoNLL files to entities in a text, through the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_tags import save_encoder, write_conll

import qexport
from qexport.cli import main

TEXT = "the film was  good great very bad"


@pytest.fixture(scope="module")
def trail(tmp_path_factory: pytest.TempPathFactory, run: Callable[..., None]) -> Path:
    """A ternary student, trained on labels, and its export."""
    root = tmp_path_factory.mktemp("tags")
    train, dev = write_conll(root / "train.conll", 64, seed=1), write_conll(root / "dev.conll", 24, seed=2)
    run("train", "--task", "ner", "--data", train, "--eval", dev, "--method", "lsq", "--bits", "2-2-8",
        "--model", save_encoder(root / "encoder"), "-o", root / "student", "--max-steps", 32,
        "--eval-steps", 16, "--batch-size", 16, "--lr", 5e-3, "--threads", 1)  # fmt: skip
    run("to-onnx", root / "student", root / "onnx")
    return root


def test_student_finds_entities_and_loads_as_a_token_classifier(trail: Path) -> None:
    from transformers import AutoModelForTokenClassification

    report = json.loads((trail / "student" / "qexport_train.json").read_text())
    assert report["metrics"]["validation/entity_f1"] >= 0.8
    assert report["labels"] == ["O", "B-LOC", "B-PER", "I-PER"]
    model = qexport.load(trail / "student")
    assert type(model).__name__ == "BertForTokenClassification"
    again = AutoModelForTokenClassification.from_pretrained(trail / "student")
    assert again.config.id2label[1] == "B-LOC"


def test_verify_counts_words_and_judges_by_entities(
    trail: Path, tmp_path: Path, verified: Callable[..., dict[str, Any]]
) -> None:
    report = verified(trail / "onnx", trail / "dev.conll", "--targets", "stock,reference")
    (data,) = report["data"]
    assert (data["kind"], data["item"], data["main_metric"]) == ("tokens", "word", "entity_f1")
    assert data["rows"] == 24 * 6 + 12
    agreement = next(p for p in report["parity"] if (p["engine"], p["against"]) == ("stock", "student"))
    assert (agreement["agreement"], agreement["rows"]) == (1.0, data["rows"])
    trained = json.loads((trail / "student" / "qexport_train.json").read_text())["metrics"]
    (ours,) = (item for item in report["accuracy"] if item["engine"] == "stock")
    values = {metric["metric"]: metric["value"] for metric in ours["metrics"]}
    assert values == {name: trained[f"validation/{name}"] for name in values}
    assert "words that differ" in (tmp_path / "report.html").read_text().lower()


def test_predict_prints_entities_with_their_places(trail: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", str(trail / "onnx"), TEXT, "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    entities = [(entity["label"], entity["text"]) for entity in found["entities"]]
    assert entities == [("PER", "good great"), ("LOC", "bad")]
    assert all(TEXT[e["start"] : e["end"]] == e["text"] and e["score"] > 0.3 for e in found["entities"])
    assert main(["predict", str(trail / "onnx"), TEXT]) == 0
    assert "14-24     good great" in capsys.readouterr().out


def test_entities_are_the_same_in_any_batch_and_on_the_kernels(trail: Path) -> None:
    texts = [TEXT, "", "bad", " ".join(["the film was fine very poor"] * 12)]
    model = qexport.load_onnx(trail / "onnx", batch_size=2)
    found: list[Any] = model.entities(texts)
    assert found[1] == []
    assert len(found[3]) >= 20  # the text takes several windows
    alone = qexport.load_onnx(trail / "onnx", kernels="off", batch_size=1)
    for one, text in zip(found, texts, strict=True):
        (expected,) = alone.entities([text])
        assert [(e.label, e.start, e.end) for e in one] == [(e.label, e.start, e.end) for e in expected]
        np.testing.assert_allclose([e.score for e in one], [e.score for e in expected], atol=1e-3)
    with pytest.raises(
        qexport.errors.UnsupportedModelError, match=r"token classification model; call entities"
    ):
        model.embed(texts)


def test_mistake_in_the_file_ends_in_2(
    trail: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "bad.conll"
    bad.write_text("the X Y O\nfilm X O\n")
    assert main(["verify", str(trail / "onnx"), "--eval", str(bad)]) == 2
    assert "bad.conll, line 2: a line must have 4 columns" in capsys.readouterr().err
