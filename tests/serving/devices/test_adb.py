"""adb://: against a stand-in server that speaks adb's protocol, and the stand-in against adb itself."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from adb_server import AdbServer
from loopback_ssh import free_port
from required import missing
from small_batch import BATCH

from qexport.errors import DiskFullError, EnvironmentProblem, MissingToolError, TargetLost
from qexport.serving.targets import get_target


def quiet(line: str) -> None:
    """Takes progress."""


def test_a_device_gives_the_logits_of_this_machine(
    adb: AdbServer, ternary_folder: Path, expected: dict[str, Any], tmp_path: Path
) -> None:
    target = get_target(f"adb://stand-in{tmp_path}")
    target.check()
    place = target.start(quiet)
    try:
        for mode, name in zip(target.modes, ("stock", "native"), strict=True):
            found = place.open(ternary_folder / "model.onnx", mode=mode, threads=1).run(BATCH)["logits"]
            np.testing.assert_array_equal(found, expected[name])
        assert any(measure.name.startswith("peak memory") for measure in place.measures())
    finally:
        place.close()
    assert {Path(path).name for path in adb.pushed} >= {"qexport-runner", "libonnxruntime.so"}
    assert os.listdir(tmp_path) == []


def test_a_device_unplugged_while_it_runs_is_one_sentence_and_leaves_nothing(
    adb: AdbServer, ternary_folder: Path, tmp_path: Path
) -> None:
    target = get_target(f"adb://stand-in{tmp_path}")
    place = target.start(quiet)
    runner = place.open(ternary_folder / "model.onnx", mode=target.modes[0], threads=1)
    runner.run(BATCH)
    adb.unplug()
    with pytest.raises(TargetLost, match=r"^the connection to adb://stand-in was lost while it ran"):
        runner.run(BATCH)
    place.close()
    for process in adb.processes:
        process.wait(10)
    assert os.listdir(tmp_path) == []


def test_a_device_unplugged_while_a_file_is_copied_is_one_sentence(adb: AdbServer, tmp_path: Path) -> None:
    adb.breaks_after = 1 << 20
    with pytest.raises(
        TargetLost, match=r"was lost while libonnxruntime\S* was copied; connect it and run again$"
    ):
        get_target(f"adb://stand-in{tmp_path}").start(quiet)
    for process in adb.processes:
        process.wait(10)
    assert os.listdir(tmp_path) == []


def test_a_full_device_is_one_sentence(adb: AdbServer, tmp_path: Path) -> None:
    adb.full = True
    with pytest.raises(DiskFullError, match="no space left on adb://stand-in while copying qexport-runner"):
        get_target(f"adb://stand-in{tmp_path}").start(quiet)
    assert os.listdir(tmp_path) == []


def test_no_such_device_and_an_old_one_are_refused(adb: AdbServer) -> None:
    with pytest.raises(
        EnvironmentProblem, match=r"adb://other cannot be reached \(device 'other' not found\)"
    ):
        get_target("adb://other").start(quiet)
    adb.features = "cmd"
    with pytest.raises(EnvironmentProblem, match="older than Android 7"):
        get_target("adb://stand-in").start(quiet)


def test_without_a_server_the_message_says_how_to_start_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANDROID_ADB_SERVER_PORT", str(free_port()))
    with pytest.raises(MissingToolError, match="run: adb start-server"):
        get_target("adb://stand-in").check()


def test_adb_itself_understands_the_stand_in(adb: AdbServer, tmp_path: Path) -> None:
    """Otherwise the tests above would prove nothing."""
    if shutil.which("adb") is None:
        missing("no adb; apt-get install adb")
    (tmp_path / "here").write_bytes(bytes(range(256)) * 1000)
    shell = ["adb", "-s", "stand-in", "shell", "echo out; cat; echo err >&2; exit 7"]
    done = subprocess.run(shell, input=b"in\n", capture_output=True, check=False, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (7, b"out\nin\n", b"err\n")
    push = ["adb", "-s", "stand-in", "push", str(tmp_path / "here"), str(tmp_path / "there")]
    subprocess.run(push, check=True, capture_output=True, timeout=60)
    assert (tmp_path / "there").read_bytes() == (tmp_path / "here").read_bytes()
