"""`qexport kernels build`: every target compiles, and what comes out is what the target takes."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from required import missing

from qexport.cli import main
from qexport.errors import EnvironmentProblem, MissingPackageError, OutputExistsError, UnknownNameError
from qexport.serving.kernels import Kernels, crossbuild, library_path
from qexport.serving.kernels.binary import Binary, read_binary
from qexport.serving.kernels.crossbuild import (
    LIBSYSTEM,
    MAX_BYTES,
    TARGETS,
    Built,
    build,
    find_target,
    host_target,
)

HOST = host_target()
GOOD = Binary("elf", "x86_64", (), ("RegisterCustomOps", "qexport_isa"), ())


@pytest.fixture(scope="module")
def ziglang() -> None:
    if importlib.util.find_spec("ziglang") is None:
        missing("the package ziglang is not installed: pip install -e '.[bundle]'")


@pytest.fixture
def prebuilt(monkeypatch: pytest.MonkeyPatch) -> bytes:
    """The compiler's work is done before it starts: whatever is built, these bytes come out."""
    monkeypatch.setattr(crossbuild, "find_zig", lambda: Path("zig"))
    monkeypatch.setattr(crossbuild, "_compile", lambda *_: b"a library")
    monkeypatch.setattr(crossbuild, "_check", lambda *_: ())
    return b"a library"


Make = Callable[[str], tuple[Built, list[str]]]


@pytest.fixture(scope="module")
def built(ziglang: None, tmp_path_factory: pytest.TempPathFactory) -> Make:
    """The library for a target, built once, and the lines of progress."""

    @functools.cache
    def make(name: str) -> tuple[Built, list[str]]:
        lines: list[str] = []
        folder = tmp_path_factory.mktemp("built") / "new" / name
        return build(TARGETS[name], folder, report=lines.append), lines

    return make


@pytest.mark.parametrize("name", TARGETS)
def test_target_builds(name: str, built: Make) -> None:
    target = TARGETS[name]
    result, lines = built(name)
    data = result.path.read_bytes()
    found = read_binary(data)
    assert (result.target, result.path.name) == (name, target.file)
    assert len(data) == result.n_bytes < MAX_BYTES
    assert (found.format, found.machine) == (target.format, target.machine)
    assert found.needed == result.needs == ((LIBSYSTEM,) if target.system == "darwin" else ())
    assert {"RegisterCustomOps", "qexport_set_isa", "qexport_isa", "qexport_matmul"} <= set(found.exports)
    assert [path.name for path in result.path.parent.iterdir()] == [target.file]
    assert len(lines) > 10 and lines[-1] == f"{target.file} (1 of 1)"


def test_host_library_loads_and_has_the_instruction_sets_of_the_installed_one(built: Make) -> None:
    if HOST is None:
        pytest.skip("there are no kernels for this machine")
    code = (
        "import sys; from pathlib import Path; from qexport.serving.kernels import Kernels;"
        "print(*Kernels(Path(sys.argv[1])).supported_isas)"
    )
    command = [sys.executable, "-c", code, str(built(HOST.name)[0].path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    if library_path() is not None:
        assert tuple(done.stdout.split()) == Kernels().supported_isas


def test_every_source_is_listed_once() -> None:
    manifest = json.loads((crossbuild.SOURCES / "sources.json").read_text())
    listed = [name for group in ("common", "x86_64", "aarch64") for name in manifest[group]]
    there = {path.relative_to(crossbuild.SOURCES).as_posix() for path in crossbuild.SOURCES.rglob("*.cpp")}
    assert sorted(listed) == sorted(there)


def test_zig_is_given_arm_versions_in_its_own_spelling() -> None:
    assert crossbuild._for_zig("-march=armv8.2-a+dotprod+i8mm") == "-mcpu=generic+v8_2a+dotprod+i8mm"
    assert crossbuild._for_zig("-mavx512f") == "-mavx512f"


def test_unknown_target_suggests_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'aarch64-linux-android'"):
        find_target("aarch64-android")


@pytest.mark.parametrize(
    ("system", "machine", "name"),
    [
        ("linux", "x86_64", "x86_64-linux-gnu"),
        ("linux", "aarch64", "aarch64-linux-gnu"),
        ("darwin", "arm64", "aarch64-macos"),
        ("win32", "AMD64", "x86_64-windows"),
        ("android", "aarch64", "aarch64-linux-android"),
    ],
)
def test_host_is_the_target_of_this_machine(
    system: str, machine: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crossbuild.sys, "platform", system)
    monkeypatch.setattr(crossbuild.platform, "machine", lambda: machine)
    monkeypatch.setattr(crossbuild.platform, "libc_ver", lambda: ("glibc", "2.36"))
    assert find_target("host") is TARGETS[name]


def test_host_without_kernels_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crossbuild.platform, "machine", lambda: "riscv64")
    with pytest.raises(EnvironmentProblem, match=r"no kernels for .* on riscv64"):
        find_target("host")


def test_missing_ziglang_names_the_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "ziglang", None)
    with pytest.raises(MissingPackageError, match=r'pip install "qexport\[bundle\]"'):
        build(TARGETS["aarch64-macos"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_existing_library_stays_without_force(prebuilt: bytes, tmp_path: Path) -> None:
    target = TARGETS["aarch64-linux-android"]
    there = tmp_path / target.file
    there.write_bytes(b"mine")
    other = tmp_path / "libother.so"
    other.write_bytes(b"other")
    with pytest.raises(OutputExistsError, match=r"libqexport_kernels\.so exists; pass --force"):
        build(target, tmp_path)
    assert there.read_bytes() == b"mine"
    build(target, tmp_path, force=True)
    assert there.read_bytes() == prebuilt
    assert other.read_bytes() == b"other"


def test_source_that_does_not_compile_is_named_with_the_compilers_words(
    ziglang: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "broken.cpp").write_text("int f() { return nothing; }\n")
    (tmp_path / "exports.map").write_text("{};\n")
    manifest = {"flags": [], "common": {"broken.cpp": []}, "x86_64": {}, "aarch64": {}}
    (tmp_path / "sources.json").write_text(json.dumps(manifest))
    monkeypatch.setattr(crossbuild, "SOURCES", tmp_path)
    with pytest.raises(
        EnvironmentProblem, match=r"cannot build broken\.cpp .*undeclared identifier 'nothing'"
    ):
        build(TARGETS["x86_64-linux-gnu"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changed", "n_bytes", "fault"),
    [
        ({}, 1000, None),
        ({"machine": "aarch64"}, 1000, "is elf for aarch64"),
        ({"format": "pe"}, 1000, "is pe for x86_64"),
        ({"needed": ("libc.so.6",)}, 1000, "needs libc.so.6"),
        ({"imports": ("memcpy",)}, 1000, "needs the symbols memcpy"),
        ({"exports": ("RegisterCustomOps", "stray")}, 1000, "exports stray"),
        ({"exports": ("qexport_isa",)}, 1000, "does not export RegisterCustomOps"),
        ({}, MAX_BYTES + 1, f"has {MAX_BYTES + 1} bytes, more than {MAX_BYTES}"),
    ],
)
def test_library_that_is_not_as_promised_is_refused(
    changed: dict[str, Any], n_bytes: int, fault: str | None
) -> None:
    found = dataclasses.replace(GOOD, **changed)
    faults = crossbuild._faults(TARGETS["x86_64-linux-gnu"], found, n_bytes)
    assert list(faults) == ([] if fault is None else [fault])


def test_libsystem_is_allowed_on_macos_only() -> None:
    for name, kind, allowed in (("x86_64-macos", "mach-o", True), ("x86_64-linux-gnu", "elf", False)):
        found = dataclasses.replace(GOOD, format=kind, needed=(LIBSYSTEM,), imports=("bzero",))
        assert (not crossbuild._faults(TARGETS[name], found, 1000)) == allowed


def test_unreadable_library_is_refused() -> None:
    with pytest.raises(EnvironmentProblem, match="built for x86_64-macos is unreadable"):
        crossbuild._check(TARGETS["x86_64-macos"], b"\x7fELF")


def test_ctrl_c_leaves_nothing(ziglang: None, tmp_path: Path) -> None:
    work, out = tmp_path / "work", tmp_path / "out"
    work.mkdir()
    command = [sys.executable, "-c", "import sys; from qexport.cli import main; sys.exit(main())",
               "kernels", "build", "--target", "aarch64-linux-musl", "-o", str(out)]  # fmt: skip
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env={**os.environ, "TMPDIR": str(work)}, cwd=tmp_path
    )
    assert process.stderr is not None
    first = process.stderr.readline()  # one source is compiled, the next ones are under way
    process.send_signal(signal.SIGINT)
    rest = process.stderr.read()
    assert process.wait(timeout=60) == 130
    assert re.match(r".*\.cpp \(1 of \d+\)", first)
    assert "interrupted, nothing was left half written" in rest
    assert not out.exists()
    assert list(work.iterdir()) == []
    assert not _running(str(work))


def _running(text: str) -> list[str]:
    """Processes with `text` in their command; on systems with /proc."""
    deadline = time.monotonic() + 5
    found: list[str] = []
    while time.monotonic() < deadline:
        found = [
            path.parent.name
            for path in Path("/proc").glob("[0-9]*/cmdline")
            if text in _read(path) and path.parent.name != str(os.getpid())
        ]
        if not found:
            break
        time.sleep(0.1)
    return found


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode(errors="replace")
    except OSError:  # it ended meanwhile
        return ""


def test_command_prints_what_it_built(
    prebuilt: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["kernels", "build", "--target", "x86_64-windows", "--output", str(tmp_path)]
    assert main([*words, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    path = str(tmp_path / "qexport_kernels.dll")
    assert result.pop("seconds") >= 0
    assert result == {"target": "x86_64-windows", "path": path, "bytes": len(prebuilt), "needs": []}
    assert main(words) == 2
    assert "exists; pass --force" in capsys.readouterr().err
    assert main([*words, "--force"]) == 0
    assert capsys.readouterr().out == f"{path}: x86_64-windows, 0 kB, needs no other library\n"


def test_command_ends_in_the_code_of_its_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = ["kernels", "build", "-o", str(tmp_path), "-t"]
    assert main([*words, "x86-windows"]) == 2
    assert "did you mean 'x86_64-windows'" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "ziglang", None)
    assert main([*words, "x86_64-windows"]) == 4
    assert "qexport[bundle]" in capsys.readouterr().err
