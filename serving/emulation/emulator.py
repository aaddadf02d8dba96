"""QEMU's user mode: the program, what it can do, and the count of instructions executed in it."""

from __future__ import annotations

import shutil
import subprocess
from functools import cache
from pathlib import Path

from qexport.errors import EnvironmentProblem

__all__ = ["COUNT_PLUGIN", "counting_emulator", "emulator", "emulator_version", "last_count"]

COUNT_PLUGIN = Path(__file__).with_name("count_plugin.c")
"""Counts executed instructions between the runner's marks."""

_PROGRAMS = ("qemu-aarch64-static", "qemu-aarch64")


def emulator() -> str | None:
    """QEMU's program for arm64; None where it is not installed."""
    return next((found for name in _PROGRAMS if (found := shutil.which(name))), None)


@cache
def _said(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=30).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""


def emulator_version(program: str) -> str:
    """Its version: "7.2.22"."""
    words = _said(program, "--version").split()
    return words[words.index("version") + 1] if "version" in words else "unknown"


def counting_emulator() -> str | None:
    """QEMU for arm64 that takes plugins of the interface that ours is written for; None for none.

    Static builds take none; from QEMU 9 on the interface is another.
    """
    for name in reversed(_PROGRAMS):
        found = shutil.which(name)
        if found and "-plugin" in _said(found, "-help"):
            major = emulator_version(found).partition(".")[0]
            if major.isdecimal() and int(major) < 9:
                return found
    return None


def last_count(path: Path) -> int:
    """Instructions of the last inference, as the plugin wrote them down.

    Raises:
        EnvironmentProblem: it wrote nothing.
    """
    try:
        return int(path.read_text().split()[-1])
    except (OSError, IndexError, ValueError) as error:
        raise EnvironmentProblem(
            f"QEMU's plugin wrote no count ({error}); install qemu-user again"
        ) from error
