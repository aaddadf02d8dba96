"""Jobs: runs side by side, which one is next, and how long the rest will take."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qexport.sweep.process import Command, Stop
from qexport.sweep.run import Run

__all__ = ["Job", "Running", "Steps", "drive", "duration", "next_job", "time_left"]

_POLL_S = 0.2

Steps = Generator[Command, None, None]
"""A job as a generator of its commands: given when it runs, asked for the next one when it has ended."""


@dataclass(frozen=True, slots=True)
class Job:
    """A run that is to be done, with its key and its teacher's, which take a hash each."""

    run: Run
    key: str
    teacher: str | None
    """Key of the run that trains its teacher."""

    @classmethod
    def of(cls, run: Run) -> Job:
        return cls(run, run.key, run.teacher.key if isinstance(run.teacher, Run) else None)


@dataclass(slots=True)
class Running:
    """A job and the command that it has reached."""

    job: Job
    steps: Steps
    command: Command
    started: float
    """time.monotonic()."""


def next_job(waiting: Sequence[Job], running: Iterable[str]) -> Job | None:
    """The first job whose teacher is neither waiting nor running; None when there is none.

    Args:
        waiting: in the order of the file.
        running: keys.
    """
    unfinished = {job.key for job in waiting} | set(running)
    return next((job for job in waiting if job.teacher not in unfinished), None)


def drive(
    todo: Sequence[Job],
    at_once: int,
    begin: Callable[[Job, Sequence[Job], Sequence[Running]], Steps],
    stop: Stop,
    *,
    say: Callable[[str], None],
) -> tuple[tuple[Job, ...], tuple[Job, ...]]:
    """Do jobs until none is left or `stop` is asked; then every child gets the signal and is waited for.

    All of it happens in the calling thread, which only looks after the children: they are the parallel part.
    So the table has one writer, and every child belongs to the thread that gets the signals.

    Args:
        todo: in order; a teacher before its students.
        at_once: jobs that run side by side.
        begin: takes a job, those that wait after it and those that run.
        stop: counts Ctrl-C.
        say: takes a line of progress.
    Returns:
        The jobs that were stopped, and those that never began; both empty when all are done.
    """
    waiting = list(todo)
    running: list[Running] = []
    try:
        while (waiting or running) and not stop.asked:
            while len(running) < at_once and not stop.asked:
                job = next_job(waiting, (each.job.key for each in running))
                if job is None:
                    break
                waiting.remove(job)
                steps = begin(job, waiting, running)
                started = time.monotonic()
                first = next(steps, None)
                if first is not None:
                    running.append(Running(job, steps, first, started))
            running = [each for each in running if _goes_on(each)]
            if running and not any(each.command.ended() for each in running):
                time.sleep(_POLL_S)
        if running:
            what = "its checkpoint" if len(running) == 1 else f"the checkpoints of {len(running)} runs"
            say(f"  stopping: waiting for {what}; Ctrl-C again stops at once")
        return tuple(each.job for each in running), tuple(waiting)
    finally:  # after Ctrl-C, and after an error in one job, which must not leave the others alone
        _end(running, stop)


def _goes_on(running: Running) -> bool:
    """Whether the job has more to do; one whose command has ended begins its next one."""
    if not running.command.ended():
        return True
    following = next(running.steps, None)
    if following is not None:
        running.command = following
    return following is not None


def _end(running: Sequence[Running], stop: Stop) -> None:
    """Stop the commands, wait for all of them, and pass further Ctrl-C on."""
    sent = 0
    while alive := [each for each in running if not each.command.ended()]:
        if sent < max(1, stop.asked):
            sent += 1
            for each in alive:
                each.command.stop()
        time.sleep(_POLL_S)
    for each in running:
        each.steps.close()


def time_left(
    rows: Iterable[Mapping[str, Any]], waiting: Sequence[Job], running: Sequence[Running], at_once: int
) -> str:
    """How long it will take, in words; nothing when no finished run says anything about it.

    A run is taken to last as long as the median of the rows of the same method and task, else task, else
    method, else all. The jobs are then laid out side by side as `drive` does it.

    Args:
        rows: of the table.
        waiting: jobs that have not begun.
        running: jobs that have.
        at_once: jobs that run side by side.
    """
    known = [
        (row["method"], row["task"], float(sum(row["seconds"].values())))
        for row in rows
        if row["status"] == "done"
    ]
    if not known:
        return ""

    def expected(run: Run) -> float:
        both = [seconds for method, task, seconds in known if (method, task) == (run.method, run.task)]
        some = both or [seconds for _, task, seconds in known if task == run.task]
        some = some or [seconds for method, _, seconds in known if method == run.method]
        return float(statistics.median(some or [seconds for _, _, seconds in known]))

    now, clock = 0.0, time.monotonic()
    left = list(waiting)
    ends = {each.job.key: max(0.0, expected(each.job.run) - (clock - each.started)) for each in running}
    while left or ends:
        while len(ends) < at_once and (job := next_job(left, ends)) is not None:
            left.remove(job)
            ends[job.key] = now + expected(job.run)
        first = min(ends, key=ends.__getitem__)
        now = ends.pop(first)
    return f"about {duration(now)}"


def duration(seconds: float) -> str:
    """In the unit that people would use."""
    minutes = round(seconds / 60)
    return (
        f"{seconds:.0f} s"
        if seconds < 90
        else f"{minutes} min"
        if minutes < 120
        else f"{seconds / 3600:.1f} h"
    )
