"""`qexport verify`: one exported file against its references, on every target asked for.

report = verify(VerifyConfig(model=Path("out"), baseline=Path("fp32-onnx"), max_drop=0.5), rows,
                {"student": student_logits, "teacher": teacher_logits})
report.write(Path("out-report")); report.print(); report.raise_for_gates()
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from qexport.errors import EnvironmentProblem, ShapeError, UnsupportedModelError, UsageError
from qexport.serving import baselines, facts
from qexport.serving.config import VerifyConfig
from qexport.serving.evaluate import EvalRows, Runner, evaluate, metric_values
from qexport.serving.gates import Gate, at_least, at_most, drop_gate
from qexport.serving.latency import LatencyCell, measure_latency
from qexport.serving.machine import environment
from qexport.serving.paired import score_interval
from qexport.serving.parity import LayerTrace, Parity, compare_layers, compare_logits
from qexport.serving.probe import Probe, probe
from qexport.serving.report import Accuracy, Drop, Engine, Invariance, Process, Report, Rows, process_of
from qexport.serving.session import Batch, Float32Array, Session, model_file
from qexport.serving.targets import Target, choose_targets

__all__ = ["LayerReference", "VerifyConfig", "verify"]


@dataclass(frozen=True, slots=True)
class LayerReference:
    """What PyTorch's LayerNorms gave for one batch; the caller runs the student."""

    batch: Batch
    """int64 [B, S] feeds."""
    outputs: Mapping[str, npt.NDArray[Any]]
    """Module path -> output, float32 [B, S, D], for the modules in qexport.json's layer_norms."""


References = Mapping[str, Float32Array]


def verify(
    config: VerifyConfig,
    data: EvalRows | Sequence[EvalRows],
    references: References | Sequence[References] = (),
    *,
    layers: LayerReference | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> Report:
    """Measure one exported file and judge it.

    Args:
        config: what to measure.
        data: the rows; several splits (MNLI) as a list, each judged by every gate on rows.
        references: logits of PyTorch models, float32 [n_rows, C] in file order, one mapping per split. The
            names "student" (what was exported) and "teacher" have a meaning for gates; others are reported.
        layers: LayerNorm outputs of PyTorch for one batch; None leaves the layer table out.
        report: told one line per step.
    Returns:
        the report; gates are judged, not raised (`Report.raise_for_gates`).
    Raises:
        UnsupportedModelError: a model or baseline that cannot be loaded or is not a text classifier.
        ShapeError: a reference with the wrong number of rows or labels.
        UnknownNameError: no such target.
        EnvironmentProblem: a target that cannot run here, found before any work.
    """
    begin = time.perf_counter()
    splits = [data] if isinstance(data, EvalRows) else list(data)
    given: list[References] = [references] if isinstance(references, Mapping) else list(references)
    given = given or [{} for _ in splits]
    if len(given) != len(splits) or not splits:
        raise UsageError(f"there must be one set of references per split, got {len(given)} for {len(splits)}")
    targets, notes = choose_targets(config.targets, model_file(config.model))
    with tempfile.TemporaryDirectory(prefix="qexport-verify-") as scratch:
        run = _Run(config, splits, given, targets, notes, Path(scratch), report)
        return run.go(layers, begin)


class _Run:
    """State of one verification: engines opened, logits found."""

    def __init__(
        self,
        config: VerifyConfig,
        splits: list[EvalRows],
        references: list[References],
        targets: list[Target],
        notes: list[str],
        scratch: Path,
        report: Callable[[str], None],
    ) -> None:
        self.config, self.splits, self.references = config, splits, references
        self.targets, self.say = targets, report
        self.notes = notes
        self.main = targets[0].modes[0]
        self.file = model_file(config.model)
        self.model = facts.describe_model(config.model)
        self.modes = {mode: target for target in targets for mode in target.modes}
        self.timed = [self.main, *(mode for mode in self.modes if self._is_timed(mode) and mode != self.main)]
        """Modes of the file under test that are timed beside the baselines, the main one first."""
        self.baseline_files: dict[str, Path] = {}
        self.engines = [self._engine(mode) for mode in self.timed]
        # Opened before anything else, so that a foreign file costs no work.
        self.runner = targets[0].open(self.file, mode=self.main, threads=config.threads[0])
        if config.baseline is not None:
            self._add_baselines(config.baseline, scratch)
        self.logits: list[dict[str, tuple[Float32Array, npt.NDArray[np.int64]]]] = [{} for _ in splits]

    def _is_timed(self, mode: str) -> bool:
        return self.modes[mode].is_timed(mode)

    def _engine(self, mode: str) -> Engine:
        """The file under test in one mode, for the report."""
        model, library = self.model, self.modes[mode].library()
        if mode not in self.timed:
            return Engine(mode, mode, f"{self.file.name} on target {mode}")
        name = " ".join(part for part in (model.method, model.bits) if part) or self.file.parent.name
        if library is None:
            label = name if len(self.timed) == 1 else f"{name}, {mode}"
            return Engine(mode, label, f"{self.file.name} on target {mode}", model.file_bytes)
        return Engine(
            mode, f"{name}, {mode}" + (f" {library.isa}" if mode == "native" else ""),
            f"{self.file.name} on kernels {library.version}, {library.isa}", model.file_bytes,
            isa=library.isa, library=library.version,
        )  # fmt: skip

    def _add_baselines(self, baseline: Path, scratch: Path) -> None:
        file = model_file(baseline)
        Session(file)  # a baseline that cannot run stops the verification before any work
        self.baseline_files["fp32"] = file
        self.engines.append(Engine("fp32", "FP32", "float export on ONNX Runtime", facts.file_bytes(file)))
        if not self.config.int8:
            return
        self.say("quantising the FP32 baseline to dynamic int8 with ONNX Runtime")
        try:
            path, what = baselines.dynamic_int8(file, scratch / "int8")
        except UnsupportedModelError as error:
            self.notes.append(f"no int8 baseline: {error}")
            return
        self.baseline_files["int8"] = path
        self.engines.append(Engine("int8", "ORT int8", what, facts.file_bytes(path)))

    def go(self, layers: LayerReference | None, begin: float) -> Report:
        config = self.config
        where = environment()
        for target in self.targets:
            where.versions.update(target.versions())
        self._check_references()
        self._run_engines()
        accuracy, drops = self._accuracy(), self._drops()
        parity = self._parity()
        invariance = self._invariance()
        trace = self._layers(layers)
        latency = self._latency() if config.latency else []
        processes = self._processes()
        if where.load_average is not None and where.load_average > 0.5 * where.cores:
            self.notes.append(
                f"the machine was busy (load {where.load_average:g} on {where.cores} cores): trust ratios, "
                "which are formed within each round, more than milliseconds"
            )
        gates = self._gates(drops, parity, latency)
        status = _status(gates)
        return Report(
            created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            command=config.command,
            config=config.to_dict(),
            status=status,
            headline=facts.headline(self.model, self.engines, accuracy, drops, latency),
            model=self.model,
            main_engine=self.main,
            data=[
                Rows(
                    rows.task,
                    rows.split,
                    rows.kind,
                    rows.n_rows,
                    rows.main_metric,
                    rows.source,
                    rows.fingerprint,
                )
                for rows in self.splits
            ],
            engines=self.engines,
            accuracy=accuracy,
            drops=drops,
            parity=parity,
            invariance=invariance,
            layers=trace,
            latency=latency,
            processes=processes,
            gates=gates,
            environment=where,
            notes=self.notes,
            seconds=round(time.perf_counter() - begin, 2),
        )

    def _check_references(self) -> None:
        for rows, named in zip(self.splits, self.references, strict=True):
            for name, logits in named.items():
                if np.ndim(logits) != 2 or np.shape(logits)[0] != rows.n_rows:
                    raise ShapeError(
                        f"logits of {name} must be [{rows.n_rows}, labels] for {rows.task} {rows.split}, got "
                        f"{list(np.shape(logits))}; compute them on the same rows"
                    )
        what = {"student": "PyTorch student", "teacher": "PyTorch teacher"}
        for name in dict.fromkeys(name for named in self.references for name in named):
            self.engines.append(Engine(name, what.get(name, name), f"{what.get(name, name)}, logits given"))

    def _run_engines(self) -> None:
        threads = self.config.threads[0]
        for mode, target in self.modes.items():
            if mode == self.main:
                self._evaluate(mode, self.runner, None)
                continue
            limit = target.row_limit(mode)
            if self.config.target_rows is not None:
                limit = self.config.target_rows
            if mode not in self.timed:
                self.engines.append(self._engine(mode))
            self._evaluate(mode, target.open(self.file, mode=mode, threads=threads), limit)
        for name, file in self.baseline_files.items():
            self._evaluate(name, Session(file, threads=threads), None)
        for index, named in enumerate(self.references):
            every = np.arange(self.splits[index].n_rows, dtype=np.int64)
            for name, logits in named.items():
                self.logits[index][name] = (np.asarray(logits, dtype=np.float32), every)

    def _evaluate(self, name: str, runner: Runner, limit: int | None) -> None:
        for index, rows in enumerate(self.splits):
            begin = time.perf_counter()
            self.logits[index][name] = evaluate(runner, rows, max_rows=limit)
            done = len(self.logits[index][name][1])
            seconds = time.perf_counter() - begin
            self.say(f"{name}: {done} rows of {rows.task} {rows.split} in {seconds:.1f} s")
            if done < rows.n_rows:
                self.notes.append(f"{name} ran {done} of {rows.n_rows} rows of {rows.split}")

    def _accuracy(self) -> list[Accuracy]:
        found = []
        for rows, results in zip(self.splits, self.logits, strict=True):
            for name, (logits, positions) in results.items():
                if len(positions) == rows.n_rows:
                    found.append(Accuracy(name, rows.split, rows.n_rows, metric_values(rows, logits)))
        return found

    def _drops(self) -> list[Drop]:
        found = []
        for rows, results in zip(self.splits, self.logits, strict=True):
            pairs = self._pairs(results)
            references = [against for ours, against in pairs if ours == self.main]
            pairs += [(mode, against) for mode in self.timed[1:] for against in references]
            for ours, against in pairs:
                a, b = results[against][0], results[ours][0]
                if len(a) != rows.n_rows or len(b) != rows.n_rows:
                    continue
                found.append(self._drop(rows, ours, against, a, b))
        return found

    def _drop(self, rows: EvalRows, ours: str, against: str, a: Float32Array, b: Float32Array) -> Drop:
        """Loss of `ours` (logits b) against a reference (logits a).

        Accuracy has the score interval, which keeps its level when few rows differ; other metrics have the
        interval of the function that came with the rows.
        """
        metric = rows.main_metric
        if metric == "accuracy":
            first, second = a.argmax(-1) == rows.labels, b.argmax(-1) == rows.labels
            worse, better = int((first & ~second).sum()), int((second & ~first).sum())
            shares = score_interval(worse, better, rows.n_rows)
            drop, low, high, method = shares.drop, shares.low, shares.high, "score interval (Tango 1998)"
        else:
            found = rows.paired_drop(metric, a, b, rows.labels)
            drop, low, high, method = found.drop, found.low, found.high, "paired bootstrap"
        points, low, high = (100.0 * float(value) for value in (drop, low, high))
        return Drop(ours, against, rows.split, metric, rows.n_rows, points, low, high, method)

    def _pairs(self, results: Mapping[str, Any]) -> list[tuple[str, str]]:
        """(engine, reference) pairs worth a comparison, the main engine's first."""
        pairs = [(self.main, name) for name in ("student", "teacher", "fp32") if name in results]
        pairs += [(self.main, name) for name in self.references[0] if name not in ("student", "teacher")]
        for ours, names in (("int8", ("fp32", "teacher")), ("fp32", ("teacher",))):
            pairs += [(ours, name) for name in names if ours in results and name in results]
        return pairs

    def _parity(self) -> list[Parity]:
        found = []
        for rows, results in zip(self.splits, self.logits, strict=True):
            pairs = self._pairs(results)
            kernels = [mode for mode, target in self.modes.items() if target.library() is not None]
            pairs += [(mode, "stock") for mode in kernels if "stock" in results]
            others = [mode for mode in self.modes if mode != self.main]
            for pair in [(mode, name) for mode in others for name in (self.main, "student")]:
                if pair[1] in results and pair not in pairs and pair[::-1] not in pairs:
                    pairs.append(pair)
            pairs.sort(key=lambda pair: pair[0] != self.main)
            for ours, against in pairs:
                a, positions = results[ours]
                b = results[against][0][positions] if len(results[against][0]) == rows.n_rows else None
                if b is None or a.shape != b.shape:
                    if b is not None:
                        raise ShapeError(
                            f"{against} has {b.shape[1]} labels but {ours} has {a.shape[1]}; "
                            "compare models of one task"
                        )
                    continue
                found.append(
                    compare_logits(
                        ours, a, against, b, split=rows.split, rows=positions, kind=rows.kind,
                        tolerance=rows.agreement_tolerance, labels=rows.labels, texts=rows.texts,
                    )
                )  # fmt: skip
        return found

    def _invariance(self, most: int = 16) -> Invariance:
        """Run a few rows alone, without padding, and compare with their logits inside the batches."""
        rows = self.splits[0]
        batched, positions = self.logits[0][self.main]
        place = {int(row): index for index, row in enumerate(positions)}
        largest, identical, done = 0.0, True, 0
        for batch, start in zip(rows.batches, _starts(rows.batches), strict=True):
            for index in range(min(len(batch["input_ids"]), most - done)):
                mask = np.asarray(batch.get("attention_mask", np.ones_like(batch["input_ids"])))[index]
                length = max(1, int(np.flatnonzero(mask).max(initial=0)) + 1)
                alone = {name: np.asarray(value)[index : index + 1, :length] for name, value in batch.items()}
                single = np.asarray(self.runner.run(alone)["logits"], dtype=np.float32)[0]
                inside = batched[place[int(rows.positions[start + index])]]
                largest = max(largest, float(np.abs(single - inside).max()))
                identical &= bool(np.array_equal(single, inside))
                done += 1
            if done >= most:
                break
        return Invariance(self.main, done, largest, identical)

    def _layers(self, layers: LayerReference | None) -> LayerTrace | None:
        if layers is None:
            return None
        self.say("comparing every LayerNorm with PyTorch")
        return compare_layers(
            self.config.model, layers.batch, layers.outputs, tolerance=self.config.layer_tolerance,
            threads=self.config.threads[0], isa=self.engines[0].isa,
        )  # fmt: skip

    def _latency(self) -> list[LatencyCell]:
        config = self.config
        longest = Session(self.file).position_limit
        lengths = [length for length in config.lengths if length <= longest]
        if len(lengths) < len(config.lengths):
            self.notes.append(
                f"lengths above {longest} tokens were left out: the model has no positions for them"
            )
        if not lengths:
            return []

        def open_engines(threads: int) -> Mapping[str, Runner]:
            engines: dict[str, Runner] = {
                mode: self.modes[mode].open(self.file, mode=mode, threads=threads) for mode in self.timed
            }
            for name in ("int8", "fp32"):
                if name in self.baseline_files:
                    engines[name] = Session(self.baseline_files[name], threads=threads)
            return engines

        return measure_latency(
            open_engines, self.splits[0].batches, lengths=lengths, threads=config.threads,
            batch_size=config.batch_size, rounds=config.iterations, warmup=config.warmup, seed=config.seed,
            report=self.say,
        )  # fmt: skip

    def _processes(self) -> list[Process]:
        repeats, threads = self.config.processes, self.config.threads[0]
        length = min(max(self.config.lengths), Session(self.file).position_limit)
        files = {mode: (self.file, self.modes[mode].library()) for mode in self.timed if self._is_timed(mode)}
        files |= {name: (file, None) for name, file in self.baseline_files.items()}
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

    def _gates(self, drops: list[Drop], parity: list[Parity], latency: list[LatencyCell]) -> list[Gate]:
        config, gates = self.config, []
        for rows in self.splits:
            if config.max_drop is not None:
                drop = _first(drops, self.main, rows.split, ("teacher", "fp32"))
                gates.append(
                    drop_gate(
                        config.max_drop, _Fractions(drop) if drop else None, metric=rows.main_metric,
                        against=drop.against if drop else "", split=rows.split, rows=rows.n_rows,
                    )
                )  # fmt: skip
            if config.min_agreement is not None:
                found = _first(parity, self.main, rows.split, ("student", "teacher", "fp32"))
                against = found.against if found else "a reference"
                value = 100.0 * found.agreement if found else None
                what = f"agreement with {against} on {rows.split}"
                gates.append(at_least("min-agreement", config.min_agreement, value, "%", what))
        if config.max_latency_ms is not None:
            length = config.latency_length or max(
                (cell.length for cell in latency), default=max(config.lengths)
            )
            cell = next(
                (cell for cell in latency if (cell.engine, cell.length, cell.threads)
                 == (self.main, length, config.threads[0])), None,
            )  # fmt: skip
            threads = config.threads[0]
            what = f"median latency at {length} tokens, {threads} thread{'s' * (threads > 1)},"
            gates.append(
                at_most("max-latency-ms", config.max_latency_ms, cell.p50_ms if cell else None, "ms", what)
            )
        if config.max_size_mb is not None:
            gates.append(
                at_most(
                    "max-size-mb",
                    config.max_size_mb,
                    self.model.file_bytes / 1e6,
                    "MB",
                    f"size of {self.file.name}",
                )
            )
        return gates


class _Fractions:
    """A `Drop` in points seen as the fractions that `drop_gate` takes."""

    def __init__(self, drop: Drop) -> None:
        self.drop, self.low, self.high = drop.points / 100.0, drop.low / 100.0, drop.high / 100.0


def _first(found: Sequence[Any], engine: str, split: str, names: Sequence[str]) -> Any:
    for name in names:
        for item in found:
            if (item.engine, item.against, item.split) == (engine, name, split):
                return item
    return None


def _starts(batches: Sequence[Batch]) -> list[int]:
    sizes = [len(batch["input_ids"]) for batch in batches]
    return [sum(sizes[:index]) for index in range(len(sizes))]


def _status(gates: Sequence[Gate]) -> str:
    if not gates:
        return "measured"
    states = {gate.status for gate in gates}
    if states & {"failed", "missing"}:
        return "failed"
    return "undecided" if "undecided" in states else "passed"
