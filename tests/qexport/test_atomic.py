"""Atomic writes: all or nothing, and what went wrong in a sentence."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from qexport.atomic import atomic_folder, atomic_write_bytes, atomic_write_text, check_output, disk_errors
from qexport.errors import DiskFullError, OutputExistsError, UsageError


def test_folder_appears_when_the_block_succeeds(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    with atomic_folder(out) as part:
        (part / "file").write_text("new")
        assert not out.exists()
    assert (out / "file").read_text() == "new"
    assert [path.name for path in out.parent.iterdir()] == ["out"]


@pytest.mark.parametrize("problem", [ValueError("x"), KeyboardInterrupt()])
def test_folder_stays_as_it_was_when_the_block_fails(problem: BaseException, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "file").write_text("old")
    with pytest.raises(type(problem)), atomic_folder(out, force=True) as part:
        (part / "file").write_text("new")
        raise problem
    assert (out / "file").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_force_replaces_the_whole_folder(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "old").write_text("old")
    with atomic_folder(out, force=True) as part:
        (part / "new").write_text("new")
    assert [path.name for path in out.iterdir()] == ["new"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_existing_output_needs_force_and_an_empty_folder_does_not(tmp_path: Path) -> None:
    check_output(tmp_path / "absent", force=False)
    (tmp_path / "empty").mkdir()
    check_output(tmp_path / "empty", force=False)
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputExistsError, match="--force"):
        check_output(tmp_path / "file", force=False)
    with pytest.raises(OutputExistsError, match="--force"):
        check_output(tmp_path, force=False)
    check_output(tmp_path, force=True)


def test_file_is_replaced_at_once(tmp_path: Path) -> None:
    path = tmp_path / "a" / "file.json"
    atomic_write_text(path, "één")
    assert path.read_bytes() == "één".encode()
    atomic_write_bytes(path, b"two")
    assert path.read_bytes() == b"two"
    assert [entry.name for entry in path.parent.iterdir()] == ["file.json"]


@pytest.mark.parametrize(
    "problem",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_full_disk_is_told_by_number_or_text(problem: Exception, tmp_path: Path) -> None:
    with pytest.raises(DiskFullError, match="no space left"), disk_errors(tmp_path):
        raise problem
    with pytest.raises(DiskFullError, match="no space left"), disk_errors(tmp_path):
        raise RuntimeError("while saving") from problem


def test_writer_of_torch_on_a_disk_with_space_is_another_problem(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="iostream"), disk_errors(tmp_path):
        raise RuntimeError("basic_ios::clear: iostream error")


def test_writer_of_torch_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qexport.atomic._free_bytes", lambda target: 4096)
    with pytest.raises(DiskFullError), disk_errors(tmp_path):
        raise RuntimeError("basic_ios::clear: iostream error")


def test_forbidden_place_is_a_usage_error(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("x")
    with pytest.raises(UsageError, match="choose another --output"):
        atomic_write_text(blocked / "under" / "a-file", "x")
    with pytest.raises(UsageError, match="cannot write"), disk_errors(tmp_path):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def test_other_errors_pass_unchanged(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), disk_errors(tmp_path):
        raise ZeroDivisionError
