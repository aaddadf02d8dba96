"""A tiny teacher, student and exports, made once through the command line itself."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from tiny_models import save_model, write_reviews

from qexport.cli import main
from qexport.serving.report import json_schema


@dataclass(frozen=True)
class Trail:
    """Folders of one walk from data to exported files."""

    root: Path
    encoder: Path
    train_file: Path
    eval_file: Path
    teacher: Path
    student: Path
    teacher_onnx: Path
    onnx: Path

    @property
    def data(self) -> list[str]:
        """The options that name the data, for `train`."""
        return ["--data", str(self.train_file), *self.eval_data]

    @property
    def eval_data(self) -> list[str]:
        """The options that name the data, for `verify`."""
        return ["--eval", str(self.eval_file), "--text-column", "text", "--label-column", "label"]


@pytest.fixture(autouse=True)
def _quiet_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setenv("NO_COLOR", "1")


@pytest.fixture(scope="session")
def run() -> Callable[..., None]:
    """Run a command that must succeed."""

    def call(*words: object) -> None:
        assert main([str(word) for word in words]) == 0

    return call


@pytest.fixture
def verified(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., dict[str, Any]]:
    """Verify a folder on evaluation data without timings, all to agree; its report, which fits the schema."""

    def call(folder: Path, data: Path, *options: str) -> dict[str, Any]:
        words = ["verify", str(folder), "--eval", str(data), "--no-latency", "--min-agreement", "99.9",
                 "--report", str(tmp_path), "--json", *options]  # fmt: skip
        assert main(words) == 0
        report: dict[str, Any] = json.loads(capsys.readouterr().out)
        jsonschema.validate(report, json_schema())
        return report

    return call


@pytest.fixture(scope="session")
def trail(tmp_path_factory: pytest.TempPathFactory, run: Callable[..., None]) -> Trail:
    """Everything from an encoder to two exported folders."""
    root = tmp_path_factory.mktemp("trail")
    os.environ.setdefault("QEXPORT_CACHE", str(root / "cache"))
    encoder = save_model(root / "encoder")
    settings = {"pad_token": "[PAD]", "model_max_length": 40, "tokenizer_class": "PreTrainedTokenizerFast"}
    (encoder / "tokenizer_config.json").write_text(json.dumps(settings))
    made = Trail(
        root=root,
        encoder=encoder,
        train_file=write_reviews(root / "train.csv", 96, seed=1),
        eval_file=write_reviews(root / "eval.csv", 48, seed=2),
        teacher=root / "teacher",
        student=root / "student",
        teacher_onnx=root / "teacher-onnx",
        onnx=root / "onnx",
    )
    common = ("--batch-size", 16, "--lr", 5e-3, "--threads", 1)
    run("train", "--method", "fp32", "--model", made.encoder, *made.data, "-o", made.teacher,
        "--epochs", 6, *common)  # fmt: skip
    run("train", "--method", "ternarybert", "--teacher", made.teacher, *made.data, "-o", made.student,
        "--epochs", 4, *common)  # fmt: skip
    run("to-onnx", made.teacher, made.teacher_onnx)
    run("to-onnx", made.student, "--output", made.onnx)
    return made
