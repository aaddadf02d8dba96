"""A sweep with several runs at a time: what overlaps, what waits, Ctrl-C, lines and the estimate."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from sweep_commands import Commands

from qexport.errors import EnvironmentProblem, Interrupted, SweepFailed, UsageError
from qexport.sweep import jobs, work
from qexport.sweep.grid import read_sweep
from qexport.sweep.jobs import Job, Running, Steps, drive, time_left
from qexport.sweep.process import Command, Stop
from qexport.sweep.runner import SweepConfig, plan, sweep
from qexport.sweep.table import read_rows

SWEEP = """
output: out
jobs: 2
defaults: {threads: 1}
grids:
  - {methods: [ternarybert, kdlsq], tasks: [rte], bits: [2-2-8], seeds: [1, 2], max_steps: 2}
  - {methods: [fp32], tasks: [rte], seeds: [43]}
"""
CONFIG = SweepConfig(file=Path("sweep.yaml"))
TABLE = Path("out/results.jsonl")


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Commands:
    found = Commands(polls=3)
    monkeypatch.setattr(work, "Command", found)
    monkeypatch.setattr(jobs, "_POLL_S", 0)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sweep.yaml").write_text(SWEEP)
    return found


def test_runs_overlap_up_to_jobs_and_students_wait_for_their_teacher(commands: Commands) -> None:
    said: list[str] = []
    assert sweep(CONFIG, say=said.append).done == 6
    assert commands.most_at_once == 2
    trained = [call.removeprefix("train rte-") for call in commands.calls if call.startswith("train")]
    assert trained[:2] == [
        "fp32-s42",
        "fp32-s43",
    ]  # the second one, though last in the file: students must wait
    assert trained[2:] == [f"{name}-2-2-8-s{seed}" for name in ("ternarybert", "kdlsq") for seed in (1, 2)]
    end = commands.events.index("-verify rte-fp32-s42")
    assert not any("2-2-8" in event for event in commands.events[:end])
    rows = read_rows(TABLE)
    assert len({row["key"] for row in rows}) == 6
    assert {(row["status"], row["jobs"]) for row in rows} == {("done", 2)}
    assert "6 runs, 0 done before, 2 at a time" in said[0]
    assert all(line.startswith("[") and " rte " in line for line in said[1:])
    assert any(line.startswith("[2/6] rte fp32 seed 43: accuracy 70.00") for line in said)


def test_option_counts_before_the_file(commands: Commands) -> None:
    sweep(SweepConfig(file=CONFIG.file, jobs=1))
    assert commands.most_at_once == 1
    with pytest.raises(UsageError, match="--jobs must be at least 1, got 0"):
        SweepConfig(file=CONFIG.file, jobs=0)
    Path("sweep.yaml").write_text(SWEEP.replace("jobs: 2", "jobs: two"))
    with pytest.raises(UsageError, match=r"line 3: jobs must be a whole number of at least 1, got 'two'"):
        plan(CONFIG)


def test_failed_teacher_fails_its_students_and_no_other_run(commands: Commands) -> None:
    commands.fail["train rte-fp32-s42"] = EnvironmentProblem("no GPU")
    with pytest.raises(SweepFailed, match="5 of 6 runs failed"):
        sweep(CONFIG)
    rows = {row["name"].rpartition("-")[0]: row for row in read_rows(TABLE)}
    assert rows["rte-fp32-s43"]["status"] == "done"
    assert rows["rte-fp32-s42"]["error"] == "no GPU"
    assert rows["rte-kdlsq-2-2-8-s2"]["error"] == "its teacher rte fp32 seed 42 is not there"


def test_ctrl_c_stops_all_runs_and_the_same_command_resumes_each(commands: Commands) -> None:
    commands.interrupt["train rte-ternarybert-2-2-8-s2"] = 1
    said: list[str] = []
    both = "rte ternarybert 2-2-8 seed 1 and rte ternarybert 2-2-8 seed 2"
    with pytest.raises(Interrupted, match=f"stopped in {both}; 2 of 6 runs are done, the same command goes"):
        sweep(CONFIG, say=said.append)
    assert "waiting for the checkpoints of 2 runs; Ctrl-C again" in said[-1]
    before = len(commands.calls)
    assert sweep(CONFIG).done == 6
    assert commands.calls[before : before + 2] == [
        f"train rte-ternarybert-2-2-8-s{i} --resume" for i in (1, 2)
    ]
    assert sorted(row["resumed"] for row in read_rows(TABLE)) == [0, 0, 0, 0, 1, 1]


def test_unexpected_error_in_one_run_stops_the_others_first(
    commands: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands.fail["train rte-fp32-s43"] = ZeroDivisionError("a bug")
    with pytest.raises(ZeroDivisionError):
        sweep(CONFIG)
    assert commands.events.count("+train rte-fp32-s42") == commands.events.count("-train rte-fp32-s42") == 1


def _runs(tmp_path: Path, text: str) -> list[Job]:
    path = tmp_path / "some.yaml"
    path.write_text(text)
    return [Job.of(run) for run in read_sweep(path).runs]


def _children(
    scripts: Sequence[str], folder: Path
) -> Callable[[Job, Sequence[Job], Sequence[Running]], Steps]:
    """One command a job: a real child process that runs the script with the job's number."""

    def begin(job: Job, waiting: Sequence[Job], running: Sequence[Running]) -> Steps:
        number = len(scripts) - 1 - len(waiting)
        script = folder / f"{number}.py"
        script.write_text(scripts[number])
        command = Command(["train"], folder / f"{number}.txt", launcher=[sys.executable, str(script)])
        yield command
        command.check()

    return begin


@pytest.fixture
def restored_sigint() -> Iterator[None]:
    """Ctrl-C as in a foreground process, whatever started the tests."""
    old = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, old)


TWO = "grids: [{methods: fp32, tasks: rte, seeds: [1, 2]}]"


def test_two_children_really_run_side_by_side(tmp_path: Path) -> None:
    meet = (
        "import pathlib, time\nhere = pathlib.Path({folder!r})\n(here / 'met{own}').touch()\n"
        "end = time.monotonic() + 20\n"
        "while not (here / 'met{other}').exists():\n"
        "    assert time.monotonic() < end, 'alone'\n    time.sleep(0.01)\n"
    )
    scripts = [meet.format(folder=str(tmp_path), own=own, other=1 - own) for own in (0, 1)]
    begin = _children(scripts, tmp_path)
    assert drive(_runs(tmp_path, TWO), 2, begin, Stop(), say=print) == ((), ())


@pytest.mark.skipif(os.name != "posix", reason="SIGINT to another process is POSIX")
@pytest.mark.parametrize("presses", [1, 2])
def test_ctrl_c_reaches_every_child_and_is_waited_for(
    tmp_path: Path, restored_sigint: None, presses: int
) -> None:
    child = (
        "import signal, sys, time\nstops = []\ndef stop(*_):\n"
        "    stops.append(1)\n    print('stop', len(stops), flush=True)\n"
        f"    if len(stops) == {presses}:\n        time.sleep(0.1)\n        sys.exit(130)\n"
        "signal.signal(signal.SIGTERM, stop)\nprint('ready', flush=True)\n"
        "while True:\n    time.sleep(0.01)\n"
    )
    logs = [tmp_path / "0.txt", tmp_path / "1.txt"]

    stop = Stop()

    def interrupt() -> None:
        end = time.monotonic() + 20
        for press in range(presses):
            word = f"stop {press}" if press else "ready"
            while not all(log.is_file() and word in log.read_text() for log in logs):
                time.sleep(0.02)
                if time.monotonic() > end:
                    stop.asked = 3  # give up: the children are killed, and the assertions below fail
                    return
            os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    said: list[str] = []
    with stop.installed():
        left = drive(_runs(tmp_path, TWO), 2, _children([child, child], tmp_path), stop, say=said.append)
    assert [job.run.seed for job in left[0]] == [1, 2]
    for log in logs:
        assert log.read_text().count("stop") == presses
    assert "Ctrl-C again stops at once" in said[0]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_time_left_lays_runs_side_by_side_after_their_teachers(tmp_path: Path) -> None:
    waiting = _runs(tmp_path, "grids: [{methods: [q8bert], tasks: [rte, mrpc], seeds: [1, 2]}]")
    assert [job.teacher is None for job in waiting] == [True, False, True, False, False, False]

    rows = [{"method": "fp32", "task": "rte", "seconds": {"train": 500.0, "verify": 100.0}, "status": "done"}]
    assert time_left([], waiting, [], 2) == ""
    lasts = {at_once: time_left(rows, waiting, [], at_once) for at_once in (1, 2, 3, 4, 9)}
    assert lasts == {  # two teachers first, then four students, ten minutes each
        1: "about 60 min", 2: "about 30 min", 3: "about 30 min", 4: "about 20 min", 9: "about 20 min"
    }  # fmt: skip
    started = time.monotonic() - 300
    command = Commands()(["train"], tmp_path / "rte-fp32-0" / "log.txt")
    running = [Running(waiting[0], (each for each in ()), command, started)]
    assert time_left(rows, waiting[1:2], running, 2) == "about 15 min"
