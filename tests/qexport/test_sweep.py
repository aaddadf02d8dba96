"""A sweep: what is done, skipped, resumed and recorded; the commands themselves are stand-ins here."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from sweep_commands import Commands

from qexport.errors import EnvironmentProblem, Interrupted, SweepFailed, UsageError
from qexport.sweep import runner
from qexport.sweep.process import Command, CommandFailed
from qexport.sweep.runner import SweepConfig, plan, sweep
from qexport.sweep.table import read_rows

SWEEP = """
output: out
grids:
  - {methods: [ternarybert, kdlsq], tasks: [rte], bits: [2-2-8], seeds: [1, 2], max_steps: 2}
"""


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Commands:
    found = Commands.installed(monkeypatch, tmp_path)
    (tmp_path / "sweep.yaml").write_text(SWEEP)
    return found


CONFIG = SweepConfig(file=Path("sweep.yaml"))
TABLE = Path("out/results.jsonl")


def test_sweep_makes_one_row_a_run_and_then_nothing_more(commands: Commands) -> None:
    result = sweep(CONFIG)
    rows = read_rows(TABLE)
    assert (result.done, len(rows), len({row["key"] for row in rows})) == (5, 5, 5)
    assert [row["method"] for row in rows] == ["fp32", "ternarybert", "ternarybert", "kdlsq", "kdlsq"]
    assert len(commands.calls) == 15
    row = rows[1]
    assert row["agreement"] == {"rows_equal": 9, "rows": 10, "largest_logit_difference": 0.5}
    assert row["data"]["source"] == "a file; 7 training rows, at most 7 drawn with seed 42"
    assert row["teacher"] == rows[0]["key"]
    assert (row["drop"]["points"], row["steps"], row["seconds"].keys()) == (
        10.0,
        2,
        {"train", "to-onnx", "verify"},
    )
    assert all(f"$OUT/{row['name']}/" in line for line in row["commands"])
    sweep(CONFIG)
    assert len(commands.calls) == 15


def test_failed_run_is_recorded_and_tried_again_while_others_go_on(commands: Commands) -> None:
    commands.fail["to-onnx rte-ternarybert-2-2-8-s1"] = CommandFailed("no space in out/there; free some", 4)
    with pytest.raises(SweepFailed, match="1 of 5 runs failed"):
        sweep(CONFIG)
    failed = [row for row in read_rows(TABLE) if row["status"] == "failed"]
    assert [(row["stage"], row["error"]) for row in failed] == [
        ("to-onnx", "no space in $OUT/there; free some")
    ]
    assert [each.state for each in plan(CONFIG)] == ["done", "failed", "done", "done", "done"]
    before = len(commands.calls)
    sweep(CONFIG)
    assert commands.calls[before:] == [f"{word} rte-ternarybert-2-2-8-s1" for word in ("to-onnx", "verify")]
    assert {row["status"] for row in read_rows(TABLE)} == {"done"}


@pytest.mark.parametrize("status", ["interrupted", "incomplete"])
def test_a_report_that_was_cut_off_is_measured_again(commands: Commands, status: str) -> None:
    call = "verify rte-ternarybert-2-2-8-s1"
    commands.fail[call] = CommandFailed("stopped", 4)
    with pytest.raises(SweepFailed):
        sweep(CONFIG)
    (folder,) = Path("out").glob("rte-ternarybert-2-2-8-s1-*")
    (folder / "report").mkdir()
    (folder / "report" / "report.json").write_text(f'{{"status": "{status}"}}')
    before = len(commands.calls)
    sweep(CONFIG)
    assert commands.calls[before:] == [call]
    assert {row["status"] for row in read_rows(TABLE)} == {"done"}


def test_ctrl_c_stops_and_the_same_command_resumes_the_training(commands: Commands) -> None:
    commands.interrupt["train rte-ternarybert-2-2-8-s2"] = 1
    with pytest.raises(Interrupted, match="2 of 5 runs are done, the same command goes on"):
        sweep(CONFIG)
    assert [each.state for each in plan(CONFIG)] == ["done", "done", "unfinished", "new", "new"]
    before = len(commands.calls)
    sweep(CONFIG)
    assert commands.calls[before] == "train rte-ternarybert-2-2-8-s2 --resume"
    assert [row["resumed"] for row in read_rows(TABLE)] == [0, 0, 1, 0, 0]


def test_students_of_a_failed_teacher_fail_with_its_name(commands: Commands) -> None:
    commands.fail["train rte-fp32-s42"] = EnvironmentProblem("no GPU")
    with pytest.raises(SweepFailed, match="5 of 5 runs failed"):
        sweep(CONFIG)
    assert {row["error"] for row in read_rows(TABLE)} == {
        "no GPU",
        "its teacher rte fp32 seed 42 is not there",
    }


def test_only_trains_the_teachers_that_it_needs(commands: Commands) -> None:
    only = SweepConfig(file=CONFIG.file, only=("method=kdlsq", "ternarybert", "seed=2"))
    assert [each.run.title for each in plan(only) if each.wanted] == [
        "rte fp32 seed 42", "rte ternarybert 2-2-8 seed 2", "rte kdlsq 2-2-8 seed 2",
    ]  # fmt: skip
    with pytest.raises(UsageError, match="selects no run"):
        plan(SweepConfig(file=CONFIG.file, only=("task=cola",)))
    with pytest.raises(UsageError, match="--only knows method, task"):
        plan(SweepConfig(file=CONFIG.file, only=("metod=kdlsq",)))


def test_table_from_another_machine_is_gone_on_with_and_teachers_are_trained_again(
    commands: Commands, tmp_path: Path
) -> None:
    sweep(SweepConfig(file=CONFIG.file, only=("method=fp32",)))
    there = SweepConfig(file=CONFIG.file, output=tmp_path / "elsewhere", table=TABLE)
    assert plan(there)[0].state != "done"
    assert sweep(there).done == 5
    assert len(read_rows(TABLE)) == 5


@pytest.mark.parametrize(("keep", "left"), [("onnx", {"onnx", "report"}), ("reports", {"report"})])
def test_keep_discards_models_and_teachers_last(commands: Commands, keep: str, left: set[str]) -> None:
    sweep(SweepConfig(file=CONFIG.file, keep=keep))
    for run in Path("out").glob("rte-*"):
        assert {path.name for path in run.iterdir() if path.is_dir()} == left


def test_second_sweep_in_the_same_folder_is_refused(commands: Commands) -> None:
    pytest.importorskip("fcntl")
    with runner._lock(Path("out")), pytest.raises(UsageError, match="at work in out"):
        sweep(CONFIG)


def _script(tmp_path: Path, text: str) -> list[str]:
    """A launcher that runs `text` in place of qexport."""
    path = tmp_path / "child.py"
    path.write_text(text)
    return [sys.executable, str(path)]


def _ended_with(launcher: list[str], log: Path) -> None:
    command = Command(["train"], log, launcher=launcher)
    while not command.ended():
        time.sleep(0.01)
    command.check()


def test_command_that_fails_gives_its_own_sentence(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    launcher = _script(tmp_path, "import sys; print('qexport: no such task', file=sys.stderr); sys.exit(2)")
    with pytest.raises(CommandFailed, match=r"^no such task$"):
        _ended_with(launcher, log)
    launcher = _script(tmp_path, "import os; os.kill(os.getpid(), 9)")
    with pytest.raises(CommandFailed, match=r"^train was ended by SIGKILL; was there enough memory\?$"):
        _ended_with(launcher, log)
    with pytest.raises(CommandFailed, match=r"^train ended with exit code 1: ZeroDivisionError"):
        _ended_with(_script(tmp_path, "1 / 0"), log)
    assert log.read_text().count("$ qexport train") == 3


def test_dry_run_lists_and_runs_nothing(commands: Commands, capsys: pytest.CaptureFixture[str]) -> None:
    from qexport.cli import main

    call: Callable[[list[str]], int] = main
    assert call(["sweep", "sweep.yaml", "--dry-run", "--only", "method=kdlsq,seed=1"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("new ") == 2
    assert "2 of 5 runs, 2 left to do" in shown
    assert commands.calls == [] and not Path("out").exists()
