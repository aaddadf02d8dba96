"""`sweep`: do what is not done yet, run after run or several at a time, and keep the table."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from qexport.atomic import disk_errors
from qexport.errors import Interrupted, SweepFailed, UsageError
from qexport.sweep.grid import KEEP, Sweep, read_sweep
from qexport.sweep.jobs import Job, drive
from qexport.sweep.process import Stop
from qexport.sweep.rows import judged
from qexport.sweep.run import Run, RunFolder, expanded
from qexport.sweep.table import Table
from qexport.sweep.timing import time_files
from qexport.sweep.work import Work, trained, verifiable

__all__ = ["Planned", "SweepConfig", "SweepResult", "add_latency", "plan", "sweep"]

_OVER = ("done", "unjudged")
"""States of runs that this call does nothing about."""

_SELECTORS = ("method", "task", "bits", "seed", "name")


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepConfig:
    """Which sweep, where, and which of its runs."""

    file: Path
    """YAML file with the runs; docs/sweep.md describes it."""
    output: Path | None = None
    """Folder for models, exports, reports and logs, one folder a run; default: output: of the file, else
    a folder named like the file in the current one."""
    table: Path | None = None
    """Table of results, one JSON object a line; default: table: of the file, else results.jsonl in the output
    folder."""
    only: tuple[str, ...] = ()
    """Part of the runs, such as method=kdlsq,lsq,task=mrpc; keys: method, task, bits, seed, name (of a grid).
    Teachers that they need are trained too."""
    threads: int | None = None
    """CPU threads of every command, in place of what the file says."""
    jobs: int | None = None
    """Runs at a time, each in processes of its own; a student waits for its teacher; default: jobs: of the
    file, else 1."""
    keep: str | None = None
    """What stays of a finished run: all, onnx (no PyTorch model) or reports (neither); teachers always stay
    until the end; default: keep: of the file, else all."""
    latency: bool = False
    """Train nothing: time the ONNX files of finished runs, in turns, and add the medians to their rows."""
    lengths: tuple[int, ...] = (32, 128)
    """With --latency: tokens of the text, comma-separated."""
    rounds: int = 30
    """With --latency: rounds that count; each runs every file once."""
    dry_run: bool = False
    """List the runs and what is left to do, and run nothing."""

    def __post_init__(self) -> None:
        if self.threads is not None and self.threads < 1:
            raise UsageError(f"--threads must be at least 1, got {self.threads}")
        if self.jobs is not None and self.jobs < 1:
            raise UsageError(f"--jobs must be at least 1, got {self.jobs}")
        if self.rounds < 1:
            raise UsageError(f"--rounds must be at least 1, got {self.rounds}")
        if not self.lengths or min(self.lengths) < 1:
            raise UsageError(f"--lengths must be at least 1 each, got {list(self.lengths)}")
        if self.keep is not None and self.keep not in KEEP:
            raise UsageError(f"--keep must be one of {', '.join(KEEP)}, got '{self.keep}'")


@dataclass(frozen=True, slots=True)
class Planned:
    """One run of the sweep and what is known of it."""

    run: Run
    state: str
    """done, failed, unfinished or new; of a run that was done before `verify:` changed: unverified, or
    unjudged where its files are gone, so that it cannot be verified again."""
    wanted: bool
    """False for a run that --only left out and that no wanted one needs as its teacher."""


@dataclass(frozen=True, slots=True)
class SweepResult:
    """What a sweep that ran to its end leaves."""

    table: Path
    done: int
    """Runs with a row that says done, under the present `verify:`, of those wanted."""
    failed: tuple[str, ...]
    """One line each: the run and its sentence."""
    missed: tuple[str, ...]
    """One line each: the run and the gate that did not pass."""
    unjudged: tuple[str, ...]
    """Runs that were done under another `verify:` and whose files are gone."""
    seconds: float


@dataclass(frozen=True, slots=True)
class _Place:
    sweep: Sweep
    root: Path
    table: Path


def _place(config: SweepConfig) -> _Place:
    found = read_sweep(config.file)
    if config.threads is not None:
        found = dataclasses.replace(
            found, runs=tuple(_with_threads(run, config.threads) for run in found.runs)
        )
    root = config.output or (Path(expanded([found.output])[0]) if found.output else Path(config.file.stem))
    return _Place(found, root, config.table or found.table or root / "results.jsonl")


def _with_threads(run: Run, threads: int) -> Run:
    teacher = _with_threads(run.teacher, threads) if isinstance(run.teacher, Run) else run.teacher
    return dataclasses.replace(run, options={**run.options, "threads": threads}, teacher=teacher)


def plan(config: SweepConfig) -> list[Planned]:
    """The runs in order, with what is known of each.

    Raises:
        UsageError, DataError: a file, a table or a selection that cannot be.
    """
    place = _place(config)
    return _plan(config, place, Table(place.table))


def _plan(config: SweepConfig, place: _Place, table: Table) -> list[Planned]:
    chosen = _selection(config.only)
    runs = place.sweep.runs
    wanted = {run.key for run in runs if all(_value(run, name) & values for name, values in chosen.items())}
    if not wanted:
        raise UsageError(
            f"--only {','.join(config.only)} selects no run of {config.file}; --dry-run lists them"
        )
    for run in reversed(runs):  # students stand after their teachers
        if run.key not in wanted or table.done(run.key) or not isinstance(run.teacher, Run):
            continue
        if not trained(RunFolder(run.teacher, place.root, {})):
            wanted.add(run.teacher.key)
    pending = {run.teacher.key for run in runs
               if run.key in wanted and not table.done(run.key) and isinstance(run.teacher, Run)}  # fmt: skip
    found = []
    for run in runs:
        folder = RunFolder(run, place.root, place.sweep.verify)
        if table.done(run.key) and not (run.key in pending and not trained(folder)):
            state = "done"
            if not judged(table.rows[run.key], folder.verify):
                state = "unverified" if verifiable(folder) else "unjudged"
        elif table.rows.get(run.key, {}).get("status") == "failed":
            state = "failed"
        else:
            state = "unfinished" if folder.path.exists() else "new"
        found.append(Planned(run, state, run.key in wanted))
    return found


def _selection(parts: Sequence[str]) -> dict[str, set[str]]:
    """("method=a", "b", "task=c") -> {"method": {"a", "b"}, "task": {"c"}}."""
    chosen: dict[str, set[str]] = {}
    name = ""
    for part in parts:
        key, equals, value = part.partition("=")
        if equals:
            name = key.strip()
            if name not in _SELECTORS:
                raise UsageError(f"--only knows {', '.join(_SELECTORS)}, got '{name}'")
        elif not name:
            raise UsageError(f"--only takes key=value such as method=kdlsq, got '{part}'")
        chosen.setdefault(name, set()).add((value if equals else part).strip())
    return chosen


def _value(run: Run, name: str) -> set[str]:
    return set(run.groups) if name == "name" else {str(getattr(run, name))}


def sweep(config: SweepConfig, *, say: Callable[[str], None] = lambda line: None) -> SweepResult:
    """Do every wanted run that has no row yet; one that failed before is tried again.

    Args:
        config: which sweep.
        say: takes a line of progress.
    Raises:
        UsageError, DataError: found before any work.
        Interrupted: Ctrl-C; the same command goes on.
        SweepFailed: at the end, when a run failed or missed a gate; the table has every row.
    """
    place = _place(config)
    started = time.monotonic()
    stop = Stop()
    with disk_errors(place.root), _lock(place.root) as held:
        table = Table(place.table)
        planned = [each for each in _plan(config, place, table) if each.wanted]
        _refresh_groups(table, planned)
        todo = [each.run for each in planned if each.state not in _OVER]
        jobs = config.jobs or place.sweep.jobs
        before = len(planned) - len(todo)
        several = f", {jobs} at a time" if jobs > 1 else ""
        say(f"{len(planned)} runs, {before} done before{several}; table: {place.table}")
        if jobs > 1 and not all("threads" in run.options for run in todo):
            say(f"no threads are set, so {jobs} runs at a time want all cores each; --threads divides them")
        keep = config.keep or place.sweep.keep
        work = Work(
            place.sweep, place.root, table,
            jobs=jobs, keep=keep, held=held, begun=before, total=len(planned), say=say,
        )  # fmt: skip
        with stop.installed():
            stopped, unbegun = drive([Job.of(run) for run in todo], jobs, work.begin, stop, say=say)
        verify = place.sweep.verify
        done = sum(table.done(each.run.key) and judged(table.rows[each.run.key], verify) for each in planned)
        if stopped or unbegun:
            where = " and ".join(job.run.title for job in stopped)
            raise Interrupted(
                f"sweep stopped {f'in {where}' if stopped else f'before {unbegun[0].run.title}'}; {done} of "
                f"{len(planned)} runs are done, the same command goes on"
            )
        if all(each.state in _OVER for each in _plan(config, place, table)):
            work.tidy([each.run for each in planned])
    result = SweepResult(
        table=place.table,
        done=done,
        failed=tuple(work.failed[run.key] for run in todo if run.key in work.failed),
        missed=tuple(_missed(table, planned, verify)),
        unjudged=tuple(each.run.title for each in planned if each.state == "unjudged"),
        seconds=time.monotonic() - started,
    )
    if result.failed or result.missed or result.unjudged:
        total = len(planned)
        say(f"{result.done} of {total} runs done")
        for line in (*result.failed, *result.missed):
            say(f"  {line}")
        what = [f"{len(result.failed)} of {total} runs failed"] if result.failed else []
        what += [f"{len(result.missed)} missed a gate"] if result.missed else []
        ways = ["the same command tries failed runs again"] if what else []
        if result.unjudged:
            what.append(
                f"{len(result.unjudged)} cannot be verified again after verify: changed, since model, export "
                f"or teacher is gone ({', '.join(result.unjudged)})"
            )
            ways.append("take verify: back, or remove the rows of what cannot be verified to train it again")
        raise SweepFailed(f"{' and '.join(what)}, see {place.table}; {', and '.join(ways)}")
    return result


def add_latency(config: SweepConfig, *, say: Callable[[str], None] = lambda line: None) -> int:
    """Time the files of finished runs that are there, and add the medians to their rows.

    Args:
        config: which sweep, lengths and rounds.
        say: takes a line of progress.
    Returns:
        Rows that have times now.
    Raises:
        UsageError: no finished run has its file here.
    """
    place = _place(config)
    with _lock(place.root):
        table = Table(place.table)
        planned = [
            each.run for each in _plan(config, place, table) if each.wanted and table.done(each.run.key)
        ]
        folders = {run.key: RunFolder(run, place.root, {}).onnx for run in planned}
        files = {key: (table.rows[key], folder) for key, folder in folders.items() if folder.is_dir()}
        if not files:
            raise UsageError(
                f"no finished run of {config.file} has its ONNX folder in {place.root}; run it first"
            )
        count = 0
        for key, latency in time_files(
            files, lengths=config.lengths, threads=config.threads or 1, rounds=config.rounds, say=say
        ):
            table.put({**table.rows[key], "latency": latency})
            count += 1
    return count


def _refresh_groups(table: Table, planned: Sequence[Planned]) -> None:
    """Rows that are there already follow the file when a grid is added or renamed."""
    for each in planned:
        row = table.rows.get(each.run.key)
        if row is not None and row["groups"] != list(each.run.groups):
            table.put({**row, "groups": list(each.run.groups)})


def _missed(table: Table, planned: Sequence[Planned], verify: Mapping[str, Any]) -> Iterator[str]:
    """Gates of the present `verify:` that did not pass."""
    for each in planned:
        row = table.rows.get(each.run.key, {})
        for gate in row.get("gates", []) if judged(row, verify) else []:
            if gate["status"] != "passed":
                what = f"gate {gate['name']} {gate['limit']:g} {gate['status']}"
                yield f"{each.run.title}: {what}: {gate['value']}"


@contextlib.contextmanager
def _lock(root: Path) -> Iterator[int]:
    """Keep a second sweep, and one whose training outlived it, out of the folder.

    Yields:
        the descriptor of the lock; a child that inherits it holds it.
    """
    root.mkdir(parents=True, exist_ok=True)
    with (root / ".lock").open("w") as file:
        _take(file, root)
        yield file.fileno()


def _take(file: IO[str], root: Path) -> None:
    if os.name != "posix":
        return
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise UsageError(
            f"another sweep, or a training that it left behind, is at work in {root}; wait for it or stop it"
        ) from error
