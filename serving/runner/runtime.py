"""libonnxruntime for another machine: out of the wheel of the package index, checked, kept in the cache."""

from __future__ import annotations

import hashlib
import platform
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from qexport.atomic import atomic_write_bytes, disk_errors
from qexport.cache import cache_folder
from qexport.errors import EnvironmentProblem, MissingToolError

__all__ = ["VERSION", "fetch_library", "find_library"]

VERSION = "1.32.0"
"""Of the wheels below."""

_SHA256 = {
    "aarch64": "2303372a85299b6757b0e11e1cbf13e410ddf7e10c37f4b37e99d1c90e7daf7c",
    "x86_64": "5a34fc4dfeb5a7b4a74c95dcba1e773d722abda720b474edf1b0c419dc6d163d",
}
"""Machine -> checksum of the wheel for CPython 3.11 on manylinux_2_28; it holds the plain C library too."""


def _cached(machine: str) -> Path:
    return cache_folder() / "targets" / "onnxruntime" / VERSION / machine / "libonnxruntime.so"


def find_library(machine: str) -> Path | None:
    """libonnxruntime for glibc on `machine`: fetched before, or of this installation; else None."""
    cached = _cached(machine)
    if cached.is_file():
        return cached
    if sys.platform == "linux" and platform.machine() == machine:
        spec = find_spec("onnxruntime")
        for folder in spec.submodule_search_locations or () if spec else ():
            for path in sorted(Path(folder, "capi").glob("libonnxruntime.so.*")):
                return path
    return None


def fetch_library(machine: str, say: Callable[[str], None]) -> Path:
    """The same, fetched with pip where it is not there.

    Args:
        machine: "x86_64" or "aarch64".
        say: takes one line of progress.
    Raises:
        EnvironmentProblem: there is no wheel for that machine, it cannot be fetched, or its checksum is
        wrong. DiskFullError: no space left.
    """
    found = find_library(machine)
    if found is not None:
        return found
    if machine not in _SHA256:
        raise EnvironmentProblem(
            f"there is no wheel of onnxruntime for {machine}; give a libonnxruntime with ?ort=FILE"
        )
    say(f"fetching onnxruntime {VERSION} for {machine}")
    target = _cached(machine)
    with disk_errors(target), tempfile.TemporaryDirectory(prefix="qexport-wheel-") as folder:
        wheel = _download(machine, Path(folder))
        with zipfile.ZipFile(wheel) as archive:
            (name,) = (name for name in archive.namelist() if "/capi/libonnxruntime.so" in name)
            atomic_write_bytes(target, archive.read(name))
    return target


def _download(machine: str, folder: Path) -> Path:
    """The wheel, with the checksum that this package knows."""
    requirement = folder / "requirement.txt"
    requirement.write_text(f"onnxruntime=={VERSION} --hash=sha256:{_SHA256[machine]}\n")
    command = [
        sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps",
        "--only-binary=:all:", "--require-hashes", "--python-version=311", "--implementation=cp",
        "--abi=cp311",
        f"--platform=manylinux_2_28_{machine}", "--dest", str(folder), "--requirement", str(requirement),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        if "No module named pip" in done.stderr:
            raise MissingToolError(
                "fetching onnxruntime needs pip in this environment", f"{sys.executable} -m ensurepip"
            )
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        said = next(
            (line for line in reversed(lines) if "ERROR" in line), lines[-1] if lines else "no message"
        )
        raise EnvironmentProblem(
            f"pip cannot fetch onnxruntime {VERSION} for {machine} ({said[:300]}); connect to a "
            f"package index and "
            "run the command again"
        )
    if hashlib.sha256(wheels[0].read_bytes()).hexdigest() != _SHA256[machine]:
        raise EnvironmentProblem(f"the checksum of {wheels[0].name} is wrong; nothing of it was used")
    return wheels[0]
