"""ONNX Runtime's mobile tools: what they print is read, and the report explains it."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import jsonschema
import pytest
from rich.console import Console

from qexport.serving import mobile
from qexport.serving.mobile import MobileProvider, OrtFormat, explain, read_usability
from qexport.serving.report import json_schema
from qexport.serving.verify import VerifyConfig, verify

PRINTED = """INFO:  Checking model.onnx for usability with ORT Mobile.
INFO:  Checking NNAPI
INFO:  2 partitions with a total of 3/1119 nodes can be handled by the NNAPI EP.
INFO:  \tUnsupported ops: ai.onnx:Erf,ai.onnx:MatMulInteger
INFO:  Model should perform well with NNAPI as is: NO
INFO:  Checking if model will perform better if the dynamic shapes are fixed...
INFO:  121 partitions with a total of 795/1119 nodes can be handled by the NNAPI EP.
INFO:  \tUnsupported ops: ai.onnx:Erf,ai.onnx:MatMulInteger
INFO:  Model should perform well with NNAPI if modified to have fixed input shapes: MAYBE
INFO:  Checking CoreML MLProgram
INFO:  1 partitions with a total of 9/9 nodes can be handled by the CoreML MLProgram EP.
INFO:  Model should perform well with CoreML MLProgram as is: YES
"""


def test_the_usability_checkers_lines_are_read() -> None:
    assert read_usability(PRINTED) == [
        MobileProvider("NNAPI", 1119, 795, 121, "no", "maybe", ["Erf", "MatMulInteger"]),
        MobileProvider("CoreML MLProgram", 9, 9, 1, "yes", "yes", []),
    ]
    assert read_usability("Traceback: no such model") == []


def test_the_advice_follows_from_the_answers() -> None:
    no = MobileProvider("NNAPI", 10, 5, 5, "no", "no", ["Erf"])
    yes = MobileProvider("CoreML MLProgram", 10, 10, 1, "yes", "yes", [])
    assert explain(100, [no], [])[0].startswith("Run it on ONNX Runtime's CPU provider")
    assert explain(100, [no, yes], [])[0].startswith("CoreML MLProgram may help")
    larger = OrtFormat("stock", 14_200_000, 64, 64, 0.0, "")
    assert "14.2 MB against 5.1 MB" in explain(5_100_000, [], [larger])[0]
    assert (
        "runs only where the kernel library"
        in explain(5_100_000, [], [OrtFormat("native", 5_200_000, 64, 64, 0.0, "")])[0]
    )
    broken = OrtFormat("stock", None, 0, 0, None, "not converted (no space)")
    assert explain(1, [], [broken]) == ["ORT format, stock: not converted (no space)."]


def test_verify_runs_the_tools_and_every_form_of_the_report_shows_them(
    make_folder: Callable[..., Path], toy: SimpleNamespace
) -> None:
    config = VerifyConfig(
        model=make_folder(), targets=("stock",), latency=False, processes=0, mobile_check=True
    )
    report = verify(config, toy.make_rows(16))
    found = report.mobile
    assert found is not None
    assert [item.name for item in found.providers][:1] == ["NNAPI"]
    (stock,) = found.ort_format  # no operator for the kernels in this file
    assert (stock.engine, stock.rows, stock.same, stock.max_abs, stock.problem) == ("stock", 16, 16, 0.0, "")
    jsonschema.validate(report.to_dict(), json_schema())
    assert "On a phone" in report.to_html() and "NNAPI" in report.to_html()
    screen = io.StringIO()
    report.print(Console(file=screen, width=200))
    assert "ORT format, stock" in screen.getvalue()


def test_a_tool_that_fails_is_told_and_fails_nothing(
    make_folder: Callable[..., Path], toy: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = SimpleNamespace(
        stdout="", stderr="Traceback\nModuleNotFoundError: No module named 'flatbuffers'\n"
    )
    monkeypatch.setattr(mobile, "_tool", lambda *words: failed)
    found = mobile.mobile_check(make_folder() / "model.onnx", toy.make_rows(8))
    assert found.providers == []
    assert "No module named 'flatbuffers'" in found.advice[0]
    assert "not converted (ModuleNotFoundError" in found.ort_format[0].problem
