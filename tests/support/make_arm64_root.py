"""Make a folder with Python and ONNX Runtime for arm64, for QEMU: make_arm64_root.py FOLDER, on Debian 12.

Nothing is installed: apt-get and pip download packages for the other processor, and they are unpacked.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

DEBIAN = (
    "python3.11-minimal", "libpython3.11-minimal", "libpython3.11-stdlib", "libc6", "libgcc-s1", "libstdc++6",
    "zlib1g", "libexpat1", "libffi8", "busybox-static",
)  # fmt: skip
PYTHON = (
    "onnxruntime==1.26.0",
    "numpy==2.2.6",
    "protobuf==7.36.2",
    "flatbuffers==25.12.19",
    "packaging==26.3",
)
PLATFORMS = ("manylinux_2_28_aarch64", "manylinux_2_27_aarch64", "manylinux_2_17_aarch64", "any")


def main(root: Path) -> None:
    """Fill `root`, unless it is there."""
    if (root / "site" / "onnxruntime").is_dir():
        return
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        for folder in ("lists/partial", "cache/archives/partial", "debs", "wheels", "root"):
            (work / folder).mkdir(parents=True)
        other = [
            "-oAPT::Architecture=arm64",
            "-oAPT::Architectures=arm64",
            f"-oDir::State::Lists={work}/lists",
        ]
        apt = ["apt-get", "-qq", *other, f"-oDir::Cache={work}/cache"]
        subprocess.run([*apt, "update"], check=True)
        subprocess.run([*apt, "download", *DEBIAN], check=True, cwd=work / "debs", stderr=subprocess.DEVNULL)
        for package in sorted((work / "debs").glob("*.deb")):
            subprocess.run(["dpkg", "-x", str(package), str(work / "root")], check=True)
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        pip += [
            "--python-version=311",
            *(f"--platform={name}" for name in PLATFORMS),
            "-d",
            str(work / "wheels"),
        ]
        subprocess.run([*pip, *PYTHON], check=True)
        for wheel in sorted((work / "wheels").glob("*.whl")):
            zipfile.ZipFile(wheel).extractall(work / "root" / "site")
        shutil.copytree(work / "root", root, symlinks=True, dirs_exist_ok=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    print(sys.argv[1])
