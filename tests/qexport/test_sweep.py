"""A sweep: what is done, skipped, resumed and recorded; the commands themselves are stand-ins here."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qexport.errors import EnvironmentProblem, Interrupted, SweepFailed, UsageError
from qexport.sweep import runner
from qexport.sweep.process import CommandFailed, run_command
from qexport.sweep.runner import SweepConfig, plan, sweep
from qexport.sweep.table import read_rows

SWEEP = """
output: out
grids:
  - {methods: [ternarybert, kdlsq], tasks: [rte], bits: [2-2-8], seeds: [1, 2], max_steps: 2}
"""


class Commands:
    """Stands for the child processes: writes what train, to-onnx and verify write."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.fail: dict[str, Exception | type[BaseException]] = {}

    def __call__(self, words: list[str], log: Path, **options: Any) -> int:
        name = next(part for part in log.parts if part.startswith("rte-"))
        call = f"{words[0]} {name.rpartition('-')[0]}" + " --resume" * ("--resume" in words)
        self.calls.append(call)
        log.parent.mkdir(parents=True, exist_ok=True)
        if call in self.fail:
            if words[0] == "train":
                checkpoint = log.parent / "model" / "checkpoints" / "checkpoint-1"
                checkpoint.mkdir(parents=True)
                (checkpoint / "trainer_state.json").write_text("{}")
            raise self.fail.pop(call)
        {"train": self._train, "to-onnx": self._export, "verify": self._verify}[words[0]](log.parent)
        return 0

    def _train(self, folder: Path) -> None:
        self._write(folder / "model" / "qexport_train.json", {
            "data": {"source": "a file", "fingerprint": "ab", "train_rows": 7}, "steps": 2, "seed": 42,
            "arguments": {"train_samples": 7}, "machine": {"threads": 1, "cuda": False},
        })  # fmt: skip

    def _export(self, folder: Path) -> None:
        self._write(folder / "onnx" / "qexport.json", {})

    def _verify(self, folder: Path) -> None:
        def score(engine: str, value: float) -> dict[str, Any]:
            metric = {"metric": "accuracy", "value": value, "low": value - 0.1, "high": value + 0.1}
            return {"engine": engine, "split": "validation", "metrics": [metric]}

        self._write(folder / "report" / "report.json", {
            "data": [{"split": "validation", "rows": 10, "main_metric": "accuracy", "source": "b",
                      "fingerprint": "cd"}],
            "main_engine": "stock", "gates": [],
            "accuracy": [score("stock", 0.7), score("student", 0.7), score("teacher", 0.8)],
            "parity": [{"engine": "stock", "against": "student", "rows": 10, "disagreements": 1,
                        "max_abs": 0.5}],
            "drops": [{"engine": "stock", "against": "teacher", "metric": "accuracy", "points": 10.0,
                       "low": 1.0, "high": 19.0, "method": "m"}],
            "model": {"file_bytes": 1000, "sha256": "00"},
            "environment": {"cpu": "c", "architecture": "x86_64", "flags": [], "cores": 2, "system": "s",
                            "python": "3.11", "versions": {"torch": "2"}},
        })  # fmt: skip

    @staticmethod
    def _write(path: Path, value: Any) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(value))


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Commands:
    found = Commands()
    monkeypatch.setattr(runner, "run_command", found)
    monkeypatch.chdir(tmp_path)
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


def test_ctrl_c_stops_and_the_same_command_resumes_the_training(commands: Commands) -> None:
    commands.fail["train rte-ternarybert-2-2-8-s2"] = KeyboardInterrupt
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


def test_command_that_fails_gives_its_own_sentence(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    launcher = _script(tmp_path, "import sys; print('qexport: no such task', file=sys.stderr); sys.exit(2)")
    with pytest.raises(CommandFailed, match=r"^no such task$"):
        run_command(["train"], log, launcher=launcher)
    launcher = _script(tmp_path, "import os; os.kill(os.getpid(), 9)")
    with pytest.raises(CommandFailed, match=r"^train was ended by SIGKILL; was there enough memory\?$"):
        run_command(["train"], log, launcher=launcher)
    with pytest.raises(CommandFailed, match=r"^train ended with exit code 1: ZeroDivisionError"):
        run_command(["train"], log, launcher=_script(tmp_path, "1 / 0"))
    assert log.read_text().count("$ qexport train") == 3


@pytest.mark.skipif(os.name != "posix", reason="SIGINT to another process is POSIX")
def test_ctrl_c_reaches_the_child_once_and_is_waited_for(tmp_path: Path, restored_sigint: None) -> None:
    text = (
        "import signal, sys, time\ndef stop(*_):\n    print('stopped once', flush=True)\n"
        "    time.sleep(0.3)\n    sys.exit(130)\nsignal.signal(signal.SIGTERM, stop)\n"
        "print('ready', flush=True)\ntime.sleep(60)\n"
    )
    log = tmp_path / "log.txt"

    def interrupt() -> None:
        while not log.is_file() or "ready" not in log.read_text():
            threading.Event().wait(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    said: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        run_command(["train"], log, launcher=_script(tmp_path, text), say=said.append)
    assert log.read_text().count("stopped once") == 1
    assert "waiting for the checkpoint" in said[-1]


@pytest.fixture
def restored_sigint() -> Any:
    """Ctrl-C as in a foreground process, whatever started the tests."""
    old = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, old)


def test_dry_run_lists_and_runs_nothing(commands: Commands, capsys: pytest.CaptureFixture[str]) -> None:
    from qexport.cli import main

    call: Callable[[list[str]], int] = main
    assert call(["sweep", "sweep.yaml", "--dry-run", "--only", "method=kdlsq,seed=1"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("new ") == 2
    assert "2 of 5 runs, 2 left to do" in shown
    assert commands.calls == [] and not Path("out").exists()
