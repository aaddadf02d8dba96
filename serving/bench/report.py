"""What `qexport bench` found: one record, as JSON, as tables in a terminal and as a page."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from qexport.atomic import atomic_write_text
from qexport.serving.bench.profile import Profile
from qexport.serving.bench.roofline import Roofline
from qexport.serving.latency import Ratio
from qexport.serving.machine import Environment
from qexport.serving.report import Model

__all__ = [
    "SCHEMA_VERSION",
    "BenchEngine",
    "BenchReport",
    "Cell",
    "MatmulCell",
    "Opening",
    "bench_schema",
]

SCHEMA_VERSION = "1.0"
"""Of bench.json. The first number changes when a field is renamed, removed or changes its meaning."""


@dataclass(frozen=True, slots=True)
class BenchEngine:
    """One engine that was timed."""

    name: str
    """Key used everywhere in the report: "native", "native-avx2", "stock", "fp32", "int8", "openvino", ..."""
    label: str
    """For people: "ORT int8"."""
    description: str
    """How its file was made."""
    ours: bool
    """Whether it runs the file under test."""
    file_bytes: int
    """Bytes on disk."""
    environment: dict[str, str]
    """Environment variables of its process: ONEDNN_MAX_CPU_ISA."""


@dataclass(frozen=True, slots=True)
class Opening:
    """What an engine costs its process, once it is open."""

    engine: str
    """Name of the engine."""
    threads: int
    """Threads inside one operator."""
    cpus: list[int] | None
    """Processors that the process was kept on; null where it was not pinned."""
    settings: dict[str, str]
    """What the runtime says: instruction set and version of our kernels, OpenVINO's properties."""
    load_ms: float
    """Milliseconds to open the file."""
    first_run_ms: float
    """First run, batch 1."""
    length: int
    """Tokens of the runs before the memory was read."""
    empty_bytes: int | None
    """Resident bytes of the process with only a model of one node open."""
    session_bytes: int | None
    """Resident bytes that the open file adds to that, after three runs."""
    peak_bytes: int | None
    """Peak resident bytes of the process until then."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One engine at one length, batch size and thread count; milliseconds for a whole batch."""

    engine: str
    """Name of the engine."""
    length: int
    """Tokens per text."""
    batch_size: int
    """Texts per run."""
    threads: int
    """Threads inside one operator."""
    rounds: int
    """Turns that count."""
    repeats: int
    """Runs in a turn, of which the median is the turn's time."""
    p10_ms: float
    """10th percentile of the rounds."""
    p25_ms: float
    """Lower quartile."""
    p50_ms: float
    """Median."""
    p75_ms: float
    """Upper quartile."""
    p90_ms: float
    """90th percentile."""
    min_ms: float
    """Fastest round."""
    times_ms: list[float]
    """Every round; the same index of every engine comes from the same round."""
    ratios: list[Ratio]
    """Of an engine that runs the file under test: every other engine divided by it; else empty."""


@dataclass(frozen=True, slots=True)
class MatmulCell:
    """One engine and one matrix product."""

    engine: str
    """Name of the engine."""
    shape: str
    """Tokens x inputs x outputs."""
    bits: int
    """Bits of the weights; 32 for FP32."""
    threads: int
    """Threads inside one operator."""
    rounds: int
    """Turns that count."""
    repeats: int
    """Runs in a turn."""
    p10_ms: float
    """10th percentile of the rounds, calls included."""
    p50_ms: float
    """Median of the rounds, calls included."""
    p90_ms: float
    """90th percentile of the rounds, calls included."""
    call_ms: float
    """Median of running a model with nothing to do: the part of p50_ms that is not the product."""
    macs: int
    """Multiply-accumulates."""
    n_bytes: int
    """Bytes of activations, packed weight and output."""
    peak_share: float | None
    """Multiply-accumulates a second, without the call, over the peak of the engine's instruction set."""
    copy_share: float | None
    """Bytes a second, without the call, over those of a copy; above 1 where the caches deliver."""
    ratios: list[Ratio]
    """Of an engine that runs our operator: every other engine divided by it; else empty."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchReport:
    """Everything that one benchmark found."""

    schema_version: str = SCHEMA_VERSION
    """Its first number changes when a field is renamed, removed or changes its meaning."""
    created: str
    """UTC, ISO 8601."""
    command: str
    """Command line that repeats it."""
    commit: str | None
    """Commit of the checkout that qexport was imported from, "+changes" behind it when files differ."""
    config: dict[str, Any]
    """The BenchConfig, as JSON."""
    complete: bool
    """False when it was interrupted or an engine failed: then it holds the cells that were finished."""
    model: Model
    """The file under test."""
    main_engine: str
    """The first engine; plots and tables show ratios to it."""
    engines: list[BenchEngine]
    """Everything that was timed, the main engine first."""
    openings: list[Opening]
    """Load time and memory of every engine at every thread count."""
    cells: list[Cell]
    """Times by engine, length, batch size and threads."""
    rooflines: dict[str, Roofline]
    """Engine -> what the core can do with its instruction set; empty without the kernel library."""
    profiles: list[Profile]
    """Where the time goes; empty unless asked for."""
    matmuls: list[MatmulCell]
    """Single products; empty unless asked for."""
    environment: Environment
    """The machine and the versions."""
    load_after: float | None
    """Runnable processes over the last minute when measuring ended."""
    notes: list[str]
    """What a reader must know: cells left out, a busy machine, where the FP32 weights came from."""
    seconds: float
    """Wall time."""

    def engine(self, name: str) -> BenchEngine:
        """The engine called `name`."""
        return next(engine for engine in self.engines if engine.name == name)

    def cell(self, engine: str, *, length: int, batch_size: int, threads: int) -> Cell | None:
        """The cell of one engine; None when it was not measured."""
        wanted = (engine, length, batch_size, threads)
        return next((c for c in self.cells if (c.engine, c.length, c.batch_size, c.threads) == wanted), None)

    def groups(self) -> list[tuple[int, int]]:
        """(threads, batch size) of the cells, in the order measured."""
        return list(dict.fromkeys((cell.threads, cell.batch_size) for cell in self.cells))

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return dataclasses.asdict(self)

    def write(self, folder: Path) -> None:
        """Write bench.json and bench.html into `folder`.

        Raises:
            DiskFullError, UsageError: the folder cannot be written.
        """
        from qexport.serving.bench.page import render_page

        atomic_write_text(folder / "bench.json", json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n")
        atomic_write_text(folder / "bench.html", render_page(self))


def bench_schema() -> dict[str, Any]:
    """The JSON schema of bench.json, as shipped."""
    text = resources.files("qexport.serving.bench").joinpath("bench.schema.json").read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(text)
    return found
