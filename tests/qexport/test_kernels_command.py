"""`qexport kernels`: what it says about the library of this installation."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import onnxruntime
import pytest
from required import missing

import qexport
from qexport.cli import main
from qexport.serving import kernels
from qexport.serving.kernels import ISA_NAMES, library_path
from qexport.serving.kernels.crossbuild import TARGETS


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("QEXPORT_ISA", raising=False)
    monkeypatch.delenv("QEXPORT_KERNELS", raising=False)


@pytest.fixture
def library() -> Path:
    path = library_path()
    if path is None:
        missing("this installation has no kernel library; install again without QEXPORT_NO_KERNELS")
    return path


@pytest.fixture
def no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "library_path", lambda: None)


def test_kernels_says_where_the_library_is_and_what_runs(
    library: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["kernels", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["library"] == str(library)
    assert facts["version"] == qexport.__version__
    assert facts["supported_isas"][-1] == "scalar"
    assert facts["isa"] in facts["supported_isas"]
    assert facts["forced_isa"] is None
    assert facts["onnxruntime"] == onnxruntime.__version__
    assert facts["targets"] == list(TARGETS)
    assert facts["cpu"] and facts["architecture"]


def test_kernels_prints_a_table_for_people(library: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["kernels"]) == 0
    shown = capsys.readouterr().out
    assert "".join(shown.split()).count(str(library)) == 1
    assert "supported isas" in shown and "x86_64-windows" in shown
    assert "forced isa      none" in shown


def test_kernels_follows_the_environment(
    library: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        monkeypatch.setenv("QEXPORT_ISA", "scalar")
        assert main(["kernels", "--json"]) == 0
        facts = json.loads(capsys.readouterr().out)
        assert facts["isa"] == facts["forced_isa"] == "scalar"
    finally:
        kernels.Kernels().set_isa(None)


def test_kernels_ends_in_an_error_for_an_instruction_set_that_is_not_here(
    library: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("QEXPORT_ISA", "avx3")
    assert main(["kernels"]) == 2
    assert "unknown instruction set 'avx3'; did you mean 'avx2'" in capsys.readouterr().err
    other = next(name for name in ISA_NAMES if name not in kernels.Kernels().supported_isas)
    monkeypatch.setenv("QEXPORT_ISA", other)
    assert main(["kernels"]) == 4
    assert f"lacks the instruction set '{other}'" in capsys.readouterr().err


def test_kernels_without_a_library_says_so_and_is_no_error(
    no_library: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["kernels", "--json"]) == 0
    said = capsys.readouterr()
    facts = json.loads(said.out)
    assert (facts["library"], facts["isa"], facts["supported_isas"]) == (None, None, [])
    assert "every file runs on stock ONNX Runtime" in said.err
    assert main(["kernels"]) == 0
    assert "supported isas  none" in capsys.readouterr().out


def test_kernels_build_without_options_shows_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["kernels", "build"]) == 2
    said = capsys.readouterr()
    assert "--target" in said.out + said.err


def test_kernels_starts_without_torch() -> None:
    code = (
        "import sys; from qexport.cli import main; main(['kernels', '--json']);"
        "sys.exit(bool({'torch', 'transformers', 'onnx'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
