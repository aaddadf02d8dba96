"""Compiling the shipped sources of the kernel library for another machine, with the compiler in `ziglang`.

One compiler and one list of sources (sources.json, which CMakeLists.txt reads too) serve every target; no
SDK, NDK or Xcode is needed. What comes out is read back and checked before it is handed over.
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qexport import __version__
from qexport.atomic import atomic_write_bytes, disk_errors
from qexport.errors import EnvironmentProblem, MissingPackageError, OutputExistsError, UnknownNameError
from qexport.serving.kernels import file_name
from qexport.serving.kernels.binary import Binary, read_binary

__all__ = [
    "MAX_BYTES", "TARGETS", "BuildTarget", "Built", "build", "find_target", "find_zig",
    "host_target",
    "run_commands",
]  # fmt: skip

MAX_BYTES = 300_000
"""What a library may weigh."""

SOURCES = Path(__file__).parent

LIBSYSTEM = "/usr/lib/libSystem.B.dylib"
"""The only library that may be needed, and on macOS only: the loader there refuses one that needs nothing."""


LINKER_MADE = {"__dso_handle", "_mh_dylib_header"}
"""Symbols that zig's linker adds to every Mach-O library."""


@dataclass(frozen=True, slots=True)
class BuildTarget:
    """A kind of machine that the library can be built for."""

    name: str
    """As on the command line."""
    machine: str
    """ "x86_64" or "aarch64"; chooses the sources."""
    system: str
    """ "linux", "darwin" or "win32", as `sys.platform` spells it."""
    triple: str
    """What zig calls it."""

    @property
    def file(self) -> str:
        """Name of the library's file there."""
        return file_name(self.system)

    @property
    def format(self) -> str:
        """Format of shared libraries there, as `binary.Binary` names it."""
        return {"linux": "elf", "darwin": "mach-o", "win32": "pe"}[self.system]


TARGETS = {
    target.name: target
    for target in (
        BuildTarget("x86_64-linux-gnu", "x86_64", "linux", "x86_64-linux-gnu"),
        BuildTarget("aarch64-linux-gnu", "aarch64", "linux", "aarch64-linux-gnu"),
        BuildTarget("x86_64-linux-musl", "x86_64", "linux", "x86_64-linux-musl"),
        BuildTarget("aarch64-linux-musl", "aarch64", "linux", "aarch64-linux-musl"),
        BuildTarget("aarch64-linux-android", "aarch64", "linux", "aarch64-linux-android"),
        BuildTarget("aarch64-macos", "aarch64", "darwin", "aarch64-macos.11.0"),
        BuildTarget("x86_64-macos", "x86_64", "darwin", "x86_64-macos.11.0"),
        BuildTarget("x86_64-windows", "x86_64", "win32", "x86_64-windows-gnu"),
    )
}


@dataclass(frozen=True, slots=True)
class Built:
    """A library that was built and checked."""

    target: str
    """Name of the target."""
    path: Path
    """The file."""
    n_bytes: int
    """Its size."""
    needs: tuple[str, ...]
    """Libraries that are loaded with it: none, but for libSystem on macOS."""
    seconds: float
    """Wall time of compiling and linking."""


def host_target() -> BuildTarget | None:
    """The target that is this machine; None where there are no kernels for it."""
    machine = platform.machine().lower()
    machine = {"amd64": "x86_64", "arm64": "aarch64"}.get(machine, machine)
    if sys.platform == "linux":
        system = "linux-gnu" if platform.libc_ver()[0] == "glibc" else "linux-musl"
        system = "linux-android" if hasattr(sys, "getandroidapilevel") else system
    else:
        system = {"darwin": "macos", "win32": "windows", "android": "linux-android"}.get(sys.platform, "")
    return TARGETS.get(f"{machine}-{system}") if sys.maxsize > 2**32 else None


def find_target(name: str) -> BuildTarget:
    """The target called `name`; "host" is this machine.

    Raises:
        UnknownNameError: no such target; the message suggests the nearest.
        EnvironmentProblem: there are no kernels for this machine.
    """
    if name == "host":
        host = host_target()
        if host is None:
            raise EnvironmentProblem(
                f"there are no kernels for {platform.system()} on {platform.machine()}; files run on stock "
                "ONNX Runtime here"
            )
        return host
    if name not in TARGETS:
        raise UnknownNameError("target", name, ["host", *TARGETS])
    return TARGETS[name]


def build(
    target: BuildTarget,
    output: Path,
    *,
    force: bool = False,
    report: Callable[[str], None] = lambda text: None,
) -> Built:
    """Compile, link and check the library, and write it into a folder.

    Args:
        target: the machine to build for.
        output: the folder; other files in it stay as they are.
        force: replace a library that is there.
        report: called with one line of progress at a time.
    Raises:
        OutputExistsError: the file exists and `force` is false.
        MissingPackageError: ziglang is not installed.
        EnvironmentProblem: the installed ziglang cannot compile the sources.
        DiskFullError: no space left.
    """
    path = output / target.file
    if path.exists() and not force:
        raise OutputExistsError(f"{path} exists; pass --force to replace it or choose another --output")
    zig = find_zig()
    begin = time.perf_counter()
    with disk_errors(path), tempfile.TemporaryDirectory(prefix="qexport-kernels-") as work:
        data = _compile(zig, target, Path(work), report)
    needs = _check(target, data)
    atomic_write_bytes(path, data)
    return Built(target.name, path, len(data), needs, time.perf_counter() - begin)


def find_zig() -> Path:
    """The compiler in the package ziglang.

    Raises:
        MissingPackageError: it is not installed.
    """
    try:
        import ziglang
    except ImportError as error:
        raise MissingPackageError(
            "building needs the compiler in the package ziglang; install it with: pip install "
            '"qexport[bundle]"'
        ) from error
    return Path(str(ziglang.__file__)).with_name("zig.exe" if sys.platform == "win32" else "zig")


def _manifest() -> dict[str, Any]:
    content: dict[str, Any] = json.loads((SOURCES / "sources.json").read_text(encoding="utf-8"))
    return content


def _compile(zig: Path, target: BuildTarget, work: Path, report: Callable[[str], None]) -> bytes:
    """The linked library; `work` holds everything that comes up on the way, zig's caches too."""
    manifest = _manifest()
    compiler = [str(zig), "c++", "-target", target.triple]
    flags = ["-mcpu=baseline", "-fPIC", "-fno-sanitize=undefined", f'-DQEXPORT_VERSION="{__version__}"']
    flags += manifest["flags"]
    environment = {
        **os.environ,
        "ZIG_GLOBAL_CACHE_DIR": str(work / "cache"),
        "ZIG_LOCAL_CACHE_DIR": str(work / "cache"),
    }
    sources = {**manifest["common"], **manifest[target.machine]}
    commands: dict[str, list[str]] = {}
    objects = []
    for index, (source, own) in enumerate(sources.items()):
        objects.append(str(work / f"{index}.o"))
        files = ["-c", str(SOURCES / source), "-o", objects[-1]]
        commands[source] = [*compiler, *flags, *map(_for_zig, own), *files]
    run_commands(commands, environment, work, report)
    linked = work / target.file
    link = [*compiler, "-shared", "-s", *_link_flags(target), *objects, "-o", str(linked)]
    run_commands({target.file: link}, environment, work, report)
    return linked.read_bytes()


def _for_zig(flag: str) -> str:
    """A flag as zig spells it: it has no -march, and its names of Arm's versions have no dash."""
    return re.sub(r"^-march=armv(\d)\.(\d)-a", r"-mcpu=generic+v\1_\2a", flag)


def _link_flags(target: BuildTarget) -> list[str]:
    if target.system == "darwin":
        return ["-nostdlib", f"-Wl,-install_name,@rpath/{target.file}"]
    if target.system == "win32":
        return ["-nostdlib"]
    exports = f"-Wl,--version-script={SOURCES / 'exports.map'}"
    return ["-nostdlib", "-Wl,-z,defs", f"-Wl,-soname,{target.file}", exports]


def run_commands(
    commands: dict[str, list[str]], environment: dict[str, str], work: Path, report: Callable[[str], None]
) -> None:
    """Run named commands, as many at a time as there are processors; none outlives this call."""
    waiting = list(commands.items())
    running: list[tuple[str, subprocess.Popen[bytes], Path]] = []
    n_done = 0
    try:
        while waiting or running:
            while waiting and len(running) < (os.cpu_count() or 1):
                name, command = waiting.pop(0)
                log = work / f"{len(waiting)}.log"
                with log.open("wb") as file:
                    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=file,
                                               env=environment, cwd=work)  # fmt: skip
                running.append((name, process, log))
            name, process, log = running[0]
            code = process.wait()
            running.pop(0)
            n_done += 1
            if code:
                raise EnvironmentProblem(_complaint(name, log.read_text(encoding="utf-8", errors="replace")))
            report(f"{name} ({n_done} of {len(commands)})")
    finally:
        for _, process, _ in running:
            process.kill()
            process.wait()


def _complaint(name: str, log: str) -> str:
    from importlib.metadata import version

    lines = [line.strip() for line in log.splitlines() if line.strip()]
    said = next((line for line in lines if "error" in line.lower()), lines[-1] if lines else "no message")
    return (
        f"ziglang {version('ziglang')} cannot build {name} ({said[:300]}); the version that was tried comes "
        'with: pip install "qexport[bundle]"'
    )


def _check(target: BuildTarget, data: bytes) -> tuple[str, ...]:
    """Insist on what every library must be; returns the libraries it needs.

    Raises:
        EnvironmentProblem: the compiler made something else.
    """
    try:
        found = read_binary(data)
    except ValueError as error:
        raise EnvironmentProblem(f"the library built for {target.name} is unreadable: {error}") from error
    for wrong in _faults(target, found, len(data)):
        raise EnvironmentProblem(
            f"the library built for {target.name} {wrong}; install the compiler that was tried with: "
            'pip install "qexport[bundle]"'
        )
    return found.needed


def _faults(target: BuildTarget, found: Binary, n_bytes: int) -> Sequence[str]:
    allowed = {LIBSYSTEM} if target.system == "darwin" else set()
    foreign = [
        name
        for name in set(found.exports) - LINKER_MADE
        if name != "RegisterCustomOps" and not name.startswith("qexport_")
    ]
    own = [name for name in found.imports if not allowed]
    kind = (found.format, found.machine)
    faults = {
        f"is {found.format} for {found.machine}": kind != (target.format, target.machine),
        f"has {n_bytes} bytes, more than {MAX_BYTES}": n_bytes > MAX_BYTES,
        f"needs {', '.join(found.needed)}": bool(set(found.needed) - allowed),
        f"needs the symbols {', '.join(own)}": bool(own),
        f"exports {', '.join(foreign)}": bool(foreign),
        "does not export RegisterCustomOps": "RegisterCustomOps" not in found.exports,
    }
    return [text for text, wrong in faults.items() if wrong]
