"""Which C++ compiler of this machine builds the kernel library.

CMake runs this file, which prints the compiler's words with ";" between them, nothing when there is none;
build_backend.py imports it.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys

OLDEST = {"GCC": 11, "clang": 12, "Apple clang": 13}
"""First versions that know every instruction set the library has a file for."""


def compiler_version(command: list[str]) -> tuple[str, int] | None:
    """Kind and major version that a compiler gives itself in its macros; None where it is of another kind."""
    try:
        done = subprocess.run(
            [*command, "-dM", "-E", "-x", "c++", "-"], input="", capture_output=True, text=True, check=False
        )
    except OSError:
        return None
    words = (line.split(maxsplit=2) for line in done.stdout.splitlines())
    macros = {line[1]: line[2] for line in words if len(line) == 3}
    if "__clang_major__" in macros:
        kind = "Apple clang" if "__apple_build_version__" in macros else "clang"
        return kind, int(macros["__clang_major__"])
    if "__GNUC__" in macros:
        return "GCC", int(macros["__GNUC__"])
    return None


def find_compiler() -> list[str]:
    """The words of the first usable compiler among $CXX, c++, g++ and clang++; empty when there is none.

    None is looked for on Windows: the compilers there want other flags, and ziglang will do.
    """
    if sys.platform == "win32":
        return []
    for text in (os.environ.get("CXX", ""), "c++", "g++", "clang++"):
        command = shlex.split(text)
        if command and shutil.which(command[0]):
            version = compiler_version(command)
            if version is not None and version[1] >= OLDEST[version[0]]:
                return command
    return []


if __name__ == "__main__":
    print(";".join(find_compiler()))
