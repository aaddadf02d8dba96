"""The kernels under AddressSanitizer and UndefinedBehaviorSanitizer: alone, and inside ONNX Runtime."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import kernel_build
import pytest
from kernel_build import Sanitized
from kernel_models import write_examples

INSIDE_PYTHON = "detect_leaks=0:allocator_may_return_null=1:max_allocation_size_mb=2000:abort_on_error=1"
"""Python and ONNX Runtime keep memory until the end, so leaks are looked for in the driver only."""


def run(command: list[str], **environment: str) -> str:
    whole = {**os.environ, "UBSAN_OPTIONS": "print_stacktrace=1", **environment}
    done = subprocess.run(
        command, capture_output=True, text=True, errors="replace", env=whole, check=False
    )  # fmt: skip
    assert done.returncode == 0, f"{done.returncode}\n{done.stdout[-1000:]}\n{done.stderr[-6000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def sanitized() -> Sanitized:
    return kernel_build.sanitized()


def test_operators_are_clean(sanitized: Sanitized) -> None:
    """Every array of the program has its exact size, so that a byte too far is seen."""
    said = run([str(sanitized.driver), "7", "12"])
    assert said.splitlines()[-1] == "scalar: 12 rounds"


@pytest.mark.slow
def test_operators_are_clean_for_long(sanitized: Sanitized) -> None:
    for seed in range(1, 5):
        run([str(sanitized.driver), str(seed), "300"])


def fuzz(sanitized: Sanitized, folder: Path, seed: int, count: int, isa: str = "") -> None:
    write_examples(folder)
    script = Path(kernel_build.__file__).with_name("kernel_fuzz.py")
    command = [sys.executable, str(script), str(sanitized.library), str(folder), str(seed), "0", str(count)]
    said = run(command, ASAN_OPTIONS=INSIDE_PYTHON, LD_PRELOAD=sanitized.preload, QEXPORT_ISA=isa)
    assert said.count('"stage"') == count


def test_sessions_on_damaged_files_are_clean(sanitized: Sanitized, tmp_path: Path) -> None:
    fuzz(sanitized, tmp_path, 3, 120)


@pytest.mark.slow
@pytest.mark.parametrize("isa", ["", "avx512-vnni", "avx-vnni", "avx2", "scalar"])
def test_sessions_on_many_damaged_files_are_clean(isa: str, sanitized: Sanitized, tmp_path: Path) -> None:
    fuzz(sanitized, tmp_path, 4, 2000, isa)


def test_the_sanitizers_see_a_byte_too_far(sanitized: Sanitized, tmp_path: Path) -> None:
    """The flags do what the tests above rely on."""
    source, program = tmp_path / "far.cpp", tmp_path / "far"
    # volatile: GCC's UBSan would see the size of the block and report the same byte in other words
    source.write_text(
        "#include <stdlib.h>\n"
        "int main(int n, char**) { char* volatile p = (char*)malloc(4); return p[3 + n]; }"
    )
    runtime = Path(sanitized.preload.split()[0]).parent
    kernel_build.run([*sanitized.compile, str(source), "-o", str(program), f"-Wl,-rpath,{runtime}"])
    done = subprocess.run([str(program)], capture_output=True, text=True, check=False)
    assert done.returncode != 0 and "heap-buffer-overflow" in done.stderr
