"""ssh:// to an arm64 host: sshd on loopback, behind it an arm64 system whose programs run under QEMU."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from loopback_ssh import ssh_server
from required import missing
from small_batch import BATCH

from qexport.errors import EnvironmentProblem
from qexport.serving.emulation.root import write_cpuinfo
from qexport.serving.runner.runtime import find_library
from qexport.serving.targets import get_target

TOOLS = ("sh", "cat", "chmod", "ls", "mktemp", "rm", "uname", "wc")


@pytest.mark.slow
def test_an_arm64_host_gives_the_numbers_of_x86(
    ternary_folder: Path, expected: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = Path(os.environ.get("QEXPORT_ARM64_ROOT", ""))
    busybox = next(
        (root / name for name in ("bin/busybox", "usr/bin/busybox") if (root / name).is_file()), None
    )
    proot, qemu = shutil.which("proot"), shutil.which("qemu-aarch64-static")
    if busybox is None or proot is None or qemu is None or find_library("aarch64") is None:
        missing(
            "an emulated host needs proot, qemu-user-static, qexport target prepare arm64, and "
            "QEXPORT_ARM64_ROOT (tests/support/make_arm64_root.py)"
        )
    tools = tmp_path / "bin"
    tools.mkdir()
    shutil.copy(busybox, tools / "busybox")
    for name in TOOLS:
        (tools / name).symlink_to("busybox")
    write_cpuinfo(root)
    wrapper = tmp_path / "arm64"
    binds = (
        f"-b /proc -b /dev -b {tools}:/bin -b {root}/proc/cpuinfo:/proc/cpuinfo -b {tmp_path}/ssh/home:/tmp"
    )
    wrapper.write_text(
        f'#!/bin/sh\nexec {proot} -q {qemu} -r {root} {binds} -w / /bin/sh -c "$SSH_ORIGINAL_COMMAND"\n'
    )
    wrapper.chmod(0o755)
    (tmp_path / "ssh").mkdir()
    with ssh_server(tmp_path / "ssh", force_command=str(wrapper)) as server:
        monkeypatch.setenv("QEXPORT_SSH_CONFIG", str(server.config))
        target = get_target(f"ssh://127.0.0.1:{server.port}/tmp")
        place = target.start(print)
        try:
            assert place.facts().machine["architecture"] == "aarch64"
            for mode, name in zip(target.modes, ("stock", "native"), strict=True):
                runner = place.open(ternary_folder / "model.onnx", mode=mode, threads=1)
                assert runner.facts["architecture"] == "aarch64"
                np.testing.assert_allclose(runner.run(BATCH)["logits"], expected[name], atol=1e-5)
        finally:
            place.close()
        assert server.left_behind() == []
        host = find_library("x86_64")
        wrong = get_target(f"ssh://127.0.0.1:{server.port}/tmp?ort={host}").start(print)
        with pytest.raises(EnvironmentProblem, match="is for x86_64, this machine is aarch64"):
            wrong.open(ternary_folder / "model.onnx", mode=target.modes[0], threads=1)
        wrong.close()
        assert server.left_behind() == []
