"""Ctrl-C: exit code 130, the command that goes on, no half-written folder."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from qexport.cli import main

if TYPE_CHECKING:
    from conftest import Trail


def _interrupt_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Send this process a SIGINT during the given training step."""
    from qexport.training import trainer

    plain = trainer.Distiller.training_step
    calls = iter(range(1, 10_000))

    def training_step(self: Any, *args: Any, **kwargs: Any) -> Any:
        if next(calls) == step:
            os.kill(os.getpid(), signal.SIGINT)
        return plain(self, *args, **kwargs)

    monkeypatch.setattr(trainer.Distiller, "training_step", training_step)


def _files(folder: Path) -> dict[str, bytes]:
    """Every file in a folder and its folders, by relative path."""
    found = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def test_ctrl_c_during_training_then_resume(
    trail: Trail, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", "--method", "ternarybert", "--teacher", str(trail.teacher), *trail.data,
             "--max-steps", "12", "--batch-size", "8", "--threads", "1", "-o"]  # fmt: skip
    out, whole = tmp_path / "out", tmp_path / "whole"
    with monkeypatch.context() as patch:
        _interrupt_at(7, patch)
        assert main([*words, str(out)]) == 130
    message = capsys.readouterr().err
    assert "step 7 of 12" in message
    assert "--resume" in message
    assert not (out / "qexport_train.json").exists()
    assert not (out / "model.safetensors").exists()

    assert main([*words, str(out)]) == 2
    assert "--resume" in capsys.readouterr().err
    assert main([*words, str(out), "--resume"]) == 0
    assert "resuming from checkpoint-7" in capsys.readouterr().err
    assert json.loads((out / "qexport_train.json").read_text())["steps"] == 12
    assert not (out / "checkpoints").exists()

    assert main([*words, str(whole)]) == 0
    assert (whole / "model.safetensors").read_bytes() == (out / "model.safetensors").read_bytes()


def test_resume_without_a_checkpoint_says_so(
    trail: Trail, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "train",
        "--method",
        "fp32",
        "--model",
        str(trail.encoder),
        *trail.data,
        "-o",
        str(tmp_path / "new"),
    ]
    assert main([*words, "--resume"]) == 2
    assert "no checkpoint" in capsys.readouterr().err


@pytest.mark.skipif(os.name != "posix", reason="SIGINT to another process is POSIX")
def test_ctrl_c_during_export_leaves_the_old_folder(trail: Trail, tmp_path: Path) -> None:
    out = tmp_path / "onnx"
    shutil.copytree(trail.onnx, out)
    before = _files(out)
    command = [sys.executable, "-m", "qexport", "to-onnx", str(trail.student), "-o", str(out), "--force"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=tmp_path) as process:
        assert process.stderr is not None
        lines = []
        for line in process.stderr:
            lines.append(line)
            if line.startswith("loaded "):
                process.send_signal(signal.SIGINT)
        code = process.wait(timeout=120)
    assert code == 130, "".join(lines)
    assert lines[-1].startswith("qexport: interrupted")
    assert "to-onnx" in lines[-1]
    assert _files(out) == before
    assert [path.name for path in tmp_path.iterdir()] == ["onnx"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_while_the_export_is_written_leaves_nothing(
    number: signal.Signals,
    trail: Trail,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        signal.raise_signal(number)

    monkeypatch.setattr("qexport.graphs.folder.write_manifest", interrupt)
    assert main(["to-onnx", str(trail.student), "-o", str(tmp_path / "onnx")]) == 130
    assert "run again: qexport to-onnx" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
