"""Question answering from SQuAD files to answers of an exported student, through the command line."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import jsonschema
import numpy as np
import pytest
import torch
from required import missing
from tiny_models import save_model
from tiny_squad import write_questions
from transformers import AutoModelForQuestionAnswering

import qexport
from qexport.cli import main
from qexport.errors import DataError, UnsupportedModelError
from qexport.serving.report import json_schema
from qexport.serving.session import Session

if TYPE_CHECKING:
    from conftest import Trail

CONTEXT = "the film is very good so"


@dataclass(frozen=True)
class Asked:
    """Folders of one walk."""

    train: Path
    evaluation: Path
    teacher: Path
    student: Path
    onnx: Path


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory, run: Callable[..., None]) -> Asked:
    """A teacher and a ternary student of questions some of which have no answer."""
    root = tmp_path_factory.mktemp("asked")
    os.environ.setdefault("QEXPORT_CACHE", str(root / "cache"))
    encoder = save_model(root / "encoder", head=AutoModelForQuestionAnswering)
    settings = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "model_max_length": 40,
                "tokenizer_class": "PreTrainedTokenizerFast"}  # fmt: skip
    (encoder / "tokenizer_config.json").write_text(json.dumps(settings))
    made = Asked(
        train=write_questions(root / "train.json", 12, seed=1, empty=0.3),
        evaluation=write_questions(root / "eval.json", 12, 4, seed=2, empty=0.3),
        teacher=root / "teacher", student=root / "student", onnx=root / "onnx",
    )  # fmt: skip
    data = ("--data", made.train, "--eval", made.evaluation)
    common = (*data, "--batch-size", 16, "--lr", 5e-3, "--threads", 1, "--max-length", 16)
    run("train", "--method", "fp32", "--model", encoder, "-o", made.teacher, "--epochs", 8, *common)
    run(
        "train",
        "--method",
        "ternarybert",
        "--teacher",
        made.teacher,
        "-o",
        made.student,
        "--epochs",
        4,
        *common,
    )
    run("to-onnx", made.student, made.onnx)
    return made


def test_both_learned_and_the_threshold_travels_with_the_file(asked: Asked) -> None:
    teacher, student = (
        json.loads((folder / "qexport_train.json").read_text()) for folder in (asked.teacher, asked.student)
    )
    assert teacher["metrics"]["validation/f1"] >= 0.9
    assert student["metrics"]["validation/f1"] >= 0.7
    assert (student["kind"], student["main_metric"], student["labels"]) == ("span", "f1", [])
    assert "held out for the threshold of the empty answer" in student["data"]["source"]
    manifest = json.loads((asked.onnx / "qexport.json").read_text())
    assert manifest["kind"] == "span" and manifest["decoding"] == student["decoding"]
    assert manifest["decoding"].keys() == {"null_threshold"}
    assert manifest["parity"]["agreement"] == 1.0


def test_verify_counts_questions_and_agrees_with_pytorch(
    asked: Asked, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["verify", str(asked.onnx), "--eval", str(asked.evaluation), "--targets", "stock,reference",
             "--baseline", "none", "--no-latency", "--min-agreement", "99",
             "--report", str(tmp_path / "report"), "--json"]  # fmt: skip
    assert main(words) == 0
    report = json.loads(capsys.readouterr().out)
    jsonschema.validate(report, json_schema())
    (rows,) = report["data"]
    assert (rows["kind"], rows["item"], rows["rows"], rows["main_metric"]) == ("span", "question", 48, "f1")
    pairs = {(item["engine"], item["against"]): item for item in report["parity"]}
    assert pairs["stock", "student"]["agreement"] == 1.0
    assert pairs["stock", "student"]["rows"] == 48
    assert 0 < pairs["reference", "student"]["rows"] <= 8
    student = json.loads((asked.student / "qexport_train.json").read_text())["metrics"]
    found = next(item for item in report["accuracy"] if item["engine"] == "stock")
    for metric in found["metrics"]:
        assert metric["value"] == pytest.approx(student[f"validation/{metric['metric']}"], abs=1e-9)
        assert metric["low"] <= metric["value"] <= metric["high"]
    drop = next(item for item in report["drops"] if (item["engine"], item["against"]) == ("stock", "teacher"))
    assert drop["method"] == "paired bootstrap of 12 articles"
    page = (tmp_path / "report" / "report.html").read_text()
    assert "48 questions" in page and "Questions that differ" in page


def test_answers_come_with_their_place(
    asked: Asked, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = qexport.load_onnx(asked.onnx).answer("the film", CONTEXT)
    assert found.text == "good" and CONTEXT[found.start : found.end] == "good"
    assert 0 < found.score <= 1
    assert qexport.load_onnx(asked.onnx).answer("the film", "the film is very so").start is None
    assert main(["predict", str(asked.onnx), "--question", "the film", "--context", CONTEXT]) == 0
    assert capsys.readouterr().out.startswith("good  ")
    assert main(["predict", str(asked.onnx), "--question", "the film", "--context", CONTEXT, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["start"] == 17
    file = tmp_path / "context.txt"
    file.write_text(CONTEXT)
    assert main(["predict", str(asked.onnx), "--question", "the film", "--file", str(file)]) == 0
    assert capsys.readouterr().out.startswith("good  ")


def test_folder_loads_with_optimum_and_gives_the_same_answer(asked: Asked, tmp_path: Path) -> None:
    python = os.environ.get("QEXPORT_OPTIMUM_PYTHON")
    if not python:
        missing("QEXPORT_OPTIMUM_PYTHON must name a Python with optimum-onnx, see CONTRIBUTING.md")
    runner = str(Path(__file__).with_name("optimum_runner.py"))
    command = [python, runner, "--question", str(asked.onnx), "the film", CONTEXT]
    clean = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=clean, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    session = Session(asked.onnx)
    ours = session.run(session.encode(["the film"], [CONTEXT]))
    for name in ("start_logits", "end_logits"):
        np.testing.assert_allclose(found[name], ours[name], atol=1e-5, rtol=0)
    answer = session.answer("the film", CONTEXT)
    assert (found["pipeline"]["answer"], found["pipeline"]["start"]) == (answer.text, answer.start)


def test_what_cannot_be_answered_is_one_sentence(
    asked: Asked, trail: Trail, capsys: pytest.CaptureFixture[str]
) -> None:
    model = qexport.load_onnx(asked.onnx)
    with pytest.raises(DataError, match="the context is empty"):
        model.answer("the film", "  ")
    with pytest.raises(UnsupportedModelError, match="question answering model and gives no labels"):
        model.predict(["a film"])
    with pytest.raises(UnsupportedModelError, match="text classification model and gives no answers"):
        qexport.load_onnx(trail.onnx).answer("the film", CONTEXT)
    cases = {
        ("predict", asked.onnx, "--question", "film " * 40, "--context", "a film"): "leaves no room",
        ("predict", asked.onnx, "--question", "film"): "one of --context and --file",
        ("verify", asked.onnx, *trail.eval_data): "question answering model and custom a text classification",
        ("verify", trail.onnx, "--eval", asked.evaluation): "text classification model and custom a question",
        ("train", "--method", "ternarybert", "--teacher", trail.teacher, "--data", asked.train, "--eval",
         asked.evaluation, "-o", asked.train.parent / "never"): "is a sequence classifier, task custom needs",
    }  # fmt: skip
    for words, message in cases.items():
        assert main([str(word) for word in words]) in (2, 5)
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "model_type",
    ["roberta", *(pytest.param(name, marks=pytest.mark.slow) for name in ("distilbert", "electra"))],
)
def test_float_models_of_every_family_answer_alike(
    model_type: str, tmp_path: Path, run: Callable[..., None]
) -> None:
    folder = save_model(tmp_path / "model", model_type, head=AutoModelForQuestionAnswering)
    run("to-onnx", folder, tmp_path / "onnx")
    session = qexport.load_onnx(tmp_path / "onnx")
    assert session.kind.name == "span"
    batch = session.encode(["the film", "a plot"], ["is very good so", "was bad"])
    model = AutoModelForQuestionAnswering.from_pretrained(folder)
    with torch.no_grad():
        expected = model(**{name: torch.from_numpy(batch[name]) for name in session.inputs})
    mask = batch["attention_mask"].astype(bool)
    for name in ("start_logits", "end_logits"):
        np.testing.assert_allclose(session.run(batch)[name][mask], expected[name].numpy()[mask], atol=1e-4)
