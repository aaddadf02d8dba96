"""What gets installed: `qexport` and nothing else at top level, its data files, and the kernel library."""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from required import missing

from qexport.serving.kernels import file_name
from qexport.serving.kernels.binary import read_binary
from qexport.serving.kernels.crossbuild import LIBSYSTEM

CHECKOUT = Path(__file__).resolve().parents[2]
FOLDERS = {"qexport": "qexport", "training": "qexport/training", "graphs": "qexport/graphs",
           "serving": "qexport/serving"}  # fmt: skip


def _run(code: str, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `code` beside the build backend, as pip does."""
    return subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = ['.', 'cmake']; {code}", *words],
        cwd=CHECKOUT, capture_output=True, text=True, check=False, env={**os.environ, **environment},
    )  # fmt: skip


def _build(kind: str, target: Path, **environment: str) -> Path:
    code = f"from build_backend import build_{kind} as build; print(build(sys.argv[1]))"
    done = _run(code, str(target), **environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return target / done.stdout.split()[-1]


def _requirements(**environment: str) -> list[str]:
    """What the backend asks for to build a wheel, but for cmake and ninja."""
    done = _run("from build_backend import get_requires_for_build_wheel as ask; print(*ask())", **environment)
    assert done.returncode == 0, done.stderr
    return [word for word in done.stdout.split() if not word.startswith(("cmake", "ninja"))]


def _sources() -> Iterator[tuple[str, str]]:
    """(path in the checkout, path in the wheel) of every file that must ship."""
    for folder, place in FOLDERS.items():
        for path in (CHECKOUT / folder).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                inside = path.relative_to(CHECKOUT / folder).as_posix()
                yield f"{folder}/{inside}", f"{place}/{inside}"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    found = _run("import host_compiler; print(*host_compiler.find_compiler())").stdout.strip()
    if not found and importlib.util.find_spec("ziglang") is None:
        missing("there is no C++ compiler: install g++ or, into this environment, ziglang")
    return zipfile.ZipFile(_build("wheel", tmp_path_factory.mktemp("wheel"), QEXPORT_NO_KERNELS="0"))


@pytest.fixture(scope="module")
def plain_wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    return zipfile.ZipFile(_build("wheel", tmp_path_factory.mktemp("plain"), QEXPORT_NO_KERNELS="1"))


def _library(wheel: zipfile.ZipFile) -> list[str]:
    kinds = (".so", ".dylib", ".dll", ".pyd")
    return [name for name in wheel.namelist() if name.endswith(kinds)]


def test_wheel_has_one_top_level_package(wheel: zipfile.ZipFile) -> None:
    tops = {name.split("/")[0] for name in wheel.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"qexport"}
    assert not [name for name in wheel.namelist() if "tests" in name.split("/")]


def test_wheel_holds_every_source_and_data_file(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    missing = [place for _, place in _sources() if place not in names]
    assert not missing
    for needed in (
        "qexport/py.typed",
        "qexport/serving/report.schema.json",
        "qexport/serving/targets/js/engine.mjs",
        "qexport/serving/targets/js/package-lock.json",
        "qexport/training/config.py",
    ):
        assert needed in names
    assert [name for name in names if name.endswith((".html", ".jinja", ".j2"))]


def test_wheel_has_the_script(wheel: zipfile.ZipFile) -> None:
    info = next(name for name in wheel.namelist() if name.endswith("entry_points.txt"))
    assert "qexport=qexport.cli:main" in wheel.read(info).decode().replace(" ", "")


def test_wheel_holds_the_kernel_library_and_no_other(wheel: zipfile.ZipFile) -> None:
    assert _library(wheel) == [f"qexport/serving/kernels/{file_name(sys.platform)}"]
    data = wheel.read(_library(wheel)[0])
    found = read_binary(data)
    assert len(data) < 300_000
    assert found.machine == {"AMD64": "x86_64", "arm64": "aarch64"}.get(
        platform.machine(), platform.machine()
    )
    assert set(found.needed) <= ({LIBSYSTEM} if sys.platform == "darwin" else set())
    assert "RegisterCustomOps" in found.exports
    assert all(name.startswith("qexport_") for name in set(found.exports) - {"RegisterCustomOps"})


def test_wheel_is_for_every_python_on_this_platform(wheel: zipfile.ZipFile) -> None:
    assert wheel.filename is not None
    tag = Path(wheel.filename).stem.split("-", 2)[2]
    assert tag.startswith("py3-none-") and tag != "py3-none-any"
    assert sysconfig.get_platform().replace("-", "_").replace(".", "_").split("_")[0] in tag


def test_wheel_without_kernels_is_pure_and_keeps_the_sources(plain_wheel: zipfile.ZipFile) -> None:
    assert plain_wheel.filename is not None
    assert plain_wheel.filename.endswith("-py3-none-any.whl")
    assert _library(plain_wheel) == []
    assert "qexport/serving/kernels/sources.json" in plain_wheel.namelist()


def test_sources_of_the_kernels_ship_for_cross_builds(plain_wheel: zipfile.ZipFile) -> None:
    inside = "qexport/serving/kernels/"
    manifest = json.loads(plain_wheel.read(inside + "sources.json"))
    names = set(plain_wheel.namelist())
    listed = [name for group in ("common", "x86_64", "aarch64") for name in manifest[group]]
    assert not [name for name in listed if inside + name not in names]
    assert {inside + "exports.map", inside + "ort_abi.h", inside + "crossbuild.py"} <= names


def test_ziglang_is_asked_for_only_without_a_compiler(tmp_path: Path) -> None:
    project = (CHECKOUT / "pyproject.toml").read_text(encoding="utf-8")
    pinned = project.split('bundle = ["')[1].split('"')[0]
    assert pinned.startswith("ziglang==")
    _compiler(tmp_path / "new", "c++", "#define __GNUC__ 11")
    assert _requirements(PATH=str(tmp_path / "new"), CXX="") == []
    assert _requirements(PATH=str(tmp_path / "none"), CXX="") == [pinned]
    assert _requirements(PATH=str(tmp_path / "none"), CXX="g++") == [pinned]  # as scikit-build-core sets it
    assert _requirements(PATH=str(tmp_path / "none"), CXX="", QEXPORT_NO_KERNELS="1") == []


@pytest.mark.skipif(sys.platform == "win32", reason="ziglang compiles there, whatever is installed")
@pytest.mark.parametrize(
    ("macros", "taken"),
    [
        ("#define __GNUC__ 10", False),
        ("#define __GNUC__ 11", True),
        ("#define __GNUC__ 4\n#define __clang_major__ 11", False),
        ("#define __GNUC__ 4\n#define __clang_major__ 12", True),
        ("#define __clang_major__ 12\n#define __apple_build_version__ 12000032", False),
        ("#define _MSC_VER 1940", False),
    ],
)
def test_compiler_is_taken_from_its_version_on(macros: str, taken: bool, tmp_path: Path) -> None:
    _compiler(tmp_path, "clang++", macros)
    code = "import host_compiler; print(*host_compiler.find_compiler())"
    assert _run(code, PATH=str(tmp_path), CXX="").stdout.split() == (["clang++"] if taken else [])


@pytest.mark.skipif(sys.platform == "win32", reason="ziglang compiles there, whatever is installed")
def test_compiler_named_by_cxx_comes_first_with_its_words(tmp_path: Path) -> None:
    for name in ("c++", "mine"):
        _compiler(tmp_path, name, "#define __GNUC__ 13")
    code = "import host_compiler; print(host_compiler.find_compiler())"
    assert _run(code, PATH=str(tmp_path), CXX="mine -m64").stdout == "['mine', '-m64']\n"
    assert _run(code, PATH=str(tmp_path), CXX="gone").stdout == "['c++']\n"


def test_build_without_any_compiler_says_what_to_do(tmp_path: Path) -> None:
    tools = _build_tools(tmp_path)
    hidden = tmp_path / "hidden" / "ziglang.py"
    hidden.parent.mkdir()
    hidden.write_text("raise ImportError('hidden by a test')\n")
    code = "from build_backend import build_wheel as build; build(sys.argv[1])"
    done = _run(code, str(tmp_path), PATH=str(tools), CXX="", PYTHONPATH=str(hidden.parent))
    said = " ".join((done.stdout + done.stderr).split())
    assert done.returncode != 0
    assert "no C++ compiler that will do (GCC 11, clang 12 or newer) and no Python package ziglang" in said
    assert "QEXPORT_NO_KERNELS=1 installs without" in said
    assert not list(tmp_path.glob("*.whl"))


def test_ziglang_builds_the_library_where_there_is_no_compiler(tmp_path: Path) -> None:
    if importlib.util.find_spec("ziglang") is None:
        missing("the package ziglang is not installed: pip install -e '.[bundle]'")
    tools = _build_tools(tmp_path)
    wheel = zipfile.ZipFile(_build("wheel", tmp_path, PATH=str(tools), CXX="", QEXPORT_NO_KERNELS=""))
    found = read_binary(wheel.read(_library(wheel)[0]))
    assert "RegisterCustomOps" in found.exports and found.imports == ()


def _compiler(folder: Path, name: str, macros: str) -> None:
    """A program that claims to be a compiler with these macros."""
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!{sys.executable}\nprint({macros!r})\n")
    path.chmod(0o755)


def _build_tools(folder: Path) -> Path:
    """A folder for PATH that holds cmake and ninja, and no compiler."""
    tools = folder / "tools"
    tools.mkdir()
    for name in ("cmake", "ninja"):
        found = shutil.which(name)
        if found is None:
            missing(f"{name} is not installed: pip install {name}")
        (tools / name).symlink_to(found)
    return tools


def test_metadata_names_the_extras(wheel: zipfile.ZipFile) -> None:
    metadata = wheel.read(next(name for name in wheel.namelist() if name.endswith("METADATA"))).decode()
    for extra in ("quickstart", "test", "dev", "bundle"):
        assert f"Provides-Extra: {extra}" in metadata
    assert "License-Expression: Apache-2.0" in metadata


def test_sdist_builds_the_same_package(tmp_path: Path) -> None:
    with tarfile.open(_build("sdist", tmp_path)) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    assert not [source for source, _ in _sources() if source not in names]
    for needed in ("pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "tests/conftest.py",
                   "build_backend.py", "CMakeLists.txt", "cmake/host_compiler.py"):  # fmt: skip
        assert needed in names
    assert not [name for name in names if name.startswith((".ci", "build/", "runs/"))]


def test_package_comes_from_an_install_and_not_from_a_shadowing_folder() -> None:
    import qexport.graphs
    import qexport.serving
    import qexport.training

    for module in (qexport.training, qexport.graphs, qexport.serving):
        assert module.__name__.startswith("qexport.")
        assert module.__file__ is not None
    code = "import training"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False, cwd="/")
    installed_as_wheel = not Path(qexport.training.__file__ or "").is_relative_to(CHECKOUT)
    assert not installed_as_wheel or done.returncode != 0
