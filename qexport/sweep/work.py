"""Work: the three commands of each run, and its row in the table."""

from __future__ import annotations

import dataclasses
import json
import shlex
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qexport.atomic import atomic_write_text
from qexport.errors import QexportError
from qexport.sweep.grid import Sweep
from qexport.sweep.jobs import Job, Running, Steps, duration, time_left
from qexport.sweep.process import Command, CommandFailed
from qexport.sweep.rows import done_row, failed_row
from qexport.sweep.run import Run, RunFolder, expanded
from qexport.sweep.table import Table

__all__ = ["Work", "trained", "verifiable"]

_GATE_FAILED = 3


class Work:
    """One call of `sweep`."""

    def __init__(
        self,
        sweep: Sweep,
        root: Path,
        table: Table,
        *,
        jobs: int,
        keep: str,
        held: int,
        begun: int,
        total: int,
        say: Callable[[str], None],
    ) -> None:
        """Hold what all runs share.

        Args:
            sweep: what the file asks for.
            root: folder of the runs.
            table: where rows go.
            jobs: runs side by side; lines about them carry their run's name when there are several.
            keep: one of KEEP.
            held: descriptor of the folder's lock, which children keep open.
            begun: runs done before, of `total`.
            total: runs that are wanted.
            say: takes a line of progress.
        """
        self.sweep, self.root, self.table, self.jobs = sweep, root, table, jobs
        self.keep, self.held, self.begun, self.total, self.say = keep, held, begun, total, say
        self.launcher = shlex.split(sweep.launcher)
        self.failed: dict[str, str] = {}
        """Key of a run -> a line about it."""

    def begin(self, job: Job, waiting: Sequence[Job], running: Sequence[Running]) -> Steps:
        """Say that a run begins; see `qexport.sweep.jobs.drive`."""
        self.begun += 1
        name = f"[{self.begun}/{self.total}] {job.run.title}"
        estimate = time_left(self.table.rows.values(), [job, *waiting], running, self.jobs)
        self.say(f"{name}{f'; {estimate} left' if estimate else ''}")
        return self._do(job, f"{name}: " if self.jobs > 1 else "  ")

    def _do(self, job: Job, mark: str) -> Steps:
        """Train, export, verify; whatever goes wrong in one run becomes its row."""
        run = job.run
        folder = RunFolder(run, self.root, self.sweep.verify)
        done = self.table.rows[run.key] if self.table.done(run.key) and verifiable(folder) else None
        stage = "train"
        begin = time.monotonic()
        try:
            teacher = run.teacher
            if isinstance(teacher, Run) and not trained(RunFolder(teacher, self.root, {})):
                raise CommandFailed(f"its teacher {teacher.title} is not there", 1)
            state = _State.read(folder)
            yield from self._train(folder, state, mark)
            stage = "to-onnx"
            yield from self._export(folder, state, mark)
            stage = "verify"
            yield from self._verify(folder, state, mark)
            row = done_row(
                folder,
                seconds=state.seconds,
                resumed=state.resumed,
                launcher=self.sweep.launcher,
                jobs=self.jobs,
            )
        except QexportError as error:
            self._fail(job, folder, stage, str(error), mark, keep=done is not None)
            return
        except (KeyError, ValueError, OSError) as error:
            text = f"its files cannot be read: {type(error).__name__} {error}"
            self._fail(job, folder, stage, text, mark, keep=done is not None)
            return
        if done is not None and done["sha256"] == row["sha256"]:  # verified again: how it was made stays
            row |= {name: done[name] for name in ("launcher", "jobs", "latency") if name in done}
        self.table.put(row)
        self.say(f"{mark}{_summary(row)}; {duration(time.monotonic() - begin)}")
        if not self._is_teacher(job):
            self._discard(folder)

    def _fail(self, job: Job, folder: RunFolder, stage: str, text: str, mark: str, *, keep: bool) -> None:
        """Write the row, unless what failed was to verify a finished run again, whose row then stays."""
        if not keep:
            self.table.put(failed_row(folder, stage, text))
        self.failed[job.key] = f"{job.run.title}: {stage}: {text}"
        self.say(f"{mark}failed in {stage}: {text}; log: {folder.log}")

    def _train(self, folder: RunFolder, state: _State, mark: str) -> Steps:
        if trained(folder):
            return
        extra: list[str] = []
        if _resumable(folder.model):
            extra = ["--resume"]
            state.resumed += 1
            self.say(f"{mark}going on from its checkpoint")
        elif folder.model.exists():
            extra = ["--force"]
        words = [*folder.train_words(), *extra]
        yield from self._command("train", folder, words, state, mark, launcher=self.launcher)

    def _export(self, folder: RunFolder, state: _State, mark: str) -> Steps:
        if not _newer(folder.onnx / "qexport.json", folder.model / "qexport_train.json"):
            yield from self._command("to-onnx", folder, [*folder.export_words(), "--force"], state, mark)

    def _verify(self, folder: RunFolder, state: _State, mark: str) -> Steps:
        options = dict(folder.verify)
        if state.verified == options and _verified(folder):
            return
        state.verified = None  # until the command has ended, the report may be of either options
        state.write(folder)
        accept = (0, _GATE_FAILED)
        yield from self._command("verify", folder, folder.verify_words(), state, mark, accept=accept)
        state.verified = options
        state.write(folder)

    def _command(
        self, name: str, folder: RunFolder, words: Sequence[str], state: _State, mark: str, **options: Any
    ) -> Steps:
        def tell(line: str) -> None:
            self.say(f"{mark}{line}" if self.jobs > 1 else f"    {line}")

        begin = time.monotonic()
        try:
            command = Command(expanded(words), folder.log, hold=self.held, say=tell, **options)
            yield command
            command.check()
        finally:
            state.seconds[name] = state.seconds.get(name, 0.0) + time.monotonic() - begin
            state.write(folder)

    def _is_teacher(self, job: Job) -> bool:
        return any(isinstance(one.teacher, Run) and one.teacher.key == job.key for one in self.sweep.runs)

    def _discard(self, folder: RunFolder) -> None:
        if self.keep != "all":
            shutil.rmtree(folder.model, ignore_errors=True)
        if self.keep == "reports":
            shutil.rmtree(folder.onnx, ignore_errors=True)

    def tidy(self, runs: Sequence[Run]) -> None:
        """Discard the teachers, when no run of the sweep needs them any more."""
        for run in runs:
            self._discard(RunFolder(run, self.root, {}))


@dataclass(slots=True)
class _State:
    """What a run's folder remembers between two calls."""

    seconds: dict[str, float]
    resumed: int
    verified: dict[str, Any] | None
    """Options of `verify:` that the report was made with; None while that is not certain."""

    @classmethod
    def read(cls, folder: RunFolder) -> _State:
        path = folder.path / "state.json"
        if not path.is_file():
            return cls({}, 0, {})
        values = json.loads(path.read_text(encoding="utf-8"))
        return cls(dict(values["seconds"]), int(values["resumed"]), values.get("verified", {}))

    def write(self, folder: RunFolder) -> None:
        atomic_write_text(folder.path / "state.json", json.dumps(dataclasses.asdict(self)) + "\n")


def trained(folder: RunFolder) -> bool:
    """Whether the run's model is there, whole."""
    return (folder.model / "qexport_train.json").is_file()


def verifiable(folder: RunFolder) -> bool:
    """Whether everything that `verify` reads is there: model, export and the model of the teacher."""
    teacher = folder.run.teacher
    taught = not isinstance(teacher, Run) or trained(RunFolder(teacher, folder.root, {}))
    return taught and trained(folder) and (folder.onnx / "qexport.json").is_file()


def _resumable(model: Path) -> bool:
    """Whether --resume would find a whole checkpoint or a finished stage."""
    kept = ("checkpoints/**/checkpoint-*/trainer_state.json", "checkpoints/*/model/stage.json")
    return any(any(model.glob(name)) for name in kept)


def _verified(folder: RunFolder) -> bool:
    """Whether this export has a report that was measured to its end, not one of Ctrl-C or a lost target."""
    path = folder.report / "report.json"
    if not _newer(path, folder.onnx / "qexport.json"):
        return False
    try:
        status = json.loads(path.read_text(encoding="utf-8")).get("status")
    except ValueError:
        return False
    return status not in ("interrupted", "incomplete")


def _newer(path: Path, than: Path) -> bool:
    return path.is_file() and (not than.is_file() or path.stat().st_mtime >= than.stat().st_mtime)


def _summary(row: Mapping[str, Any]) -> str:
    value = row["metrics"][row["main_metric"]]["value"]
    parts = [f"{row['main_metric']} {100 * value:.2f}"]
    if row["drop"]:
        parts.append(f"drop {row['drop']['points']:.2f}")
    if row["agreement"]:
        parts.append(f"as PyTorch on {row['agreement']['rows_equal']} of {row['agreement']['rows']}")
    return ", ".join([*parts, f"{row['file_bytes'] / 1e6:.2f} MB"])
