"""Target by check: what each target gave for the same file and the same rows, one column each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from qexport.serving.targets.protocol import Measure

if TYPE_CHECKING:
    from qexport.serving.report import Report

__all__ = ["Column", "TargetResult", "checks", "columns"]

TargetStatus = Literal["ran", "failed", "missing"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetResult:
    """One target of the list and what became of it."""

    target: str
    """Name as asked for."""
    status: TargetStatus
    """ran; failed: it could not run, or stopped; missing: the same, but it was not asked for by name."""
    modes: list[str]
    """Names of its engines; [] when it did not start."""
    reason: str | None = None
    """One sentence: why it did not run to the end."""
    fix: str | None = None
    """Command that installs what is missing."""
    exit_code: int = 0
    """What a failure of it ends in; 0 for none."""
    clock: str = "none"
    """Whose clock timed it: "host" (this process), "own", or "none"."""
    machine: dict[str, str] = field(default_factory=dict)
    """What the target says of its machine; {} for this process."""
    versions: dict[str, str] = field(default_factory=dict)
    """Runtime or tool -> version."""
    measures: list[Measure] = field(default_factory=list)
    """Further numbers with their own units."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One engine of one target in the matrix."""

    engine: str
    """Name of the engine; the target's when it did not start."""
    target: str
    """Name of the target."""
    status: TargetStatus
    """Of the target."""
    rows: int
    """Rows of the first split that ran; 0 for none."""
    rows_of: int
    """Rows of the split."""
    value: float | None
    """Main metric, as a fraction; None unless every row ran."""
    against: str | None
    """The engine that it is compared with; None for that engine itself."""
    same: int | None
    """Rows with the same prediction as `against`."""
    max_abs: float | None
    """Largest difference of a logit to `against`."""
    bit_identical: bool | None
    """Every logit is the same float32 number as in `against`."""
    latency_ms: float | None
    """Median at the length that summaries show, by the clock of `clock`."""
    threads: int | None
    """Threads of that latency."""
    clock: str
    """Whose clock it is: "host" or the target's name."""
    versions: dict[str, str]
    """Runtime or tool -> version."""


def columns(report: Report) -> list[Column]:
    """The matrix of a report: the engine that the others are compared with first, targets in order."""
    split, n_rows = report.data[0].split, report.data[0].rows
    compared = {
        item.engine: item for item in report.parity if item.split == split and _is_base(report, item.against)
    }
    accuracy = {item.engine: item for item in report.accuracy if item.split == split}
    found = []
    for target in report.targets:
        for engine in target.modes or [target.target]:
            parity, metric = compared.get(engine), accuracy.get(engine)
            base = engine == report.base_engine
            cell = report.summary_cell(engine)
            rows = metric.rows if metric else parity.rows if parity else 0
            found.append(
                Column(
                    engine=engine, target=target.target, status=target.status, rows=rows, rows_of=n_rows,
                    value=metric.metrics[0].value if metric else None,
                    against=parity.against if parity and not base else None,
                    same=parity.rows - parity.disagreements if parity and not base else None,
                    max_abs=parity.max_abs if parity and not base else None,
                    bit_identical=parity.bit_identical if parity and not base else None,
                    latency_ms=cell.p50_ms if cell else None, threads=cell.threads if cell else None,
                    clock=cell.clock if cell else "none", versions=target.versions,
                )
            )  # fmt: skip
    home = next((one.target for one in found if one.engine == report.base_engine), "")
    return sorted(found, key=lambda column: (column.target != home, column.engine != report.base_engine))


def _is_base(report: Report, name: str) -> bool:
    return name == report.base_engine


def _exactness(column: Column) -> str:
    if column.bit_identical is None:
        return "reference" if column.rows else "–"
    if column.bit_identical:
        return "bit-identical"
    other = column.rows - (column.same or 0)
    if not other:
        return "same predictions"
    return "1 row differs" if other == 1 else f"{other} rows differ"


def _versions(column: Column) -> str:
    return ", ".join(f"{name} {version}" for name, version in column.versions.items()) or "–"


def checks(report: Report, table: Sequence[Column]) -> Mapping[str, list[str]]:
    """The matrix for people: check -> one text per column."""
    rows: dict[str, list[str]] = {
        "rows run": [f"{column.rows} of {column.rows_of}" for column in table],
        report.data[0].main_metric: ["–" if c.value is None else f"{100 * c.value:.2f} %" for c in table],
        f"same prediction as {report.base_engine}": [
            "–" if c.same is None else f"{c.same} of {c.rows}" for c in table
        ],
        "largest logit difference": ["–" if c.max_abs is None else f"{c.max_abs:.1e}" if c.max_abs else "0"
                                     for c in table],
        "exactness": [_exactness(column) for column in table],
    }  # fmt: skip
    if report.latency:
        title = f"median ms{report.latency_at().title}"
        rows[title] = ["–" if c.latency_ms is None else f"{c.latency_ms:.2f}" for c in table]
        rows["threads, clock"] = ["–" if c.threads is None else f"{c.threads}, {c.clock}" for c in table]
    rows["versions"] = [_versions(column) for column in table]
    return rows
