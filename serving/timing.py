"""Latency, load time and memory of one verification: in this process, and by the clocks of other targets."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from qexport.errors import EnvironmentProblem, UnsupportedModelError
from qexport.serving.config import VerifyConfig
from qexport.serving.evaluate import Runner
from qexport.serving.facts import file_bytes
from qexport.serving.latency import LatencyCell, feeds_from_rows, latency_cells, measure_latency
from qexport.serving.probe import Probe, probe
from qexport.serving.report import Engine, Model, Process, process_of
from qexport.serving.running import RunningTargets
from qexport.serving.session import Batch, Session, model_file
from qexport.serving.targets import Job, Target

__all__ = ["Timing"]

_LABELS = {"fp32": "FP32", "int8": "int8"}


class Timing:
    """Times of the file under test beside its baselines, each clock for itself.

    Args:
        config: lengths, thread counts, rounds.
        targets: what runs the file.
        main: the main engine.
        baselines: "fp32" and "int8" -> .onnx file, of those there are.
        say: takes one line of progress.
    """

    def __init__(
        self,
        config: VerifyConfig,
        targets: RunningTargets,
        main: str,
        baselines: Mapping[str, Path],
        say: Callable[[str], None],
    ) -> None:
        self.config, self.targets, self.main, self.say = config, targets, main, say
        self.baselines = baselines
        self.file = model_file(config.model)
        self.notes: list[str] = []
        self._beside: dict[str, tuple[str, str]] = {}  # engine -> (baseline, target)

    def latency(self, batches: Sequence[Batch]) -> list[LatencyCell]:
        """Times by engine, length and thread count; `batches` give the token ids."""
        longest = Session(self.file).position_limit
        lengths = [length for length in self.config.lengths if length <= longest]
        if len(lengths) < len(self.config.lengths):
            self.notes.append(
                f"lengths above {longest} tokens were left out: the model has no positions for them"
            )
        if not lengths:
            return []
        cells = self._by_the_host(batches, lengths)
        for target in dict.fromkeys(self.targets.modes.values()):
            if not self.targets.interrupted and "own" in {target.clock(mode) for mode in target.modes}:
                with self.targets.guard(target.modes[0]):
                    cells += self._by_target(target, batches, lengths)
        cells.sort(key=lambda cell: cell.engine != self.main)
        return cells

    def _host_modes(self) -> list[str]:
        modes = [mode for mode in self.targets.modes if self.targets.clock(mode) == "host"]
        return sorted(modes, key=lambda mode: mode != self.main)

    def _by_the_host(self, batches: Sequence[Batch], lengths: Sequence[int]) -> list[LatencyCell]:
        modes = self._host_modes()
        if not modes:
            return []

        def open_engines(threads: int) -> Mapping[str, Runner]:
            engines: dict[str, Runner] = {mode: self.targets.open(mode, threads=threads) for mode in modes}
            for name in ("int8", "fp32"):
                if name in self.baselines:
                    engines[name] = Session(self.baselines[name], threads=threads)
            return engines

        config = self.config
        return measure_latency(
            open_engines, batches, lengths=lengths, threads=config.threads, batch_size=config.batch_size,
            rounds=config.iterations, warmup=config.warmup, seed=config.seed, report=self.say,
        )  # fmt: skip

    def _by_target(
        self, target: Target, batches: Sequence[Batch], lengths: Sequence[int]
    ) -> list[LatencyCell]:
        """Times by the target's own clock: its modes, and the baselines in its ordinary one."""
        config, found, beside = self.config, [], {}
        modes = [mode for mode in target.modes if mode in self.targets.modes and target.clock(mode) == "own"]
        place, ours = self.targets.place(target), modes[0]
        for asked in config.threads:
            jobs = {mode: Job(self.file, mode, self.targets.threads(mode, asked)) for mode in modes}
            for name in ("int8", "fp32"):
                if name in self.baselines:
                    engine = f"{name}-{ours}"
                    job = Job(self.baselines[name], ours, self.targets.threads(ours, asked))
                    try:
                        place.open(job.model, mode=job.mode, threads=job.threads)
                    except UnsupportedModelError as error:  # the file under test has times all the same
                        self.notes.append(f"no {_LABELS[name]} baseline on target {target.name}: {error}")
                        continue
                    jobs[engine] = job
                    beside[engine] = (name, target.name)
            counts = {name: job.threads for name, job in jobs.items()}
            for length in lengths:
                feeds = feeds_from_rows(
                    batches, length=length, batch_size=config.batch_size, seed=config.seed
                )
                times = place.time(jobs, feeds, rounds=config.iterations, warmup=config.warmup)
                found += latency_cells(
                    times, ours, length=length, batch_size=config.batch_size, threads=counts,
                    clock=target.name,
                )  # fmt: skip
                line = ", ".join(f"{name} {np.median(taken):.2f} ms" for name, taken in times.items())
                self.say(f"latency on {target.name}, {length} tokens: {line}")
            if all(mode in self.targets.fixed_threads(target) for mode in modes):
                break
        self._beside |= beside
        return found

    def engines(self, model: Model) -> list[Engine]:
        """The baselines that ran beside the file on other targets, for the report."""
        return [
            Engine(
                engine, f"{_LABELS[name]}, {engine}", f"{_LABELS[name]} baseline on target {target}",
                file_bytes(self.baselines[name]),
            )
            for engine, (name, target) in self._beside.items()
        ]  # fmt: skip

    def processes(self) -> list[Process]:
        """Load time and peak memory of the files that this process can open, each in a process of its own."""
        repeats, threads = self.config.processes, self.config.threads[0]
        length = min(max(self.config.lengths), Session(self.file).position_limit)
        files = {mode: (self.file, self.targets.library(mode)) for mode in self._host_modes()}
        files |= {name: (file, None) for name, file in self.baselines.items()}
        samples: dict[str, list[Probe]] = {name: [] for name in files}
        try:
            for _ in range(repeats):  # in turns, so that a busy moment hits every file
                for name, (file, library) in files.items():
                    path, isa = (library.path, library.isa) if library else (None, None)
                    samples[name].append(probe(file, length=length, threads=threads, library=path, isa=isa))
        except EnvironmentProblem as error:  # a system that starts no processes still has every other number
            self.notes.append(f"load time and memory are incomplete: {error}")
        found = [process_of(name, taken) for name, taken in samples.items() if taken]
        for process in found:
            self.say(f"load and memory: {process.engine} loads in {process.load_ms:.0f} ms")
        return found
