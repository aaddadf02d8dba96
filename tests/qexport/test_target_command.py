"""`qexport target`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qexport.cli import main


def test_targets_are_listed_with_what_is_missing_and_the_command(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("QEXPORT_NODE", str(tmp_path / "absent"))
    assert main(["target", "list", "--json"]) == 0
    listed = {row["target"]: row for row in json.loads(capsys.readouterr().out)}
    assert listed["stock"] == {
        "target": "stock", "modes": ["stock", "stock-unoptimized"], "ready": True, "problem": None,
        "fix": None,
    }  # fmt: skip
    node = listed["node"]
    assert not node["ready"] and node["fix"] == "apt-get install nodejs npm"
    assert main(["target"]) == 0
    assert "run: apt-get install nodejs npm" in " ".join(capsys.readouterr().out.split())


def test_a_target_without_needs_is_ready_and_one_without_its_tool_ends_in_4(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert main(["target", "prepare", "stock"]) == 0
    assert "stock is ready: onnxruntime " in capsys.readouterr().out
    monkeypatch.setenv("QEXPORT_NODE", str(tmp_path / "absent"))
    monkeypatch.setenv("QEXPORT_CACHE", str(tmp_path / "empty"))
    assert main(["target", "prepare", "node"]) == 4
    assert "apt-get install nodejs npm" in " ".join(capsys.readouterr().err.split())
    assert main(["target", "prepare", "nod"]) == 2
