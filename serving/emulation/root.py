"""A folder with what a program for arm64 Linux needs from its system, for QEMU's user mode; nothing is
installed.

The C and C++ libraries are Debian's: apt-get downloads the packages, which it checks against the signature
of the archive, and they are unpacked. Checksums that this package knows are insisted on; a newer version of a
package, which it cannot know, is taken on apt's word, and its checksum is written down beside it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

from qexport.atomic import atomic_folder, atomic_write_text
from qexport.cache import cache_folder
from qexport.errors import EnvironmentProblem, MissingToolError, UsageError

__all__ = ["find_root", "make_root", "write_cpuinfo"]

_PACKAGES = ("libc6", "libgcc-s1", "libstdc++6")
_SHA256 = {
    "libc6_2.36-9+deb12u14_arm64.deb": "01f4330719fd4f65580e16ea5a0527f372fca750e8f588d26deaf09f2d3b1cf4",
    "libgcc-s1_12.2.0-14+deb12u1_arm64.deb":
        "576926b283613db80168ddf76380a3bd877602778cf0d226caa7bfbfa71eacf3",
    "libstdc++6_12.2.0-14+deb12u1_arm64.deb":
        "26e138c677a985775331373828a6c286c551ff397cb735d00e2383cb273d1cb2",
}  # fmt: skip
"""Package file of Debian 12 -> checksum."""

_CPUINFO = """\
processor\t: {index}
BogoMIPS\t: 100.00
Features\t: fp asimd aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm asimddp i8mm bf16
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x0
CPU part\t: 0xd49
CPU revision\t: 0

"""
"""QEMU 7 shows a program the /proc/cpuinfo of the machine it runs on; ONNX Runtime from 1.28 on ends when
it finds no Arm processor in it. A file of that name below the root is shown instead."""

_LOADER = "lib/ld-linux-aarch64.so.1"


def _folder() -> Path:
    return cache_folder() / "targets" / "arm64-root"


def find_root() -> Path | None:
    """The folder, $QEXPORT_ARM64_ROOT or the one that was made; None for neither.

    Raises:
        EnvironmentProblem: the variable names a folder without the loader of arm64 programs.
    """
    named = os.environ.get("QEXPORT_ARM64_ROOT")
    root = Path(named) if named else _folder()
    if (root / _LOADER).exists():
        return root.absolute()
    if named:
        raise EnvironmentProblem(f"QEXPORT_ARM64_ROOT names {named}, which has no {_LOADER}; unset it")
    return None


def make_root(say: Callable[[str], None]) -> Path:
    """The folder, made where it is not there.

    Args:
        say: takes one line of progress.
    Raises:
        MissingToolError: this system has no apt-get or no dpkg.
        EnvironmentProblem: a package cannot be fetched, or its checksum is wrong.
    """
    found = find_root()
    if found is not None:
        return found
    for tool in ("apt-get", "dpkg"):
        if shutil.which(tool) is None:
            raise MissingToolError(
                f"the libraries of arm64 come from Debian, and there is no {tool} here",
                "export QEXPORT_ARM64_ROOT=FOLDER, with libc, libstdc++ and libgcc of an arm64 "
                "system below it",
            )
    with (
        tempfile.TemporaryDirectory(prefix="qexport-arm64-") as name,
        atomic_folder(_folder(), force=True) as root,
    ):
        work = Path(name)
        say("fetching the arm64 libraries of Debian")
        files = _download(work)
        checksums = {}
        for path in files:
            checksums[path.name] = _checked(path)
            _run(["dpkg", "-x", str(path), str(root)], f"unpack {path.name}")
        if not (root / _LOADER).exists():
            raise EnvironmentProblem(
                f"Debian's package libc6 has no {_LOADER}; say so to the authors of qexport"
            )
        write_cpuinfo(root)
        (root / "checksums.json").write_text(json.dumps(checksums, indent=2))
    return _folder().absolute()


def write_cpuinfo(root: Path) -> None:
    """Give a root the description of an arm64 processor, where it has none.

    Raises:
        EnvironmentProblem: it may not be written.
    """
    path = root / "proc" / "cpuinfo"
    if not path.exists():
        text = "".join(_CPUINFO.format(index=index) for index in range(os.cpu_count() or 1))
        try:
            atomic_write_text(path, text)
        except UsageError as error:
            raise EnvironmentProblem(
                f"the description of an arm64 processor, {path}, cannot be written; name a folder of your "
                "own as QEXPORT_ARM64_ROOT"
            ) from error


def _download(work: Path) -> list[Path]:
    """The package files, fetched into `work` with lists and a cache of their own."""
    packages = work / "packages"
    for folder in ("lists/partial", "cache/archives/partial", "packages"):
        (work / folder).mkdir(parents=True)
    apt = [
        "apt-get", "-qq", "-oAPT::Architecture=arm64", "-oAPT::Architectures=arm64",
        "-oAPT::Sandbox::User=root",
        f"-oDir::State::Lists={work}/lists", f"-oDir::Cache={work}/cache",
    ]  # fmt: skip
    _run([*apt, "update"], "read Debian's list of packages")
    _run([*apt, "download", *_PACKAGES], "fetch Debian's packages", packages)
    return sorted(packages.glob("*.deb"))


def _run(command: list[str], what: str, folder: Path | None = None) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
    if done.returncode:
        lines = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
        said = lines[-1] if lines else "no message"
        raise EnvironmentProblem(
            f"{command[0]} cannot {what} ({said[:300]}); connect to a package mirror and run the "
            f"command again"
        )


def _checked(path: Path) -> str:
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != _SHA256.get(path.name, found):
        raise EnvironmentProblem(f"the checksum of {path.name} is wrong; nothing of it was used")
    return found
