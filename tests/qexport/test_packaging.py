"""What gets installed: `qexport` and nothing else at top level, every data file with it."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
FOLDERS = {"qexport": "qexport", "training": "qexport/training", "graphs": "qexport/graphs",
           "serving": "qexport/serving"}  # fmt: skip


def _build(kind: str, target: Path) -> Path:
    code = f"import sys; from scikit_build_core.build import build_{kind} as build; print(build(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-c", code, str(target)], cwd=CHECKOUT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return target / done.stdout.split()[-1]


def _sources() -> Iterator[tuple[str, str]]:
    """(path in the checkout, path in the wheel) of every file that must ship."""
    for folder, place in FOLDERS.items():
        for path in (CHECKOUT / folder).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                inside = path.relative_to(CHECKOUT / folder).as_posix()
                yield f"{folder}/{inside}", f"{place}/{inside}"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    return zipfile.ZipFile(_build("wheel", tmp_path_factory.mktemp("wheel")))


def test_wheel_has_one_top_level_package(wheel: zipfile.ZipFile) -> None:
    tops = {name.split("/")[0] for name in wheel.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"qexport"}
    assert not [name for name in wheel.namelist() if "tests" in name.split("/")]


def test_wheel_holds_every_source_and_data_file(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    missing = [place for _, place in _sources() if place not in names]
    assert not missing
    for needed in ("qexport/py.typed", "qexport/serving/report.schema.json", "qexport/training/config.py"):
        assert needed in names
    assert [name for name in names if name.endswith((".html", ".jinja", ".j2"))]


def test_wheel_is_pure_and_has_the_script(wheel: zipfile.ZipFile) -> None:
    assert wheel.filename is not None
    assert wheel.filename.endswith("-py3-none-any.whl")
    info = next(name for name in wheel.namelist() if name.endswith("entry_points.txt"))
    assert "qexport=qexport.cli:main" in wheel.read(info).decode().replace(" ", "")


def test_metadata_names_the_extras(wheel: zipfile.ZipFile) -> None:
    metadata = wheel.read(next(name for name in wheel.namelist() if name.endswith("METADATA"))).decode()
    for extra in ("quickstart", "test", "dev"):
        assert f"Provides-Extra: {extra}" in metadata
    assert "License-Expression: Apache-2.0" in metadata


def test_sdist_builds_the_same_package(tmp_path: Path) -> None:
    with tarfile.open(_build("sdist", tmp_path)) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    assert not [source for source, _ in _sources() if source not in names]
    for needed in ("pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "tests/conftest.py"):
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
