"""The kernel library, built from serving/kernels/sources.json in the ways that the tests need.

A build is kept in the cache folder (QEXPORT_CACHE, else ~/.cache/qexport) under a name made of its sources,
flags and compiler, so it is made once.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from required import missing

from qexport.serving.kernels import library_path

ROOT = Path(__file__).resolve().parents[2]
KERNELS = ROOT / "serving" / "kernels"
SUPPORT = Path(__file__).resolve().parent
EMULATED = SUPPORT / "emulated"
DRIVER = SUPPORT / "kernel_driver.cpp"

SUFFIXES = {".cpp", ".h", ".inl", ".json", ".map"}
"""Of the files that a build depends on."""

VERSION = '-DQEXPORT_VERSION="0.1.0"'


@dataclass(frozen=True)
class Compiler:
    """A C++ compiler."""

    command: tuple[str, ...]
    """Its name and the options that always stand."""
    arch: str
    """What it compiles for: a key of sources.json."""
    identity: str
    """Its version, for the cache."""

    def print_file(self, name: str) -> str | None:
        """Path of a file that comes with it; None where it lacks the file."""
        said = subprocess.run(
            [*self.command, f"-print-file-name={name}"], capture_output=True, text=True, check=True
        )
        path = said.stdout.strip()
        return path if os.path.isabs(path) else None


def host_arch() -> str:
    """Name of this machine's architecture in sources.json."""
    return {"amd64": "x86_64", "arm64": "aarch64"}.get(platform.machine().lower(), platform.machine())


@functools.cache
def compiler_at(command: tuple[str, ...], arch: str) -> Compiler | None:
    """The compiler of that command; None where it does not run."""
    try:
        done = subprocess.run([*command, "--version"], capture_output=True, text=True, check=False)
    except OSError:
        return None
    return Compiler(command, arch, done.stdout) if done.returncode == 0 else None


def host_compiler() -> Compiler:
    """CXX, else the first of g++, c++, clang++."""
    for name in (os.environ.get("CXX", ""), "g++", "c++", "clang++"):
        found = compiler_at((name,), host_arch()) if name and shutil.which(name) else None
        if found:
            return found
    missing("no C++ compiler; install g++ or set CXX")


def arm64_compilers() -> dict[str, Compiler]:
    """Compilers for arm64 Linux by name: zig, which the wheels of other systems are made with, and GCC."""
    found: dict[str, Compiler | None] = {}
    if importlib.util.find_spec("ziglang"):
        zig = (sys.executable, "-m", "ziglang", "c++", "-target", "aarch64-linux-musl", "-mcpu=baseline")
        found["zig"] = compiler_at((*zig, "-nostdlib++", "-fno-sanitize=undefined"), "aarch64")
    if shutil.which("aarch64-linux-gnu-g++"):
        found["gcc"] = compiler_at(("aarch64-linux-gnu-g++",), "aarch64")
    return {name: compiler for name, compiler in found.items() if compiler}


def sources(arch: str) -> dict[str, list[str]]:
    """Source file and its own flags, in the order of sources.json."""
    listed = json.loads((KERNELS / "sources.json").read_text(encoding="utf-8"))
    return {**listed["common"], **listed.get(arch, {})}


def common_flags() -> list[str]:
    """Flags of every source file."""
    flags: list[str] = json.loads((KERNELS / "sources.json").read_text(encoding="utf-8"))["flags"]
    return flags


Flags = Callable[[str, list[str]], "list[str] | None"]
"""From a source's name and flags to the flags to use; None leaves the source out."""


def build(
    compiler: Compiler,
    *,
    flags: Flags = lambda _name, own: own,
    extra: tuple[str, ...] = (),
    more: tuple[tuple[Path, tuple[str, ...]], ...] = (),
    link: tuple[str, ...] = ("-shared", "-nostdlib", f"-Wl,--version-script={KERNELS / 'exports.map'}"),
    name: str = "libqexport_kernels.so",
) -> Path:
    """Compile and link what sources.json lists, and some more files.

    Args:
        compiler: which compiler.
        flags: changes a source's own flags.
        extra: flags of all sources, the last to be given.
        more: further source files, each with its flags; those of sources.json do not hold for them.
        link: flags of the link.
        name: of the file that is made.
    Raises:
        AssertionError: it does not compile, or with a warning.
    """
    jobs: list[tuple[Path, list[str]]] = []
    for source, own in sources(compiler.arch).items():
        if "ziglang" in compiler.command:  # it has no -march, and its names of Arm's versions have no dash
            own = [re.sub(r"^-march=armv(\d)\.(\d)-a", r"-mcpu=generic+v\1_\2a", flag) for flag in own]
        chosen = flags(source, list(own))
        if chosen is not None:
            jobs.append((KERNELS / source, [*common_flags(), "-fPIC", "-Werror", VERSION, *chosen, *extra]))
    jobs += [
        (source, ["-std=c++17", "-O1", "-fPIC", "-Wall", "-Wextra", *own, *extra]) for source, own in more
    ]
    digest = hashlib.sha256(repr((compiler, jobs, link, name)).encode())
    for file in sorted({*_files(KERNELS), *_files(SUPPORT)}):
        if file.suffix in SUFFIXES:
            digest.update(file.name.encode() + file.read_bytes())
    cache = Path(os.environ.get("QEXPORT_CACHE") or Path.home() / ".cache" / "qexport") / "kernel-tests"
    made = cache / digest.hexdigest()[:20] / name
    if made.exists():
        return made
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as temporary:
        work = Path(temporary)

        def compiled(numbered: tuple[int, tuple[Path, list[str]]]) -> Path:
            number, (source, options) = numbered
            to = work / f"{number}.o"
            run([*compiler.command, *options, "-c", str(source), "-o", str(to)])
            return to

        with ThreadPoolExecutor(2) as pool:
            objects = list(pool.map(compiled, enumerate(jobs)))
        folder = work / "made"
        folder.mkdir()
        run([*compiler.command, *(str(item) for item in objects), *extra, *link, "-o", str(folder / name)])
        if not made.exists():
            made.parent.mkdir(exist_ok=True)
            os.replace(folder / name, made)
    return made


def run(command: list[str]) -> None:
    """Run a compiler."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stderr[-4000:]}"


def _files(folder: Path) -> Iterator[Path]:
    return (file for file in folder.rglob("*") if file.is_file())


def host_library() -> Path:
    """The library of this machine: QEXPORT_KERNELS, else the installed one, else a new one.

    An installed one that is older than a source counts as none.
    """
    named = os.environ.get("QEXPORT_KERNELS")
    installed = library_path()
    newest = max(file.stat().st_mtime for file in _files(KERNELS) if file.suffix in SUFFIXES)
    if installed and (named or installed.stat().st_mtime > newest):
        return installed
    return build(host_compiler())


def _emulated(source: str, own: list[str]) -> list[str]:
    """Flags with which every x86 instruction set needs AVX2 only, see emulated/immintrin.h."""
    beyond = [flag for flag in own if flag.startswith(("-mavx512", "-mavxvnni", "-mamx"))]
    if beyond:
        own = [flag for flag in own if flag not in (*beyond, "-mavx2")]
        own += ["-mavx2", "-I", str(EMULATED)]
    return [*own, "-DQEXPORT_EMULATED"]


def emulated_library() -> Path:
    """Every x86 instruction set in one library that needs AVX2 only."""
    compiler = host_compiler()
    if compiler.arch != "x86_64":
        missing("the x86 instruction sets are emulated on x86-64 only")
    return build(compiler, flags=_emulated, extra=("-O1",))


def vector_functions() -> Path:
    """Powers and erf of the kernels on arrays, see vector_functions.cpp."""
    compiler = host_compiler()
    wide = ("-mavx2", "-mfma") if compiler.arch == "x86_64" else ()
    own = (*common_flags(), "-Wno-unused-function", "-I", str(KERNELS / "isa"), *wide)
    return build(
        compiler,
        flags=lambda _name, _own: None,
        more=((SUPPORT / "vector_functions.cpp", own),),
        link=("-shared", "-nostdlib"),
        name="vector_functions.so",
    )


SANITIZERS = ("-O1", "-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")


@dataclass(frozen=True)
class Sanitized:
    """The kernels with SANITIZERS, every x86 instruction set among them."""

    library: Path
    """The kernel library, which needs the sanitizers' run-time library in its process."""
    driver: Path
    """The driver, linked with that library."""
    preload: str
    """LD_PRELOAD for Python: the run-time library, and the C++ library whose exceptions it looks at."""
    compile: tuple[str, ...]
    """The command that compiles a program with the same checks."""


def sanitized() -> Sanitized:
    """Built by clang, or by the host's compiler where clang has no run-time library for sanitizers."""
    candidates = [
        compiler_at(("clang++",), host_arch()) if shutil.which("clang++") else None,
        host_compiler(),
    ]
    for compiler in candidates:
        if compiler is None:
            continue
        is_clang = "clang" in compiler.identity
        name = f"libclang_rt.asan-{host_arch()}.so" if is_clang else "libasan.so"
        before = [compiler.print_file(file) for file in (name, "libstdc++.so")]
        if all(before):
            break
    else:
        missing("no compiler with sanitizers; install g++, or clang with libclang-rt-dev")
    options = (*SANITIZERS, "-shared-libasan") if is_clang else SANITIZERS

    def flags(source: str, own: list[str]) -> list[str] | None:
        return None if source == "memory.cpp" else _emulated(source, own)  # the process has a C library

    library = build(compiler, flags=flags, extra=options, link=("-shared",))
    link = (str(library), f"-Wl,-rpath,{library.parent}", f"-Wl,-rpath,{Path(str(before[0])).parent}")
    driver = build(
        compiler,
        flags=lambda _source, _own: None,
        extra=options,
        more=((DRIVER, ()),),
        link=link,
        name="kernel-driver",
    )
    return Sanitized(library, driver, " ".join(map(str, before)), (*compiler.command, *options))


def arm64_driver(compiler: Compiler) -> Path:
    """A static program that runs every operator through the hooks, see kernel_driver.cpp."""
    return build(
        compiler,
        flags=lambda source, own: None if source == "memory.cpp" else own,
        more=((DRIVER, ("-ffp-contract=off", "-fno-exceptions", "-fno-rtti")),),
        link=("-static",),
        name="kernel-driver",
    )
