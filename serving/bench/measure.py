"""Time engines in turns over lengths, batch sizes and thread counts; keep what is finished when stopped."""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from qexport.errors import EnvironmentProblem, Interrupted, QexportError, UnsupportedModelError
from qexport.serving import facts
from qexport.serving.bench.config import BenchConfig
from qexport.serving.bench.engines import EngineSpec, FileKind
from qexport.serving.bench.files import EngineFile
from qexport.serving.bench.matmul import FLOAT_BITS, matmul_bytes, matmul_feeds, matmul_file
from qexport.serving.bench.processes import EngineProcess, empty_model, pinned
from qexport.serving.bench.profile import Profile, read_profile
from qexport.serving.bench.report import BenchEngine, BenchReport, Cell, MatmulCell, Opening
from qexport.serving.bench.roofline import Roofline
from qexport.serving.bench.worker import TensorSpec, WorkerSpec
from qexport.serving.latency import interleave, ratios
from qexport.serving.machine import environment
from qexport.serving.report import Model
from qexport.serving.session import Session, model_file

__all__ = ["LONG_TURN_MS", "bench", "check_model"]

LONG_TURN_MS = 200.0
"""An engine that takes longer is run once a turn: it reads more than the caches hold in any case."""

_MEMORY_LENGTH = 128
_IDS_OF_A_BARE_FILE = 100
_PROFILE_RUNS, _PROFILE_SKIP = 12, 2

Times = Mapping[str, npt.NDArray[np.float64]]


def check_model(config: BenchConfig) -> Path:
    """The .onnx file under test, once it is known to be one that the engines can take.

    Raises:
        UnsupportedModelError: no such file, not a text classifier, or no operator for the kernels in it.
        EnvironmentProblem: an engine needs the kernel library, and there is none for this machine.
        UnknownNameError: the instruction set of QEXPORT_ISA does not exist.
    """
    from qexport.serving.native import find_library, has_operators

    file = model_file(config.model)
    kernels = [spec for spec in config.specs() if spec.kernels]
    for spec in kernels:
        try:
            find_library(spec.isa)
        except EnvironmentProblem as problem:
            others = [one.name for one in config.specs() if one.ours and not one.kernels] or ["stock"]
            raise EnvironmentProblem(
                f"{spec.name} cannot run here: {problem}; or leave it out: --engines {','.join(others)}"
            ) from problem
    Session(file, kernels="off", optimize=False)  # its inputs are looked at; nothing is run
    if kernels and not has_operators(file):
        raise UnsupportedModelError(
            f"{file} has no operator of ai.qexport, so the kernels have nothing to run; give the export of a "
            "student made without --inline, or --engines stock"
        )
    return file


@dataclass
class _Found:
    """What is finished so far."""

    openings: list[Opening] = field(default_factory=list)
    cells: list[Cell] = field(default_factory=list)
    rooflines: dict[str, Roofline] = field(default_factory=dict)
    profiles: list[Profile] = field(default_factory=list)
    matmuls: list[MatmulCell] = field(default_factory=list)


def bench(
    config: BenchConfig,
    files: Mapping[FileKind, EngineFile],
    *,
    command: str = "",
    notes: Sequence[str] = (),
    say: Callable[[str], None] = lambda line: None,
    progress: Callable[[int, int, str], None] = lambda done, total, what: None,
) -> BenchReport:
    """Measure, and write the report to `config.folder`.

    Args:
        config: what to measure.
        files: kind of file -> the file; see `engine_files`.
        command: command line that repeats it, for the report.
        notes: further remarks for the report.
        say: told one line per cell.
        progress: told after each turn of all engines: rounds done, rounds in all, what is being timed.
    Raises:
        Interrupted: Ctrl-C; the cells that were finished are in the folder.
        QexportError: an engine that cannot be opened or that ended; the finished cells are in the folder, if
            there are any.
    """
    with empty_model() as empty, tempfile.TemporaryDirectory(prefix="qexport-bench-") as scratch:
        run = _Bench(config, files, Path(scratch), empty, list(notes), say, progress)
        begin = time.perf_counter()
        where = environment()
        problem: BaseException | None = None
        try:
            run.go()
        except (KeyboardInterrupt, QexportError) as stop:
            problem = stop
        found = run.found
        if problem is not None and not (found.cells or found.matmuls):
            raise problem
        report = BenchReport(
            created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            command=command,
            commit=_commit(),
            config=config.to_dict(),
            complete=problem is None,
            model=run.model,
            main_engine=run.specs[0].name,
            engines=run.engines,
            openings=found.openings,
            cells=found.cells,
            rooflines=found.rooflines,
            profiles=found.profiles,
            matmuls=found.matmuls,
            environment=where,
            load_after=round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
            notes=[*run.notes, *_busy(where.load_average, where.cores)],
            seconds=round(time.perf_counter() - begin, 2),
        )
        report.write(config.folder)
    if problem is None:
        return report
    kept = (
        f"{len(report.cells)} finished cell{'s' * (len(report.cells) != 1)} in {config.folder / 'bench.json'}"
    )
    if isinstance(problem, KeyboardInterrupt):
        raise Interrupted(f"benchmark stopped; {kept}") from None
    say(kept)
    raise problem


def _busy(load: float | None, cores: int) -> list[str]:
    if load is None or load <= 0.5 * cores:
        return []
    return [
        f"the machine was busy (load {load:g} on {cores} cores): trust ratios, which are formed within each "
        "round, more than milliseconds"
    ]


def _commit() -> str | None:
    """Commit of the checkout that holds this file; None for an installed package."""
    here = Path(__file__).resolve().parent
    try:
        asked = [["git", "rev-parse", "--short=12", "HEAD"], ["git", "status", "--porcelain", "-uno"]]
        head, changes = (
            subprocess.run(words, cwd=here, capture_output=True, text=True, check=True).stdout.strip()
            for words in asked
        )
        tracked = ["git", "ls-files", "--error-unmatch", Path(__file__).name]
        subprocess.run(tracked, cwd=here, capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return head + ("+changes" if changes else "")


class _Bench:
    """State of one benchmark."""

    def __init__(
        self,
        config: BenchConfig,
        files: Mapping[FileKind, EngineFile],
        scratch: Path,
        empty: Path,
        notes: list[str],
        say: Callable[[str], None],
        progress: Callable[[int, int, str], None],
    ) -> None:
        self.config, self.files, self.scratch, self.empty = config, files, scratch, empty
        self.say, self.progress, self.notes = say, progress, notes
        self.specs = config.specs()
        self.found = _Found()
        self.model: Model = facts.describe_model(config.model)
        self.engines = [
            BenchEngine(
                name=spec.name, label=spec.label, description=files[spec.file].how, ours=spec.ours,
                file_bytes=files[spec.file].n_bytes, environment=spec.environment,
            )
            for spec in self.specs
        ]  # fmt: skip
        session = Session(files["model"].path, kernels="off", optimize=False)
        self.vocabulary = _vocabulary(session)
        limit = session.position_limit
        self.lengths = [length for length in config.lengths if length <= limit]
        if len(self.lengths) < len(config.lengths):
            self.notes.append(
                f"lengths above {limit} tokens were left out: the model has no positions for them"
            )
        self.memory_length = min(_MEMORY_LENGTH, limit)
        self.threads = self._threads()
        cells = len(self.threads) * (len(config.batch_sizes) * len(self.lengths) + len(config.matmul))
        self.total, self.done = cells * (config.rounds + config.warmup), 0

    def _threads(self) -> list[int]:
        """The thread counts that this machine has cores for."""
        cores = environment().cores
        kept = [count for count in self.config.threads if count <= cores]
        for count in self.config.threads:
            if count > cores:
                self.notes.append(f"{count} threads were left out: this process may use {cores} cores")
        return kept or [cores]

    def go(self) -> None:
        config = self.config
        for threads in self.threads:
            with self._processes(self.specs, threads) as processes:
                if threads == self.threads[0] and (config.profile or config.matmul):
                    self._measure_rooflines(processes)
                for batch_size in config.batch_sizes:
                    for length in self.lengths:
                        self._cell(processes, length, batch_size, threads)
            for shape in range(len(config.matmul)):
                self._matmul(shape, threads)
        if config.profile:
            for spec in self.specs:
                if spec.runtime == "onnxruntime":
                    for length in self.lengths:
                        self._profile(spec, length)

    def _worker(self, spec: EngineSpec, threads: int, **changes: Any) -> WorkerSpec:
        known = WorkerSpec(
            path=str(self.files[spec.file].path), empty=str(self.empty), runtime=spec.runtime,
            threads=threads, cpus=pinned(threads) if self.config.pin else None, kernels=spec.kernels,
            isa=spec.isa, precision=spec.precision,
        )  # fmt: skip
        return replace(known, **changes)

    @contextlib.contextmanager
    def _processes(self, specs: Sequence[EngineSpec], threads: int) -> Iterator[dict[str, EngineProcess]]:
        """One open process per engine, one after the other."""
        with contextlib.ExitStack() as stack:
            processes = {}
            for spec in specs:
                self.progress(self.done, self.total, f"opening {spec.label}")
                worker = self._worker(spec, threads)
                process = stack.enter_context(EngineProcess(spec.name, worker, spec.environment))
                self.found.openings.append(self._opening(process))
                processes[spec.name] = process
            yield processes

    def _opening(self, process: EngineProcess) -> Opening:
        opened, length = process.opened, self.memory_length
        process.feed(self._feeds(length, 1))
        first_run_ms = process.turn()
        process.turn(2)
        state = process.state()
        known = state.resident_bytes is not None and opened.empty_bytes is not None
        added = (state.resident_bytes or 0) - (opened.empty_bytes or 0) if known else None
        return Opening(
            engine=process.name, threads=process.spec.threads, cpus=process.spec.cpus,
            settings=state.settings, load_ms=opened.load_ms, first_run_ms=first_run_ms, length=length,
            empty_bytes=opened.empty_bytes, session_bytes=added, peak_bytes=state.peak_bytes,
        )  # fmt: skip

    def _feeds(self, length: int, batch_size: int) -> dict[str, TensorSpec]:
        """Token ids below the size of the vocabulary, no padding."""
        shape = [batch_size, length]
        known = {
            "input_ids": TensorSpec(shape=shape, low=0, high=self.vocabulary - 1, seed=self.config.seed),
            "attention_mask": TensorSpec(shape=shape, low=1, high=1),
            "token_type_ids": TensorSpec(shape=shape, low=0, high=0),
        }
        return known

    def _turns(self, processes: Mapping[str, EngineProcess], what: str) -> tuple[Times, int]:
        """Warm up, choose the runs of a turn, and let the engines take turns."""
        config = self.config
        names = list(processes)

        def turn(name: str, repeats: int) -> float:
            taken = processes[name].turn(repeats)
            if name == names[-1]:
                self.done += 1
                self.progress(self.done, self.total, what)
            return taken

        rounds = max(1, config.warmup)
        once = {name: partial(turn, name, 1) for name in names}
        warm = interleave(once, rounds=rounds, warmup=0)
        self.done -= rounds - config.warmup
        slowest = max(float(taken[-1]) for taken in warm.values())
        repeats = 1 if slowest > LONG_TURN_MS else config.repeats
        turns = {name: partial(turn, name, repeats) for name in names}
        return interleave(turns, rounds=config.rounds, warmup=0), repeats

    def _cell(
        self, processes: Mapping[str, EngineProcess], length: int, batch_size: int, threads: int
    ) -> None:
        what = f"{length} tokens, batch {batch_size}, {threads} thread{'s' * (threads > 1)}"
        for process in processes.values():
            process.feed(self._feeds(length, batch_size))
        times, repeats = self._turns(processes, what)
        for spec in self.specs:
            taken = times[spec.name]
            p10, p25, p50, p75, p90 = (float(value) for value in np.percentile(taken, [10, 25, 50, 75, 90]))
            self.found.cells.append(
                Cell(
                    engine=spec.name, length=length, batch_size=batch_size, threads=threads,
                    rounds=len(taken), repeats=repeats, p10_ms=p10, p25_ms=p25, p50_ms=p50, p75_ms=p75,
                    p90_ms=p90, min_ms=float(taken.min()), times_ms=[round(float(ms), 5) for ms in taken],
                    ratios=ratios(times, spec.name) if spec.ours else [],
                )
            )  # fmt: skip
        self.say(
            f"{what}: " + ", ".join(f"{name} {np.median(taken):.2f} ms" for name, taken in times.items())
        )

    def _measure_rooflines(self, processes: Mapping[str, EngineProcess]) -> None:
        """The peak of each engine's instruction set, measured on the core that its process is kept on."""
        from qexport.serving.native import library_problem

        problem = library_problem()
        if problem is not None:
            self.notes.append(f"shares of the roofline are missing: {problem}")
            return
        for spec in self.specs:
            if spec.file in ("model", "int8"):  # the peak is that of 8-bit products
                self.progress(self.done, self.total, "measuring what this core can do")
                found = Roofline(**processes[spec.name].roofline(spec.isa))
                self.found.rooflines[spec.name] = found

    def _profile(self, spec: EngineSpec, length: int) -> None:
        threads, batch_size = self.threads[0], self.config.batch_sizes[0]
        self.progress(self.done, self.total, f"profiling {spec.label}, {length} tokens")
        prefix = str(self.scratch / f"{spec.name}-{length}")
        with EngineProcess(
            spec.name, self._worker(spec, threads, profile=prefix), spec.environment
        ) as process:
            process.feed(self._feeds(length, batch_size))
            process.turn(_PROFILE_RUNS)
            path = process.finish_profile()
            profile = read_profile(
                path, engine=spec.name, length=length, batch_size=batch_size, threads=threads,
                skip=_PROFILE_SKIP, roofline=self.found.rooflines.get(spec.name),
            )  # fmt: skip
        self.found.profiles.append(profile)

    def _matmul(self, index: int, threads: int) -> None:
        """Time one product as a model of one node, on the engines that have such a model."""
        shape, bits = self.config.shapes()[index], self.config.matmul_bits
        specs = [spec for spec in self.specs if spec.ours or spec.name == "fp32"]
        what = f"product {shape}, {threads} thread{'s' * (threads > 1)}"
        with contextlib.ExitStack() as stack:
            processes: dict[str, EngineProcess] = {}
            for spec in specs:
                path = matmul_file(
                    self.scratch, shape, FLOAT_BITS if spec.name == "fp32" else bits, seed=self.config.seed
                )
                worker = self._worker(spec, threads, path=str(path))
                process = stack.enter_context(EngineProcess(spec.name, worker, spec.environment))
                process.feed(matmul_feeds(shape, seed=self.config.seed))
                processes[spec.name] = process
            times, repeats = self._turns(processes, what)
            calls = {name: process.opened.call_ms for name, process in processes.items()}
        for spec in specs:
            taken, stored = times[spec.name], FLOAT_BITS if spec.name == "fp32" else bits
            p10, p50, p90 = (float(value) for value in np.percentile(taken, [10, 50, 90]))
            macs, n_bytes = shape.m * shape.k * shape.n, matmul_bytes(shape, stored)
            seconds = max(p50 - calls[spec.name], 1e-6) / 1e3
            roofline = self.found.rooflines.get(spec.name)
            peak = copy = None
            if roofline is not None:
                peak = macs / seconds / (roofline.macs_per_s * threads)
                copy = n_bytes / seconds / roofline.copy_bytes_per_s
            self.found.matmuls.append(
                MatmulCell(
                    engine=spec.name, shape=str(shape), bits=stored, threads=threads, rounds=len(taken),
                    repeats=repeats, p10_ms=p10, p50_ms=p50, p90_ms=p90, call_ms=calls[spec.name],
                    macs=macs, n_bytes=n_bytes, peak_share=peak, copy_share=copy,
                    ratios=ratios(times, spec.name) if spec.ours else [],
                )
            )  # fmt: skip
        self.say(
            f"{what}: " + ", ".join(f"{name} {np.median(taken):.3f} ms" for name, taken in times.items())
        )


def _vocabulary(session: Session) -> int:
    """Token ids that the model knows: config.json, else the tokenizer, else few enough for any model."""
    size = session.config.get("vocab_size")
    if isinstance(size, int) and size > 0:
        return size
    try:
        return int(session.tokenizer.get_vocab_size())
    except UnsupportedModelError:
        return _IDS_OF_A_BARE_FILE
