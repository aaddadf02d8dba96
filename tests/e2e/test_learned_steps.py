"""A student with learned steps, from the teacher to a verified file, through the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from qexport.cli import main

if TYPE_CHECKING:
    from conftest import Trail


def test_kdlsq_with_4_bit_activations_is_trained_exported_and_verified(
    trail: Trail, run: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    student, onnx = tmp_path / "student", tmp_path / "onnx"
    run("train", "--method", "kdlsq", "--bits", "2-4-4", "--teacher", trail.teacher, *trail.data,
        "-o", student, "--epochs", 4, "--batch-size", 16, "--lr", 5e-3, "--threads", 1,
        "--activation-step-lr", 1e-2)  # fmt: skip
    assert json.loads((student / "qexport_train.json").read_text())["metrics"]["validation/accuracy"] >= 0.8
    run("to-onnx", student, onnx)
    capsys.readouterr()
    words = ["verify", str(onnx), *trail.eval_data, "--no-latency", "--targets", "stock,reference",
             "--min-agreement", "97", "--report", str(tmp_path / "report"), "--json"]  # fmt: skip
    assert main(words) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["status"] == "passed"
    assert report["model"]["bits"] == "2-4-4" and report["model"]["method"] == "kdlsq"
    assert report["invariance"]["max_abs"] < 1e-4


def test_a_width_that_does_not_exist_is_one_sentence_and_exit_code_2(
    trail: Trail, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", "--method", "kdlsq", "--bits", "2-2-1", "--teacher", str(trail.teacher), *trail.data]
    assert main([*words, "-o", str(tmp_path / "x")]) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1 and "2, 3, 4, 5, 6, 7, 8 for activations, got --bits 2-2-1" in error[0]
    assert not (tmp_path / "x").exists()
