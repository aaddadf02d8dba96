"""Make a virtual environment for each ONNX Runtime version: `python make_ort_venvs.py FOLDER [VERSION ...]`.

Each environment holds onnxruntime and numpy only. Prints the interpreters, joined by the path separator,
ready for QEXPORT_ORT_PYTHONS; what is there already is kept. Versions before 1.19 need numpy below 2,
and those before 1.17 a Python up to 3.11: when this Python is newer, python3.11 or python3.10 is looked
for on the PATH.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

VERSIONS = ("1.16.3", "1.18.1", "1.20.1", "1.24.4")
"""The oldest that runs the inlined files, one between, the oldest that fuses functions, a recent one."""


def interpreter(version: str) -> str:
    """A Python that wheels of this version exist for."""
    minor = int(version.split(".")[1])
    newest = 11 if minor < 17 else 12 if minor < 20 else 13 if minor < 24 else 14
    if sys.version_info[1] <= newest:
        return sys.executable
    for candidate in range(newest, 9, -1):
        found = shutil.which(f"python3.{candidate}")
        if found and subprocess.run([found, "-c", ""], check=False).returncode == 0:
            return found
    raise SystemExit(f"onnxruntime {version} needs Python 3.{newest} or older, and none is on the PATH")


def make(folder: Path, version: str) -> Path:
    """The interpreter of a ready environment."""
    home = folder / f"ort-{version}"
    python = home / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    probe = f"import onnxruntime; raise SystemExit(onnxruntime.__version__ != '{version}')"
    if (
        python.exists()
        and subprocess.run([python, "-c", probe], check=False, capture_output=True).returncode == 0
    ):
        return python
    shutil.rmtree(home, ignore_errors=True)
    subprocess.run([interpreter(version), "-m", "venv", str(home)], check=True)
    numpy = "numpy<2" if int(version.split(".")[1]) < 19 else "numpy"
    install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    subprocess.run([*install, f"onnxruntime=={version}", numpy], check=True, stdout=sys.stderr)
    subprocess.run([python, "-c", probe], check=True)
    return python


def main() -> None:
    """Command line."""
    if len(sys.argv) < 2:
        raise SystemExit(__doc__)
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    versions = sys.argv[2:] or VERSIONS
    print(os.pathsep.join(str(make(folder.resolve(), version)) for version in versions))


if __name__ == "__main__":
    main()
