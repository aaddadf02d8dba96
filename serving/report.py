"""What `verify` found: one record, as JSON (versioned schema), as a terminal table and as a page."""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from qexport.atomic import atomic_write_text
from qexport.errors import EnvironmentProblem, GateFailed, Interrupted, UnsupportedModelError
from qexport.serving.evaluate import MetricValue
from qexport.serving.gates import Gate
from qexport.serving.latency import LatencyCell, Ratio
from qexport.serving.machine import Environment
from qexport.serving.matrix import Column, TargetResult
from qexport.serving.mobile import MobileCheck
from qexport.serving.parity import LayerTrace, Parity
from qexport.serving.probe import Probe

__all__ = [
    "SCHEMA_VERSION",
    "Accuracy",
    "Drop",
    "Engine",
    "Invariance",
    "Model",
    "Process",
    "Report",
    "Rows",
    "json_schema",
    "process_of",
]

SCHEMA_VERSION = "1.2"
"""Of report.json. The first number changes when a field is renamed, removed or changes its meaning."""


@dataclass(frozen=True, slots=True)
class Engine:
    """One thing that gave logits or times."""

    name: str
    """Key used everywhere in the report: "native", "stock", "reference", "fp32", "int8", "student", ..."""
    label: str
    """For people: "ternarybert 2-2-8"."""
    description: str
    """What ran where, in one line."""
    file_bytes: int | None = None
    """Bytes on disk with external data; None for a PyTorch engine."""
    isa: str | None = None
    """Instruction set that the kernel library runs: "avx2"; None for an engine without the library."""
    library: str | None = None
    """Version of the kernel library; None for an engine without it."""

    @property
    def short_label(self) -> str:
        """The label without the model's name, where several engines run the model: "native avx2"."""
        return self.label.rpartition(", ")[2]

    @property
    def model_label(self) -> str:
        """The label without the engine's name: "ternarybert 2-2-8"."""
        return self.label.rpartition(", ")[0] or self.label


@dataclass(frozen=True, slots=True)
class Model:
    """The file under test."""

    path: str
    """As the user wrote it."""
    file: str
    """Name of the ONNX file."""
    file_bytes: int
    """Bytes on disk, external data included."""
    sha256: str
    """Of the ONNX file, hexadecimal."""
    method: str | None
    """From qexport.json; None for a folder that qexport did not write."""
    bits: str | None
    """W-E-A: bits of weights, word embedding and activations, such as 2-2-8."""
    opset: int | None
    """Version of ai.onnx that the graph imports."""
    producer: str
    """Tool and version that wrote the file."""
    functions: int
    """Model-local functions in the file."""
    tensors: list[dict[str, Any]] = field(default_factory=list)
    """What the bytes are: kind, storage, n_bytes, bits_per_element, share; empty when not inspected."""


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows that were used."""

    task: str
    """Name of the task."""
    split: str
    """Name of the split."""
    kind: str
    """What the task asks for: "classification", "regression", "span" (question answering), "tokens" or
    "embedding"."""
    rows: int
    """Number of rows; of question answering the questions."""
    main_metric: str
    """The metric that gates judge."""
    source: str
    """Where the rows came from."""
    fingerprint: str
    """sha256 of what was read."""
    item: str = "row"
    """What is counted as a row everywhere in the report: "row", "question", "word" or "sentence"."""


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Metrics of one engine on one split."""

    engine: str
    """Name of the engine."""
    split: str
    """Name of the split."""
    rows: int
    """Rows of the split, all of them."""
    metrics: list[MetricValue]
    """Every metric of the task, the main one first."""


@dataclass(frozen=True, slots=True)
class Drop:
    """Loss of the main metric against a reference, paired on the same rows; points."""

    engine: str
    """Name of the engine that is judged."""
    against: str
    """Name of the reference."""
    split: str
    """Name of the split."""
    metric: str
    """The main metric of the task."""
    rows: int
    """Rows that both ran."""
    points: float
    """100 * (reference - ours); above 0 means that ours is worse."""
    low: float
    """Lower end of the 95 % interval."""
    high: float
    """Upper end of the 95 % interval."""
    method: str
    """How the interval was found: "score interval (Tango 1998)" or "paired bootstrap", for words over
    sentences, for embeddings over pairs."""


@dataclass(frozen=True, slots=True)
class Invariance:
    """The same rows alone and inside padded batches."""

    engine: str
    """Name of the engine."""
    rows: int
    """Rows run both ways."""
    max_abs: float
    """Largest difference of a logit."""
    identical: bool
    """Every logit is the same float32 number."""


@dataclass(frozen=True, slots=True)
class Process:
    """A process of its own that only loads and runs one file; medians over `repeats` processes."""

    engine: str
    """Name of the engine."""
    repeats: int
    """Processes started, one after the other."""
    load_ms: float
    """Opening the file on ONNX Runtime: parse, optimise, fold."""
    load_cpu_ms: float
    """Processor time of the same: what a busy machine does not change."""
    first_run_ms: float
    """First run after loading, batch 1."""
    peak_bytes: int | None
    """Peak resident memory of the process."""
    model_bytes: int | None
    """Peak minus what the interpreter, numpy and onnxruntime take before loading."""
    samples: list[Probe]
    """What each process measured."""


def process_of(engine: str, samples: list[Probe]) -> Process:
    """Medians over the processes that ran one file; at least one sample."""

    def median(values: list[float]) -> float:
        return float(statistics.median(values))

    peaks = [sample.peak_bytes for sample in samples if sample.peak_bytes is not None]
    added = [sample.model_bytes for sample in samples if sample.model_bytes is not None]
    return Process(
        engine=engine,
        repeats=len(samples),
        load_ms=median([sample.load_ms for sample in samples]),
        load_cpu_ms=median([sample.load_cpu_ms for sample in samples]),
        first_run_ms=median([sample.first_run_ms for sample in samples]),
        peak_bytes=int(statistics.median(peaks)) if peaks else None,
        model_bytes=int(statistics.median(added)) if added else None,
        samples=samples,
    )


@dataclass(frozen=True, slots=True)
class SummaryRow:
    """One engine in the summary; percent and points."""

    engine: Engine
    value: float | None
    """Main metric, percent."""
    low: float | None
    high: float | None
    drop: Drop | None
    """Against `Report.drop_reference`."""
    cell: LatencyCell | None
    process: Process | None


@dataclass(frozen=True, slots=True)
class LatencyTitle:
    """Which latency a summary shows."""

    length: int
    threads: int
    title: str
    """" (128 tokens)", or "" when no latency was measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Everything that one verification found."""

    schema_version: str = SCHEMA_VERSION
    """Its first number changes when a field is renamed, removed or changes its meaning."""
    created: str
    """UTC, ISO 8601."""
    command: str
    """Command line that repeats it."""
    config: dict[str, Any]
    """The VerifyConfig, as JSON."""
    status: str
    """"passed", "failed", "undecided" (gates), or "measured" when no gate was asked for; "incomplete" when no
    gate failed, but a target that was asked for did not run to the end; "interrupted" after Ctrl-C."""
    headline: str
    """One sentence for people."""
    model: Model
    """The file under test."""
    main_engine: str
    """Name of the engine that runs the file under test and that gates judge."""
    targets: list[TargetResult]
    """The targets of the list, and what became of each."""
    matrix: list[Column] = field(default_factory=list)
    """Target by check on the first split: one column per engine of a target, the one that the others are
    compared with first (stock, else the main engine)."""
    data: list[Rows]
    """Splits, the first of which the summaries show."""
    engines: list[Engine]
    """Everything that gave logits or times, the main engine first."""
    accuracy: list[Accuracy]
    """Metrics of every engine that ran all rows."""
    drops: list[Drop]
    """Losses of the main metric against references."""
    parity: list[Parity]
    """Logits of two engines on the same rows, the main engine's comparisons first."""
    invariance: Invariance | None
    """Whether a row's logits depend on its neighbours and padding."""
    layers: LayerTrace | None
    """ONNX against PyTorch, LayerNorm by LayerNorm; null unless asked for."""
    latency: list[LatencyCell]
    """Times by engine, length and thread count; empty when not asked for."""
    processes: list[Process]
    """Load time and memory; empty when not asked for."""
    mobile: MobileCheck | None = None
    """What ONNX Runtime's mobile tools say; null unless asked for."""
    gates: list[Gate]
    """The bounds asked for and what became of each."""
    environment: Environment
    """The machine and the versions."""
    notes: list[str]
    """What a reader must know: rows left out, baselines that could not be made, a busy machine."""
    seconds: float
    """Wall time of the verification."""

    @property
    def failed_gates(self) -> list[Gate]:
        """Gates that did not pass: failed, undecided or missing."""
        return [gate for gate in self.gates if not gate.passed]

    def raise_for_gates(self) -> None:
        """Do nothing when every gate passed and every target that was asked for ran.

        Raises:
            GateFailed: exit code 3; the sentence names each gate that did not pass.
            EnvironmentProblem, UnsupportedModelError: a target did not run to the end; the sentence says why.
            Interrupted: Ctrl-C came before the end; exit code 130.
        """
        if self.status == "interrupted":
            again = f"; run again: {self.command}" if self.command else ""
            raise Interrupted(f"interrupted; the report holds what was finished before{again}")
        failed = self.failed_gates
        if failed:
            raise GateFailed(
                "; ".join(f"--{gate.name} {gate.limit:g} {gate.status}: {gate.detail}" for gate in failed)
            )
        lost = [target for target in self.targets if target.status == "failed"]
        if lost:
            kind = UnsupportedModelError if lost[0].exit_code == 5 else EnvironmentProblem
            raise kind("; ".join(f"target {target.target}: {target.reason}" for target in lost))

    @property
    def base_engine(self) -> str:
        """The engine that the matrix compares every target with: stock, else the main engine."""
        ran = {item.engine for item in self.accuracy}
        return "stock" if "stock" in ran else self.main_engine

    def summary_cell(self, engine: str) -> LatencyCell | None:
        """The latency of `engine` that summaries show: their length, their thread count where it has that."""
        title = self.latency_at()
        cells = [item for item in self.latency if (item.engine, item.length) == (engine, title.length)]
        return next((item for item in cells if item.threads == title.threads), cells[0] if cells else None)

    def engine(self, name: str) -> Engine:
        """The engine called `name`."""
        return next(engine for engine in self.engines if engine.name == name)

    def ratio_to_ours(self, cell: LatencyCell) -> Ratio | None:
        """The time of `cell` over that of the first engine of its clock, within each round."""
        alike = [c for c in self.latency if c.ratios and (c.clock, c.length) == (cell.clock, cell.length)]
        ours = next((c for c in alike if c.threads == cell.threads), alike[0] if alike else None)
        return next((r for r in ours.ratios if r.against == cell.engine), None) if ours else None

    def summary(self) -> list[SummaryRow]:
        """One row per engine on the first split, for the tables of terminal and page.

        Times are those of the main engine's clock only; the matrix of targets has the others.
        """
        split = self.data[0].split
        main = self.summary_cell(self.main_engine)
        clock = main.clock if main else "host"
        found = []
        for engine in self.engines:
            accuracy = next(
                (item for item in self.accuracy if (item.engine, item.split) == (engine.name, split)), None
            )
            best = accuracy.metrics[0] if accuracy else None
            drop = next(
                (
                    item
                    for item in self.drops
                    if (item.engine, item.against, item.split) == (engine.name, self.drop_reference, split)
                ),
                None,
            )
            cell = self.summary_cell(engine.name)
            cell = cell if cell is not None and cell.clock == clock else None
            process = next((item for item in self.processes if item.engine == engine.name), None)
            if best is None and cell is None and process is None:
                continue
            value, low, high = (best.value, best.low, best.high) if best else (None, None, None)
            percent = [None if number is None else 100 * number for number in (value, low, high)]
            found.append(SummaryRow(engine, percent[0], percent[1], percent[2], drop, cell, process))
        return found

    @property
    def drop_reference(self) -> str | None:
        """The engine that losses are counted from: the teacher, else the FP32 export, else None."""
        measured = {drop.against for drop in self.drops if drop.engine == self.main_engine}
        return next((name for name in ("teacher", "fp32") if name in measured), None)

    def latency_at(self) -> LatencyTitle:
        """The length and thread count that summaries show: the longest length, the first thread count."""
        if not self.latency:
            return LatencyTitle(0, 0, "")
        length, threads = max(cell.length for cell in self.latency), self.latency[0].threads
        return LatencyTitle(length, threads, f" ({length} tokens)")

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; numbers that are not finite become None."""
        plain = _finite(dataclasses.asdict(self))
        assert isinstance(plain, dict)
        return plain

    def to_json(self) -> str:
        """report.json; valid against `json_schema()`."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    def to_html(self) -> str:
        """One self-contained page: no script, no external request."""
        from qexport.serving.page import render_page

        return render_page(self)

    def print(self, console: Any = None) -> None:
        """Print the terminal tables to a `rich.console.Console`; None makes one for stdout."""
        from qexport.serving.terminal import print_report

        print_report(self, console)

    def write(self, folder: Path) -> list[Path]:
        """Write report.json and report.html into `folder`, each atomically.

        Returns:
            the two paths.
        Raises:
            DiskFullError: no space left; older files are untouched.
        """
        paths = [folder / "report.json", folder / "report.html"]
        for path, text in zip(paths, (self.to_json(), self.to_html()), strict=True):
            atomic_write_text(path, text)
        return paths


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def json_schema() -> dict[str, Any]:
    """The JSON schema (draft 2020-12) of report.json, from the package."""
    text = resources.files("qexport.serving").joinpath("report.schema.json").read_text(encoding="utf-8")
    schema = json.loads(text)
    assert isinstance(schema, dict)
    return schema
