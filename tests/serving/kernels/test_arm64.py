"""NEON, its dot product and the int8 matrix extension on QEMU: alone, and inside ONNX Runtime for arm64."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import kernel_build
import numpy as np
import pytest
from kernel_models import feeds, run, same, write_examples
from required import missing

ROUNDS = 12
CPUS = {
    "max": ["i8mm", "dotprod", "neon", "scalar"],
    "neoverse-n1": ["dotprod", "neon", "scalar"],
    "cortex-a57": ["neon", "scalar"],
}
"""What QEMU's processors can do."""


@pytest.fixture(scope="module")
def qemu() -> str:
    for name in ("qemu-aarch64-static", "qemu-aarch64"):
        found = shutil.which(name)
        if found:
            return found
    missing("no qemu-aarch64; install qemu-user-static")


def driven(qemu: str, compiler: str, cpu: str, seed: int, rounds: int) -> list[str]:
    """Instruction sets that the driver was content with, best first."""
    compilers = kernel_build.arm64_compilers()
    if compiler == "any" and compilers:
        compiler = next(iter(compilers))
    if compiler not in compilers:
        missing(f"no compiler for arm64 ({compiler}): ziglang, or aarch64-linux-gnu-g++")
    program = kernel_build.arm64_driver(compilers[compiler])
    command = [qemu, "-cpu", cpu, str(program), str(seed), str(rounds)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.returncode} {done.stdout} {done.stderr}"
    return [line.split(":")[0] for line in done.stdout.splitlines()]


@pytest.mark.parametrize("cpu", CPUS)
def test_every_instruction_set_computes_the_same(cpu: str, qemu: str) -> None:
    """Products are equal to a plain loop, everything else to plain C++, see kernel_driver.cpp."""
    assert driven(qemu, "any", cpu, 1, ROUNDS) == CPUS[cpu]


@pytest.mark.slow
@pytest.mark.parametrize("compiler", ["zig", "gcc"])
def test_every_instruction_set_computes_the_same_for_long(compiler: str, qemu: str) -> None:
    for seed in (2, 3):
        assert driven(qemu, compiler, "max", seed, 150) == CPUS["max"]


@pytest.fixture
def root() -> Path:
    """Python and ONNX Runtime for arm64."""
    folder = os.environ.get("QEXPORT_ARM64_ROOT", "")
    if not folder:
        missing("QEXPORT_ARM64_ROOT is not set; see tests/support/make_arm64_root.py")
    return Path(folder)


@pytest.mark.slow
def test_onnxruntime_on_arm64_gives_the_numbers_of_x86(
    qemu: str, root: Path, ternary_folder: Path, tmp_path: Path
) -> None:
    """Every operator and an encoder there are equal to their bodies here."""
    from qexport.serving.kernels.crossbuild import TARGETS, build

    models, out = tmp_path / "models", tmp_path / "out"
    models.mkdir()
    write_examples(models)
    shutil.copy(ternary_folder / "model.onnx", models / "encoder.onnx")
    np.savez(models / "encoder.npz", **feeds(5)[4])
    library = build(TARGETS["aarch64-linux-gnu"], tmp_path).path
    environment = {**os.environ, "PYTHONHOME": str(root / "usr"), "PYTHONPATH": str(root / "site")}
    python = [qemu, "-cpu", "max", "-L", str(root), str(root / "usr" / "bin" / "python3.11"), "-S"]
    script = Path(kernel_build.__file__).with_name("kernel_runner.py")
    command = [*python, str(script), str(library), str(models), str(out), *CPUS["max"]]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    for path in sorted(models.glob("*.onnx")):
        with np.load(path.with_suffix(".npz")) as stored:
            feed = dict(stored)
        expected = run(path.read_bytes(), feed, None)
        for isa in CPUS["max"]:
            with np.load(out / isa / path.with_suffix(".npz").name) as found:
                assert same(dict(found), expected), (path.stem, isa)
