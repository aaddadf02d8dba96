"""Target arm64: what it asks for, and (slow, where it is prepared) its numbers."""

from __future__ import annotations

import platform
import sys
from pathlib import Path

import numpy as np
import pytest
from required import missing
from small_batch import BATCH

from qexport.errors import EnvironmentProblem, MissingToolError
from qexport.serving.emulation import emulator, root
from qexport.serving.session import Session
from qexport.serving.targets import get_target

on_x86_linux = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() != "x86_64", reason="arm64 is emulated on x86-64 Linux"
)


@on_x86_linux
def test_arm64_says_what_prepares_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    target = get_target("arm64")
    monkeypatch.setenv("QEXPORT_CACHE", str(tmp_path))
    monkeypatch.setattr("qexport.serving.emulation.emulator.emulator", lambda: "/usr/bin/qemu-aarch64")
    with pytest.raises(MissingToolError, match="run: qexport target prepare arm64"):
        target.check()
    monkeypatch.setattr("qexport.serving.emulation.emulator.emulator", lambda: None)
    with pytest.raises(MissingToolError, match="run: apt-get install qemu-user"):
        target.check()
    assert [target.clock(mode) for mode in target.modes] == ["none", "none"]


def test_a_package_with_a_wrong_checksum_is_refused(tmp_path: Path) -> None:
    name = next(iter(root._SHA256))
    (tmp_path / name).write_bytes(b"something else")
    with pytest.raises(EnvironmentProblem, match=f"the checksum of {name.replace('+', '.')} is wrong"):
        root._checked(tmp_path / name)


def test_what_an_emulator_does_not_say_is_no_crash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "counts").touch()
    for name in ("counts", "absent"):
        with pytest.raises(EnvironmentProblem, match="wrote no count"):
            emulator.last_count(tmp_path / name)
    odd = tmp_path / "qemu-aarch64"
    odd.write_text("#!/bin/sh\necho has -plugin, but no number\n")
    odd.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin")
    assert emulator.counting_emulator() is None


@on_x86_linux
def test_a_folder_that_may_not_be_written_is_one_sentence() -> None:
    with pytest.raises(EnvironmentProblem, match="name a folder of your own as QEXPORT_ARM64_ROOT"):
        root.write_cpuinfo(Path("/sys/kernel"))


@pytest.mark.slow
@on_x86_linux
def test_emulated_arm64_gives_the_numbers_of_x86(ternary_folder: Path) -> None:
    """Logits differ by the last bits of the float head; instructions are counted nearly the same twice."""
    target = get_target("arm64")
    try:
        target.check()
    except EnvironmentProblem as problem:
        missing(str(problem))
    file = ternary_folder / "model.onnx"
    expected = Session(file).run(BATCH)["logits"]
    counts = []
    for _ in range(2):
        place = target.start(lambda line: None)
        try:
            for mode in target.modes:
                found = place.open(file, mode=mode, threads=1).run(BATCH)["logits"]
                np.testing.assert_allclose(found, expected, atol=1e-5)
            counts.append([measure.value for measure in place.measures()])
        finally:
            place.close()
    assert len(counts[0]) == 2 and min(counts[0]) > 1000  # at 32 tokens: the model takes 40
    np.testing.assert_allclose(counts[0], counts[1], rtol=0.03)
