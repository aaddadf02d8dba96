"""What `verify` found: one record, as JSON (versioned schema), as a terminal table and as a page."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from qexport.atomic import atomic_write_text
from qexport.errors import GateFailed
from qexport.serving.evaluate import MetricValue
from qexport.serving.gates import Gate
from qexport.serving.latency import LatencyCell
from qexport.serving.machine import Environment
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
]

SCHEMA_VERSION = "1.0"
"""Of report.json. The first number changes when a field is renamed, removed or changes its meaning."""


@dataclass(frozen=True, slots=True)
class Engine:
    """One thing that gave logits or times."""

    name: str
    """Key used everywhere in the report: "stock", "stock-unoptimized", "fp32", "int8", "student", "teacher"."""
    label: str
    """For people: "ternarybert 2-2-8"."""
    description: str
    """What ran where, in one line."""
    file_bytes: int | None = None
    """Bytes on disk with external data; None for a PyTorch engine."""


@dataclass(frozen=True, slots=True)
class Model:
    """The file under test."""

    path: str
    """As the user wrote it."""
    file: str
    """Name of the ONNX file."""
    file_bytes: int
    sha256: str
    method: str | None
    """From qexport.json; None for a folder that qexport did not write."""
    bits: str | None
    opset: int | None
    producer: str
    functions: int
    """Model-local functions in the file."""
    tensors: list[dict[str, Any]] = field(default_factory=list)
    """What the bytes are: kind, storage, n_bytes, bits_per_element, share; empty when not inspected."""


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows that were used."""

    task: str
    split: str
    kind: str
    rows: int
    main_metric: str
    source: str
    fingerprint: str


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Metrics of one engine on one split, the main metric first."""

    engine: str
    split: str
    rows: int
    metrics: list[MetricValue]


@dataclass(frozen=True, slots=True)
class Drop:
    """Loss of the main metric against a reference, paired on the same rows; points."""

    engine: str
    against: str
    split: str
    metric: str
    rows: int
    points: float
    """100 * (reference - ours); above 0 means that ours is worse."""
    low: float
    """Lower end of the 95 % interval."""
    high: float
    method: str
    """Of the interval."""


@dataclass(frozen=True, slots=True)
class Invariance:
    """The same rows alone and inside padded batches."""

    engine: str
    rows: int
    max_abs: float
    """Largest difference of a logit."""
    identical: bool
    """Every logit is the same float32 number."""


@dataclass(frozen=True, slots=True)
class Process:
    """A process of its own that only loads and runs one file; medians over `repeats` processes."""

    engine: str
    repeats: int
    load_ms: float
    first_run_ms: float
    peak_bytes: int | None
    model_bytes: int | None
    """Peak minus what the interpreter, numpy and onnxruntime take before loading."""
    samples: list[Probe]


@dataclass(frozen=True, slots=True)
class SummaryRow:
    """One engine in the summary; percent and points."""

    engine: Engine
    value: float | None
    """Main metric, percent."""
    low: float | None
    high: float | None
    drop: Drop | None
    """Against the teacher, else the FP32 export."""
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
    created: str
    """UTC, ISO 8601."""
    command: str
    """Command line that repeats it."""
    config: dict[str, Any]
    """The VerifyConfig, as JSON."""
    status: str
    """"passed", "failed", "undecided" (gates), or "measured" when no gate was asked for."""
    headline: str
    """One sentence for people."""
    model: Model
    main_engine: str
    data: list[Rows]
    engines: list[Engine]
    accuracy: list[Accuracy]
    drops: list[Drop]
    parity: list[Parity]
    invariance: Invariance | None
    layers: LayerTrace | None
    latency: list[LatencyCell]
    processes: list[Process]
    gates: list[Gate]
    environment: Environment
    notes: list[str]
    """What a reader must know: rows left out, baselines that could not be made, a busy machine."""
    seconds: float
    """Wall time of the verification."""

    @property
    def failed_gates(self) -> list[Gate]:
        """Gates that did not pass: failed, undecided or missing."""
        return [gate for gate in self.gates if not gate.passed]

    def raise_for_gates(self) -> None:
        """Do nothing when every gate passed.

        Raises:
            GateFailed: exit code 3; the sentence names each gate that did not pass.
        """
        failed = self.failed_gates
        if failed:
            raise GateFailed(
                "; ".join(f"--{gate.name} {gate.limit:g} {gate.status}: {gate.detail}" for gate in failed)
            )

    def engine(self, name: str) -> Engine:
        """The engine called `name`."""
        return next(engine for engine in self.engines if engine.name == name)

    def summary(self) -> list[SummaryRow]:
        """One row per engine on the first split, for the tables of terminal and page."""
        split, title = self.data[0].split, self.latency_at()
        found = []
        for engine in self.engines:
            accuracy = next(
                (item for item in self.accuracy if (item.engine, item.split) == (engine.name, split)), None
            )
            best = accuracy.metrics[0] if accuracy else None
            drop = next(
                (
                    item
                    for name in ("teacher", "fp32")
                    for item in self.drops
                    if (item.engine, item.against, item.split) == (engine.name, name, split)
                ),
                None,
            )
            cell = next(
                (
                    item
                    for item in self.latency
                    if (item.engine, item.length, item.threads) == (engine.name, title.length, title.threads)
                ),
                None,
            )
            process = next((item for item in self.processes if item.engine == engine.name), None)
            if best is None and cell is None and process is None:
                continue
            value, low, high = (best.value, best.low, best.high) if best else (None, None, None)
            percent = [None if number is None else 100 * number for number in (value, low, high)]
            found.append(SummaryRow(engine, percent[0], percent[1], percent[2], drop, cell, process))
        return found

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
