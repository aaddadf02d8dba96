"""The pages about operators name every operator, input and attribute; the benchmark of bodies runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from qexport.graphs.operators import OPERATORS

ROOT = Path(__file__).parents[2]
PAGES = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "docs" / "operators").glob("*.md")}


@pytest.mark.parametrize("name", sorted(OPERATORS))
def test_page_of_operator(name: str) -> None:
    pages = [
        text for page, text in PAGES.items() if page != "README.md" and name in text.splitlines()[0].split()
    ]
    pages += [text for text in PAGES.values() if f"{name}," in text.splitlines()[0]]
    assert pages, f"no page of docs/operators has {name} in its title"
    operator = OPERATORS[name]
    for word in (*operator.inputs, *operator.outputs, *operator.attributes):
        assert f"`{word}`" in pages[0], f"the page of {name} does not explain `{word}`"


def test_benchmark_runs() -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "operator_bodies.py"), "--repeats=1", "--tokens=4"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("used") >= 16
