"""`qexport sweep` with its real commands: inside this process, and, slow, each in one of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from qexport.cli import main
from qexport.sweep import work

if TYPE_CHECKING:
    from conftest import Trail

_TEXT = """
output: out
defaults: {{batch_size: 16, threads: 1, max_steps: {steps}, lr: 5e-3}}
methods: {{fp32: {{model: {encoder}}}}}
tasks:
  films: {{train_file: $FILMS/train.csv, eval_file: $FILMS/eval.csv, text_column: text, label_column: label}}
"""


def _write(trail: Trail, folder: Path, runs: str, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("FILMS", str(trail.root))
    Path("sweep.yaml").write_text(_TEXT.format(encoder=trail.encoder, steps=steps) + runs)


def test_run_of_a_sweep_is_trained_exported_and_verified(
    trail: Trail, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Here:
        """The command in this process, over when it has started."""

        def __init__(self, words: list[str], log: Path, **options: Any) -> None:
            log.parent.mkdir(parents=True, exist_ok=True)
            self.code = main(words)

        def ended(self) -> bool:
            return True

        def check(self) -> None:
            assert self.code == 0

    monkeypatch.setattr(work, "Command", Here)
    run = f"runs: [{{method: ternarybert, task: films, teacher: {trail.teacher}}}]\n"
    _write(trail, tmp_path, run, 2, monkeypatch)
    assert main(["sweep", "sweep.yaml"]) == 0
    [row] = [json.loads(line) for line in Path("out/results.jsonl").read_text().splitlines()]
    assert (row["status"], row["steps"], row["bits"]) == ("done", 2, "2-2-8")
    assert row["agreement"]["rows"] == 48
    assert row["drop"]["points"] == pytest.approx(
        100 * (row["teacher_metrics"]["accuracy"] - row["metrics"]["accuracy"]["value"])
    )
    onnx = Path("out") / row["name"] / "onnx" / "model.onnx"
    assert row["file_bytes"] == onnx.stat().st_size
    assert "96 training rows" in row["data"]["source"]
    assert str(trail.root) not in " ".join(row["commands"])[: row["commands"][0].index("--teacher")]
    changed = onnx.stat().st_mtime_ns
    assert main(["sweep", "sweep.yaml"]) == 0
    assert onnx.stat().st_mtime_ns == changed
    assert "1 done before" in capsys.readouterr().err


@pytest.mark.slow
def test_two_methods_by_two_seeds_share_one_teacher(
    trail: Trail, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = "grids: [{methods: [ternarybert, kdlsq], tasks: films, bits: 2-2-8, seeds: [1, 2]}]\n"
    _write(trail, tmp_path, grid, 30, monkeypatch)
    assert main(["sweep", "sweep.yaml"]) == 0
    rows = [json.loads(line) for line in Path("out/results.jsonl").read_text().splitlines()]
    assert [row["method"] for row in rows] == ["fp32", "ternarybert", "ternarybert", "kdlsq", "kdlsq"]
    assert {row["teacher"] for row in rows[1:]} == {rows[0]["key"]}
    assert main(["report", "out/results.jsonl", "-o", "report"]) == 0
    assert "| kdlsq 2-2-8 | 1, 2 | 30 |" in Path("report/report.md").read_text()
