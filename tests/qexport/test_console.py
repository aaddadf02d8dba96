"""Results on stdout, the rest on stderr."""

from __future__ import annotations

import json
import math
import sys

import pytest

from qexport import console


@pytest.fixture(autouse=True)
def normal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    console.configure(verbosity=0)


def test_prints_of_libraries_go_to_stderr_inside_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    with console.only_results_on_stdout():
        print("a library speaks")
        console.show("the result")
        console.print_json({"a": 1})
    output = capsys.readouterr()
    assert output.out == 'the result\n{\n  "a": 1\n}\n'
    assert output.err == "a library speaks\n"
    assert sys.stdout.writable()


def test_prints_of_libraries_are_dropped_when_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    console.configure(verbosity=-1)
    with console.only_results_on_stdout():
        print("a library speaks")
        console.show("the result")
    output = capsys.readouterr()
    assert (output.out, output.err) == ("the result\n", "")


def test_json_has_no_nan(capsys: pytest.CaptureFixture[str]) -> None:
    console.print_json({"a": [math.nan, -math.inf, 1.5], 2: (True, None)})
    assert json.loads(capsys.readouterr().out) == {"a": [None, None, 1.5], "2": [True, None]}


def test_quiet_shows_errors_and_results_only(capsys: pytest.CaptureFixture[str]) -> None:
    console.configure(verbosity=-1)
    console.say("progress")
    console.show("result")
    console.error("problem")
    output = capsys.readouterr()
    assert output.out == "result\n"
    assert output.err == "qexport: problem\n"


def test_second_process_of_a_distributed_run_is_silent(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "1")
    console.say("progress")
    console.show("result")
    console.print_json({})
    output = capsys.readouterr()
    assert (output.out, output.err) == ("", "")


def test_long_lines_are_not_wrapped_and_brackets_are_kept(capsys: pytest.CaptureFixture[str]) -> None:
    line = "word " * 60 + "[bold]end"
    console.show(line)
    console.say(line)
    output = capsys.readouterr()
    assert output.out == line + "\n"
    assert output.err == line + "\n"


def test_command_line_is_ready_for_a_shell() -> None:
    console.remember_command(["predict", "dir", "it's fine"])
    assert console.command_line() == """qexport predict dir 'it'"'"'s fine'"""
