"""`qexport verify`: one exported file against its references, on every target asked for.

report = verify(VerifyConfig(model=Path("out"), baseline=Path("fp32-onnx"), max_drop=0.5), rows,
                {"student": student_logits, "teacher": teacher_logits})
report.write(Path("out-report")); report.print(); report.raise_for_gates()
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import tempfile
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from qexport.errors import ShapeError, UnsupportedModelError, UsageError
from qexport.serving import baselines, facts
from qexport.serving.config import VerifyConfig
from qexport.serving.evaluate import EvalRows, Evaluated, Runner, evaluate, metric_values
from qexport.serving.gates import Gate, at_least, at_most, drop_gate
from qexport.serving.invariance import measure_invariance
from qexport.serving.kinds import decoding_of
from qexport.serving.latency import LatencyCell
from qexport.serving.machine import environment
from qexport.serving.matrix import columns
from qexport.serving.mobile import MobileCheck, mobile_check
from qexport.serving.paired import score_interval
from qexport.serving.parity import LayerTrace, Parity, compare_engines, compare_layers
from qexport.serving.report import Accuracy, Drop, Engine, Invariance, Process, Report, Rows
from qexport.serving.running import RunningTargets
from qexport.serving.session import Batch, Float32Array, Session, model_file
from qexport.serving.targets import choose_targets
from qexport.serving.timing import Timing

__all__ = ["LayerReference", "VerifyConfig", "verify"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class LayerReference:
    """What PyTorch's LayerNorms gave for one batch; the caller runs the student."""

    batch: Batch
    """int64 [B, S] feeds."""
    outputs: Mapping[str, npt.NDArray[Any]]
    """Module path -> output, float32 [B, S, D], for the modules in qexport.json's layer_norms."""


References = Mapping[str, Float32Array]
Decoding = Mapping[str, Mapping[str, float]]


def verify(
    config: VerifyConfig,
    data: EvalRows | Sequence[EvalRows],
    references: References | Sequence[References] = (),
    *,
    layers: LayerReference | None = None,
    decoding: Decoding | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> Report:
    """Measure one exported file and judge it.

    Args:
        config: what to measure.
        data: the rows; several splits (MNLI) as a list, each judged by every gate on rows.
        references: outputs of PyTorch models, float32 [n_rows, ...] in file order (logits [n_rows, C] of a
            classifier, else see `OutputKind.join`), one mapping per split. The
            names "student" (what was exported) and "teacher" have a meaning for gates; others are reported.
        layers: LayerNorm outputs of PyTorch for one batch; None leaves the layer table out.
        decoding: what the folders of the references say about reading their outputs, by name; a file's own is
            in the qexport.json beside it.
        report: told one line per step.
    Returns:
        the report; gates are judged, not raised (`Report.raise_for_gates`).
    Raises:
        UnsupportedModelError: a model or baseline that cannot be loaded or is of no known kind.
        ShapeError: a reference with the wrong number of rows or labels.
        UnknownNameError: no such target.
        EnvironmentProblem: no target can run here, found before any work; one of several that cannot is in
            the report, and `Report.raise_for_gates` raises for it.
        KeyboardInterrupt: Ctrl-C before any target was done; later the report holds what was finished.
    """
    begin = time.perf_counter()
    splits = [data] if isinstance(data, EvalRows) else list(data)
    given: list[References] = [references] if isinstance(references, Mapping) else list(references)
    given = given or [{} for _ in splits]
    if len(given) != len(splits) or not splits:
        raise UsageError(f"there must be one set of references per split, got {len(given)} for {len(splits)}")
    choice = choose_targets(config.targets, model_file(config.model))
    with (
        tempfile.TemporaryDirectory(prefix="qexport-verify-") as scratch,
        contextlib.closing(RunningTargets(choice, model_file(config.model), report)) as targets,
    ):
        run = _Run(config, splits, given, targets, choice.notes, Path(scratch), report)
        run.decoding.update(decoding or {})
        return run.go(layers, begin)


class _Run:
    """State of one verification: engines opened, logits found."""

    def __init__(
        self,
        config: VerifyConfig,
        splits: list[EvalRows],
        references: list[References],
        targets: RunningTargets,
        notes: list[str],
        scratch: Path,
        report: Callable[[str], None],
    ) -> None:
        self.config, self.splits, self.references = config, splits, references
        self.targets, self.say = targets, report
        self.notes = notes
        self.file = model_file(config.model)
        self.model = facts.describe_model(config.model)
        self.baseline_files: dict[str, Path] = {}
        # Opened before anything else, so that a foreign file costs no work.
        self.main, self.runner = targets.open_first(threads=config.threads[0])
        self.engines = [self._engine(mode) for mode in self.timed]
        if config.baseline is not None:
            self._add_baselines(config.baseline, scratch)
        self.decoding: dict[str, Mapping[str, float]] = {}
        """How the outputs of references are read, by name."""
        self.found: list[dict[str, Evaluated]] = [{} for _ in splits]
        """What each engine said, per split."""

    @property
    def modes(self) -> list[str]:
        """Every engine of every target that runs."""
        return list(self.targets.modes)

    @property
    def timed(self) -> list[str]:
        """Modes of the file under test that are timed on some clock, the main one first."""
        others = [mode for mode in self.modes if self.targets.clock(mode) != "none"]
        return [self.main, *(mode for mode in others if mode != self.main)]

    def _engine(self, mode: str) -> Engine:
        """The file under test in one mode, for the report."""
        model, library = self.model, self.targets.library(mode)
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
        self._check_references()
        self._run_engines()
        where.versions.update(self.targets.host_versions())
        accuracy, drops = self._accuracy(), self._drops()
        parity = self._parity()
        invariance = self._step(self._invariance, None)
        trace = self._step(lambda: self._layers(layers), None)
        timing = Timing(config, self.targets, self.main, self.baseline_files, self.say)
        latency: list[LatencyCell] = []
        if config.latency:
            latency = self._step(lambda: timing.latency(self.splits[0].batches), latency)
        self.engines += timing.engines(self.model)
        nothing: list[Process] = []
        processes = self._step(timing.processes, nothing)
        self.notes += timing.notes
        if where.load_average is not None and where.load_average > 0.5 * where.cores:
            self.notes.append(
                f"the machine was busy (load {where.load_average:g} on {where.cores} cores): trust ratios, "
                "which are formed within each round, more than milliseconds"
            )
        gates = self._gates(drops, parity, latency)
        self._step(self.targets.measure, None)
        mobile = self._step(self._mobile, None)
        targets = self.targets.results()
        status = _status(gates, lost=any(target.status == "failed" for target in targets))
        if self.targets.interrupted:
            status = "interrupted"
            self.notes.append("Ctrl-C ended the verification: what came after it was not measured")
        found = Report(
            created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            command=config.command,
            config=config.to_dict(),
            status=status,
            headline=facts.headline(self.model, self.engines, accuracy, drops, latency),
            model=self.model,
            main_engine=self.main,
            targets=targets,
            data=[
                Rows(
                    rows.task,
                    rows.split,
                    rows.kind,
                    rows.n_items,
                    rows.main_metric,
                    rows.source,
                    rows.fingerprint,
                    rows.reader.item,
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
            mobile=mobile,
            gates=gates,
            environment=where,
            notes=self.notes,
            seconds=round(time.perf_counter() - begin, 2),
        )
        return dataclasses.replace(found, matrix=columns(found))

    def _step(self, work: Callable[[], T], otherwise: T) -> T:
        """What a step finds; `otherwise` once Ctrl-C came: what was found before is still reported."""
        if not self.targets.interrupted:
            try:
                return work()
            except KeyboardInterrupt:
                self.targets.interrupt()
        return otherwise

    def _mobile(self) -> MobileCheck | None:
        return mobile_check(self.file, self.splits[0], say=self.say) if self.config.mobile_check else None

    def _check_references(self) -> None:
        for rows, named in zip(self.splits, self.references, strict=True):
            for name, logits in named.items():
                if np.ndim(logits) < 2 or np.shape(logits)[0] != rows.n_rows:
                    raise ShapeError(
                        f"logits of {name} must be [{rows.n_rows}, ...] for {rows.task} {rows.split}, got "
                        f"{list(np.shape(logits))}; compute them on the same rows"
                    )
        what = {"student": "PyTorch student", "teacher": "PyTorch teacher"}
        for name in dict.fromkeys(name for named in self.references for name in named):
            self.engines.append(Engine(name, what.get(name, name), f"{what.get(name, name)}, logits given"))

    def _run_engines(self) -> None:
        threads = self.config.threads[0]
        for mode in self.modes:
            with self.targets.guard(mode):
                if not self.targets.has(mode):
                    continue
                if mode == self.main:
                    self._evaluate(mode, self.runner, None, self.file)
                    continue
                limit = self.targets.row_limit(mode)
                if self.config.target_rows is not None:
                    limit = self.config.target_rows
                self._evaluate(mode, self.targets.open(mode, threads=threads), limit, self.file)
                if mode not in self.timed:
                    self.engines.append(self._engine(mode))
        self._drop_lost()
        for name, file in self.baseline_files.items():
            self._step(functools.partial(self._evaluate_baseline, name, file), None)
        self._forget([name for name in self.baseline_files if name not in self.found[-1]])
        for index, named in enumerate(self.references):
            every = np.arange(self.splits[index].n_rows, dtype=np.int64)
            for name, logits in named.items():
                self._keep(
                    index, name, np.asarray(logits, dtype=np.float32), every, self.decoding.get(name, {})
                )

    def _evaluate_baseline(self, name: str, file: Path) -> None:
        origin = self.baseline_files["fp32"]  # what is made of it is read as it is
        self._evaluate(name, Session(file, threads=self.config.threads[0]), None, origin)

    def _forget(self, names: Collection[str]) -> None:
        """Leave engines out that did not run to the end of the last split."""
        self.engines = [engine for engine in self.engines if engine.name not in names]
        for results in self.found:
            for name in names:
                results.pop(name, None)

    def _drop_lost(self) -> None:
        """Forget engines without logits; the first target that has some takes the place of a lost main one.

        Raises:
            EnvironmentProblem, UnsupportedModelError: every target was lost; the first one's reason.
            KeyboardInterrupt: Ctrl-C came before any was done.
        """
        ran = [mode for mode in self.targets.asked_modes if mode in self.found[-1]]
        if not ran and self.targets.interrupted:
            raise KeyboardInterrupt
        if not ran:
            raise self.targets.first_error()
        self._forget({*self.targets.asked_modes, *self.targets.modes} - set(ran))
        if self.main not in ran:
            self.notes.append(f"{self.main} did not run, so the results are judged on {ran[0]}")
            self.main = ran[0]
            if self.main in self.targets.modes:
                self.runner = self.targets.open(self.main, threads=self.config.threads[0])
            self.engines.sort(key=lambda engine: engine.name != self.main)

    def _keep(
        self, index: int, name: str, joined: Float32Array, positions: npt.NDArray[np.int64],
        settings: Mapping[str, float],
    ) -> None:  # fmt: skip
        rows = self.splits[index]
        decoded = rows.reader.decode(rows.items, joined, positions, settings)
        self.found[index][name] = Evaluated(joined, positions, decoded, settings)

    def _evaluate(self, name: str, runner: Runner, limit: int | None, file: Path) -> None:
        """Run one engine on every split; `limit` rows of each, and `file` for how its outputs are read."""
        settings = decoding_of(file.parent)
        for index, rows in enumerate(self.splits):
            begin = time.perf_counter()
            joined, positions = evaluate(runner, rows, max_rows=limit)
            self._keep(index, name, joined, positions, settings)
            done = len(positions)
            seconds = time.perf_counter() - begin
            self.say(f"{name}: {done} rows of {rows.task} {rows.split} in {seconds:.1f} s")
            if done < rows.n_rows:
                self.notes.append(f"{name} ran {done} of {rows.n_rows} rows of {rows.split}")

    def _accuracy(self) -> list[Accuracy]:
        found = []
        for rows, results in zip(self.splits, self.found, strict=True):
            for name, result in results.items():
                if len(result.positions) == rows.n_rows:
                    values = metric_values(rows, result.decoded)
                    found.append(Accuracy(name, rows.split, rows.n_items, values))
        return found

    def _drops(self) -> list[Drop]:
        found = []
        for rows, results in zip(self.splits, self.found, strict=True):
            pairs = self._pairs(results)
            references = [against for ours, against in pairs if ours == self.main]
            pairs += [(mode, against) for mode in self.timed[1:] for against in references]
            for ours, against in pairs:
                a, b = results[against], results[ours]
                if len(a.positions) != rows.n_rows or len(b.positions) != rows.n_rows:
                    continue
                found.append(self._drop(rows, ours, against, a.decoded, b.decoded))
        return found

    def _drop(self, rows: EvalRows, ours: str, against: str, a: Any, b: Any) -> Drop:
        """Loss of `ours` (decoded to b) against a reference (decoded to a).

        Accuracy has the score interval, which keeps its level when few rows differ; other metrics have the
        interval of the function that came with the rows.
        """
        metric = rows.main_metric
        if metric == "accuracy" and rows.kind == "classification":
            first, second = a.argmax(-1) == rows.labels, b.argmax(-1) == rows.labels
            worse, better = int((first & ~second).sum()), int((second & ~first).sum())
            shares = score_interval(worse, better, rows.n_rows)
            drop, low, high, method = shares.drop, shares.low, shares.high, "score interval (Tango 1998)"
        else:
            found = rows.paired_drop(metric, a, b, rows.labels)
            drop, low, high, method = found.drop, found.low, found.high, rows.drop_method
        points, low, high = (100.0 * float(value) for value in (drop, low, high))
        return Drop(ours, against, rows.split, metric, rows.n_items, points, low, high, method)

    def _pairs(self, results: Mapping[str, Any]) -> list[tuple[str, str]]:
        """(engine, reference) pairs worth a comparison, the main engine's first."""
        pairs = [(self.main, name) for name in ("student", "teacher", "fp32") if name in results]
        pairs += [(self.main, name) for name in self.references[0] if name not in ("student", "teacher")]
        for ours, names in (("int8", ("fp32", "teacher")), ("fp32", ("teacher",))):
            pairs += [(ours, name) for name in names if ours in results and name in results]
        return pairs

    def _parity(self) -> list[Parity]:
        found = []
        for rows, results in zip(self.splits, self.found, strict=True):
            pairs = self._pairs(results)
            every = [mode for mode in self.targets.asked_modes if mode in results]
            pairs += [(mode, "stock") for mode in every if mode != "stock" and "stock" in results]
            others = [mode for mode in every if mode != self.main]
            for pair in [(mode, name) for mode in others for name in (self.main, "student")]:
                if pair[1] in results and pair not in pairs and pair[::-1] not in pairs:
                    pairs.append(pair)
            pairs.sort(key=lambda pair: pair[0] != self.main)
            for ours, against in pairs:
                mine, theirs = results[ours], results[against]
                if not rows.reader.comparable(mine.joined, theirs.joined):
                    self.say(f"{ours} and {against} have vectors of two widths: compared by metrics only")
                elif len(theirs.positions) == rows.n_rows:
                    found.append(compare_engines(rows, ours, mine, against, theirs))
        return found

    def _invariance(self) -> Invariance | None:
        with self.targets.guard(self.main):
            return measure_invariance(self.main, self.runner, self.splits[0], self.found[0][self.main])
        return None

    def _layers(self, layers: LayerReference | None) -> LayerTrace | None:
        if layers is None:
            return None
        self.say("comparing every LayerNorm with PyTorch")
        return compare_layers(
            self.config.model, layers.batch, layers.outputs, tolerance=self.config.layer_tolerance,
            threads=self.config.threads[0], isa=self.engines[0].isa,
        )  # fmt: skip

    def _gates(self, drops: list[Drop], parity: list[Parity], latency: list[LatencyCell]) -> list[Gate]:
        config, gates = self.config, []
        for rows in self.splits:
            if config.max_drop is not None:
                drop = _first(drops, self.main, rows.split, ("teacher", "fp32"))
                gates.append(
                    drop_gate(
                        config.max_drop, _Fractions(drop) if drop else None, metric=rows.main_metric,
                        against=drop.against if drop else "", split=rows.split, rows=rows.n_items,
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


def _status(gates: Sequence[Gate], *, lost: bool) -> str:
    states = {gate.status for gate in gates}
    if states & {"failed", "missing"}:
        return "failed"
    if lost:
        return "incomplete"
    if not gates:
        return "measured"
    return "undecided" if "undecided" in states else "passed"
