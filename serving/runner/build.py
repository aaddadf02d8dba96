"""Compiling the runner, and the kernel library that goes with it, for another machine; kept in the cache.

The compiler is the one in the package ziglang. The runner is linked against stubs made here, libraries that
only name the few functions it takes from the C library of its target, so no SDK and no C library is needed.
"""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from qexport import __version__
from qexport.atomic import atomic_write_bytes, disk_errors
from qexport.cache import cache_folder
from qexport.errors import EnvironmentProblem, UnknownNameError
from qexport.serving.kernels import crossbuild, library_path
from qexport.serving.kernels.binary import read_binary

__all__ = [
    "RUNNERS",
    "RunnerTarget",
    "build_plugin",
    "build_runner",
    "kernels_for",
    "runner_path",
    "runner_problem",
]

SOURCES = Path(__file__).parent
_NAME = "qexport-runner"
_FLAGS = (
    "-std=c++17", "-O2", "-ffreestanding", "-fno-exceptions", "-fno-rtti", "-fno-stack-protector",
    "-fno-asynchronous-unwind-tables", "-fno-sanitize=undefined", "-fno-threadsafe-statics",
    "-fwrapv",
    "-fPIE",
    "-nostdlib", "-Wall", "-Wextra",
)  # fmt: skip
_DL = ("dlopen", "dlsym", "dlerror")
_MEMORY = ("memset", "memcpy")

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class RunnerTarget:
    """A kind of machine that the runner can be built for."""

    name: str
    """As `qexport kernels build` calls it."""
    machine: str
    """ "x86_64" or "aarch64"."""
    loader: str
    """The program that the system starts it with."""
    stubs: Mapping[str, tuple[str, ...]]
    """Library of the target -> what the runner takes from it."""


def _targets() -> dict[str, RunnerTarget]:
    found = {}
    loaders = {
        "linux-gnu": {"x86_64": "/lib64/ld-linux-x86-64.so.2", "aarch64": "/lib/ld-linux-aarch64.so.1"},
        "linux-musl": {"x86_64": "/lib/ld-musl-x86_64.so.1", "aarch64": "/lib/ld-musl-aarch64.so.1"},
        "linux-android": {"aarch64": "/system/bin/linker64"},
    }
    stubs: dict[str, dict[str, tuple[str, ...]]] = {
        "linux-gnu": {"libc.so.6": ("__libc_start_main", *_MEMORY), "libdl.so.2": _DL},
        "linux-musl": {"libc.so": ("__libc_start_main", *_MEMORY, *_DL)},
        "linux-android": {"libc.so": ("__libc_init", *_MEMORY), "libdl.so": _DL},
    }
    for system, machines in loaders.items():
        for machine, loader in machines.items():
            name = f"{machine}-{system}"
            found[name] = RunnerTarget(name, machine, loader, stubs[system])
    return found


RUNNERS = _targets()
"""Name -> target, of all that the runner is written for."""


def _target(name: str) -> RunnerTarget:
    if name not in RUNNERS:
        raise UnknownNameError("machine", name, RUNNERS)
    return RUNNERS[name]


def _digest(*folders: Path) -> str:
    """Of the C and C++ sources in the folders, their flags and the version; twelve characters."""
    total = hashlib.sha256(f"{__version__} {' '.join(_FLAGS)}".encode())
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            if path.suffix in (".c", ".cpp", ".h", ".inl", ".json", ".map"):
                total.update(path.name.encode() + path.read_bytes())
    return total.hexdigest()[:12]


def runner_path(name: str) -> Path:
    """Where the runner for a target is kept, whether it was built or not.

    Raises:
        UnknownNameError: no such target.
    """
    _target(name)
    digest = _digest(SOURCES, crossbuild.SOURCES)
    return cache_folder() / "targets" / "runner" / digest / name / _NAME


def kernels_path(name: str) -> Path:
    """Where the kernel library for a target is kept, beside the runner."""
    return runner_path(name).with_name(crossbuild.find_target(name).file)


def runner_problem(name: str) -> str:
    """Why runner and kernels for a target are not at hand, one clause; "" when they are."""
    missing = [path.name for path in (runner_path(name), kernels_path(name)) if not path.is_file()]
    return f"{' and '.join(missing)} for {name} have not been built" if missing else ""


def kernels_for(name: str, say: Say = lambda line: None) -> Path:
    """The kernel library for a target, built now if it was not; for this machine that of this installation.

    Raises:
        UnknownNameError: no such target.
        EnvironmentProblem: see `crossbuild.build`.
    """
    path = kernels_path(name)
    host, own = crossbuild.host_target(), library_path()
    if host is not None and host.name == name and own is not None:
        return own
    if not path.is_file():
        say(f"compiling the kernel library for {name}")
        crossbuild.build(crossbuild.find_target(name), path.parent, force=True)
    return path


def build_runner(name: str, say: Say = lambda line: None) -> Path:
    """The runner for a target, built now if it was not.

    Args:
        name: one of `RUNNERS`.
        say: takes one line of progress.
    Raises:
        UnknownNameError: no such target.
        MissingPackageError: ziglang is not installed.
        EnvironmentProblem: the installed ziglang cannot compile it, or made something else.
        DiskFullError: no space left.
    """
    target, path = _target(name), runner_path(name)
    if path.is_file():
        return path
    zig = crossbuild.find_zig()
    say(f"compiling the runner for {name}")
    with disk_errors(path), tempfile.TemporaryDirectory(prefix="qexport-runner-") as folder:
        data = _compile(zig, target, Path(folder))
    _check(target, data)
    atomic_write_bytes(path, data)
    path.chmod(0o755)
    return path


def _environment(work: Path) -> dict[str, str]:
    cache = str(work / "cache")
    return {**os.environ, "ZIG_GLOBAL_CACHE_DIR": cache, "ZIG_LOCAL_CACHE_DIR": cache}


def _compile(zig: Path, target: RunnerTarget, work: Path) -> bytes:
    stubs, commands = [], {}
    for name, functions in target.stubs.items():
        source = work / f"{name}.c"
        source.write_text("".join(f"void {function}(void) {{}}\n" for function in functions))
        stubs.append(str(work / name))
        commands[name] = [
            str(zig), "cc", "-target", target.name, "-shared", "-nostdlib", "-w", "-fno-sanitize=undefined",
            f"-Wl,-soname,{name}", str(source), "-o", stubs[-1],
        ]  # fmt: skip
    crossbuild.run_commands(commands, _environment(work), work, lambda line: None)
    out = work / _NAME
    link = [
        str(zig), "c++", "-target", target.name, "-mcpu=baseline", *_FLAGS,
        f'-DQEXPORT_VERSION="{__version__}"',
        str(SOURCES / "runner.cpp"), *stubs, "-s", "-pie", f"-Wl,--dynamic-linker={target.loader}",
        "-Wl,-z,now",
        "-o", str(out),
    ]  # fmt: skip
    crossbuild.run_commands({_NAME: link}, _environment(work), work, lambda line: None)
    return out.read_bytes()


def _check(target: RunnerTarget, data: bytes) -> None:
    try:
        found = read_binary(data)
    except ValueError as error:
        raise EnvironmentProblem(f"the runner built for {target.name} is unreadable: {error}") from error
    allowed = {function for functions in target.stubs.values() for function in functions}
    foreign = sorted(set(found.imports) - allowed)
    if found.machine != target.machine or set(found.needed) - set(target.stubs) or foreign:
        raise EnvironmentProblem(
            f"the runner built for {target.name} is for {found.machine} and needs {', '.join(found.needed)} "
            f'{", ".join(foreign)}; install the compiler that was tried with: pip install "qexport[bundle]"'
        )


def build_plugin(source: Path, say: Say = lambda line: None) -> Path | None:
    """A plugin of the emulator for this machine, built now if it was not; None where there is no way to.

    Args:
        source: its C file.
        say: takes one line of progress.
    Raises:
        MissingPackageError, EnvironmentProblem: as `build_runner`.
    """
    host = crossbuild.host_target()
    if host is None or sys.platform != "linux":
        return None
    path = cache_folder() / "targets" / "plugin" / _digest(source.parent) / f"{source.stem}.so"
    if path.is_file():
        return path
    zig = crossbuild.find_zig()
    say(f"compiling {source.name}")
    with disk_errors(path), tempfile.TemporaryDirectory(prefix="qexport-plugin-") as folder:
        work = Path(folder)
        out = work / path.name
        command = [
            str(zig), "cc", "-target", host.triple, "-mcpu=baseline", "-shared", "-fPIC", "-O2", "-nostdlib",
            "-ffreestanding", "-fno-sanitize=undefined", "-fno-stack-protector",
            "-fvisibility=hidden",
            "-Wall",
            "-Wextra", str(source), "-o", str(out),
        ]  # fmt: skip
        crossbuild.run_commands({source.name: command}, _environment(work), work, lambda line: None)
        atomic_write_bytes(path, out.read_bytes())
    return path
