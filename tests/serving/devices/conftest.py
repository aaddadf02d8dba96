"""Servers on loopback, a small encoder, and what it gives in this process."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy.typing as npt
import pytest
from adb_server import AdbServer, adb_server
from loopback_ssh import Server, ssh_server
from required import missing
from small_batch import BATCH

from qexport.serving.session import Session


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """An sshd whose python3 is the one of the tests."""
    path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    with (
        pytest.MonkeyPatch.context() as patch,
        ssh_server(tmp_path_factory.mktemp("ssh"), path=path) as server,
    ):
        patch.setenv("QEXPORT_SSH_CONFIG", str(server.config))
        yield server


@pytest.fixture
def adb(monkeypatch: pytest.MonkeyPatch) -> Iterator[AdbServer]:
    with adb_server() as server:
        monkeypatch.setenv("ANDROID_ADB_SERVER_PORT", str(server.port))
        yield server


@pytest.fixture(scope="module")
def expected(ternary_folder: Path) -> dict[str, npt.NDArray[Any]]:
    """Logits of `BATCH` in this process: "stock", "native"."""
    file = ternary_folder / "model.onnx"
    return {
        "stock": Session(file).run(BATCH)["logits"],
        "native": Session(file, kernels="require").run(BATCH)["logits"],
    }


@pytest.fixture
def arm64_library(tmp_path: Path) -> Path:
    """The header of a shared library for arm64."""
    path = tmp_path / "libonnxruntime.so"
    path.write_bytes(b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x03\x00\xb7\x00" + bytes(100))
    return path


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder with room for 256 kB."""
    import subprocess

    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)]
    try:
        done = subprocess.run(mount, capture_output=True, check=False).returncode
    except OSError:
        done = 1
    if done or os.geteuid() != 0:
        missing("a small tmpfs could not be mounted; run as root, with mount on the PATH")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)
