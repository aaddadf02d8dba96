"""NEON, its dot product and the int8 matrix extension on QEMU: every operator against the plain code."""

from __future__ import annotations

import shutil
import subprocess

import kernel_build
import pytest

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
    kernel_build.missing("no qemu-aarch64; install qemu-user-static")


def driven(qemu: str, compiler: str, cpu: str, seed: int, rounds: int) -> list[str]:
    """Instruction sets that the driver was content with, best first."""
    compilers = kernel_build.arm64_compilers()
    if compiler not in compilers:
        kernel_build.missing(
            {"zig": "no ziglang; pip install '.[bundle]'", "gcc": "no aarch64-linux-gnu-g++"}[compiler]
        )
    program = kernel_build.arm64_driver(compilers[compiler])
    command = [qemu, "-cpu", cpu, str(program), str(seed), str(rounds)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.returncode} {done.stdout} {done.stderr}"
    return [line.split(":")[0] for line in done.stdout.splitlines()]


@pytest.mark.parametrize("cpu", CPUS)
def test_every_instruction_set_computes_the_same(cpu: str, qemu: str) -> None:
    """Products are equal to a plain loop; codes too; GELU, LayerNorm and attention are near."""
    assert driven(qemu, "zig", cpu, 1, ROUNDS) == CPUS[cpu]


@pytest.mark.slow
@pytest.mark.parametrize("compiler", ["zig", "gcc"])
def test_every_instruction_set_computes_the_same_for_long(compiler: str, qemu: str) -> None:
    for seed in (2, 3):
        assert driven(qemu, compiler, "max", seed, 150) == CPUS["max"]
