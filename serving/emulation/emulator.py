"""QEMU's user mode: the program, what it can do, and the count of instructions executed in it."""

from __future__ import annotations

import shutil
import subprocess
from functools import cache
from pathlib import Path

__all__ = ["COUNT_PLUGIN", "counting_emulator", "emulator", "emulator_version", "read_counts"]

COUNT_PLUGIN = Path(__file__).with_name("count_plugin.c")
"""Counts executed instructions between the runner's marks."""

_PROGRAMS = ("qemu-aarch64-static", "qemu-aarch64")


def emulator() -> str | None:
    """QEMU's program for arm64; None where it is not installed."""
    return next((found for name in _PROGRAMS if (found := shutil.which(name))), None)


@cache
def _said(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    return done.stdout


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
        if (
            found
            and "-plugin" in _said(found, "-help")
            and int(emulator_version(found).partition(".")[0]) < 9
        ):
            return found
    return None


def read_counts(path: Path) -> list[int]:
    """Instructions of each inference, as the plugin wrote them down."""
    return [int(line) for line in path.read_text().split()]
