"""From a CSV file to a verified ternary ONNX file, through the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import jsonschema
import pytest

from qexport.cli import main
from qexport.serving.report import json_schema

if TYPE_CHECKING:
    from conftest import Trail


def test_student_learned_and_folder_is_complete(trail: Trail) -> None:
    teacher = json.loads((trail.teacher / "qexport_train.json").read_text())
    student = json.loads((trail.student / "qexport_train.json").read_text())
    assert teacher["metrics"]["validation/accuracy"] >= 0.95
    assert student["metrics"]["validation/accuracy"] >= 0.8
    assert student["bits"] == "2-2-8"
    assert {path.name for path in trail.onnx.iterdir()} >= {
        "model.onnx",
        "config.json",
        "tokenizer.json",
        "ort_config.json",
        "qexport.json",
    }
    assert not [path for path in trail.root.iterdir() if path.name.endswith((".part", ".old"))]


def test_verify_reports_gates_and_writes_a_valid_report(
    trail: Trail, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["verify", str(trail.onnx), *trail.eval_data, "--baseline", str(trail.teacher_onnx), "--layers",
             "--lengths", "8,16", "--iterations", "3", "--warmup", "1", "--targets", "stock,reference",
             "--min-agreement", "99.9", "--max-size-mb", "1", "--report", str(tmp_path / "report"),
             "--json"]  # fmt: skip
    assert main(words) == 0
    report = json.loads(capsys.readouterr().out)
    jsonschema.validate(report, json_schema())
    assert report["status"] == "passed"
    assert {gate["name"] for gate in report["gates"]} == {"min-agreement", "max-size-mb"}
    engines = {engine["name"] for engine in report["engines"]}
    assert {"stock", "stock-unoptimized", "reference", "fp32", "int8", "student", "teacher"} <= engines
    agreement = next(p for p in report["parity"] if (p["engine"], p["against"]) == ("stock", "student"))
    assert agreement["agreement"] == 1.0
    assert report["layers"]["first"] is None
    assert report["invariance"]["max_abs"] < 1e-4
    assert report["command"].startswith("qexport verify")
    assert json.loads((tmp_path / "report" / "report.json").read_text()) == report
    page = (tmp_path / "report" / "report.html").read_text()
    assert "<svg" in page
    assert "http://" not in page.replace("http://www.w3.org", "")


def test_failed_gate_ends_in_3_after_the_report(
    trail: Trail, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["verify", str(trail.onnx), *trail.eval_data, "--baseline", "none", "--no-latency",
             "--max-size-mb", "0.001", "--report", str(tmp_path / "report")]  # fmt: skip
    assert main(words) == 3
    output = capsys.readouterr()
    assert "--max-size-mb 0.001 failed" in output.err
    assert "FAILED" in output.out
    assert (tmp_path / "report" / "report.html").is_file()


def test_gate_without_its_number_fails_closed(
    trail: Trail, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["verify", str(trail.onnx), *trail.eval_data, "--baseline", "none", "--teacher", "none",
             "--student", "none", "--no-latency", "--max-drop", "1", "--max-latency-ms", "100",
             "--report", str(tmp_path / "report")]  # fmt: skip
    assert main(words) == 3
    message = capsys.readouterr().err.splitlines()[-1]
    assert "--max-drop 1 missing" in message
    assert "--max-latency-ms 100 missing" in message


def test_predict_prints_label_and_probability(trail: Trail, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", str(trail.onnx), "the film was great", "the plot is awful", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["label"] for row in found] == ["positive", "negative"]
    assert all(0.5 <= row["probability"] <= 1.0 for row in found)
    assert main(["predict", str(trail.onnx), "the film was great"]) == 0
    line = capsys.readouterr().out
    assert line.startswith("positive")
    assert "the film was great" in line


def test_inspect_shows_ternary_storage(trail: Trail, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(trail.onnx)]) == 0
    assert "ternary" in capsys.readouterr().out
    assert main(["inspect", str(trail.onnx / "model.onnx"), "--json", "--tensors"]) == 0
    inventory = json.loads(capsys.readouterr().out)
    size = (trail.onnx / "model.onnx").stat().st_size
    assert sum(row["n_bytes"] for row in inventory["rows"]) == size


def test_quickstart_runs_through_and_then_skips_what_is_finished(
    trail: Trail, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    run: Callable[..., None],
) -> None:  # fmt: skip
    monkeypatch.setattr("qexport.quickstart.MODEL", str(trail.encoder))
    work = tmp_path / "work"
    words = [
        "quickstart",
        "--work",
        str(work),
        "--train-samples",
        "64",
        "--eval-samples",
        "32",
        "--teacher-steps",
        "8",
        "--student-steps",
        "8",
    ]
    run(*words)
    first = capsys.readouterr()
    assert "[5/5" in first.err
    assert "finished earlier" not in first.err
    assert (work / "report" / "report.html").resolve().as_uri() in first.out
    assert "qexport predict" in first.out
    for name in ("int8", "fp32", "ternarybert 2-2-8"):
        assert name in first.out
    run(*words)
    assert capsys.readouterr().err.count("finished earlier") == 4
    assert main([*words, "--seed", "1"]) == 2
    assert "--force" in capsys.readouterr().err
