"""What continuous integration runs, in the environment that is active: `pip install -e ".[dev]" && nox`."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import nox

nox.options.sessions = ["lint", "types", "tests"]

ROOT = Path(__file__).parent
SOURCES = ("qexport", "training", "graphs", "serving")


@nox.session(venv_backend="none")
def lint(session: nox.Session) -> None:
    """Rules and format of every Python file."""
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session(venv_backend="none")
def types(session: nox.Session) -> None:
    """Show mypy the tree that the wheel will have, then check it strictly."""
    link_tree(ROOT / "build" / "typecheck" / "qexport")
    session.run("mypy")


@nox.session(venv_backend="none")
def tests(session: nox.Session) -> None:
    """The test suite on every core; words after -- go to pytest instead: nox -s tests -- tests/graphs -x."""
    session.run("pytest", *(session.posargs or ("-n", "auto", "--dist", "loadfile")))


@nox.session(venv_backend="none")
def kernels(session: nox.Session) -> None:
    """Compile the kernel library again after a change of its C++ sources, and show it."""
    session.run("pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--editable", ".")
    session.run("qexport", "kernels")


@nox.session(venv_backend="none")
def everything(session: nox.Session) -> None:
    """What the CI machine runs: fresh environments, oldest and newest ONNX Runtime, optimum, no skips."""
    session.run("bash", ".ci/run", external=True)


@nox.session(venv_backend="none")
def dist(session: nox.Session) -> None:
    """Build the sdist and, from it, the wheel; list what the wheel holds."""
    shutil.rmtree(ROOT / "dist", ignore_errors=True)
    session.run("python", "-m", "build", "--outdir", "dist")
    wheel = next((ROOT / "dist").glob("*.whl"))
    subprocess.run(["python", "-m", "zipfile", "--list", wheel], check=True)


def link_tree(tree: Path) -> None:
    """Make `tree` a folder of links in the shape of the installed package; mypy cannot follow the mapping.

    pyproject.toml: the folders training, graphs and serving are installed inside qexport.
    """
    shutil.rmtree(tree, ignore_errors=True)
    tree.mkdir(parents=True)
    for source in [*(ROOT / "qexport").iterdir(), *(ROOT / name for name in SOURCES[1:])]:
        if source.name != "__pycache__":
            os.symlink(source, tree / source.name)
