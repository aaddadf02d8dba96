"""The report as tables in a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from qexport.serving.report import Report

__all__ = ["megabytes", "print_report", "summary_table"]

_MARKS = {"passed": "green", "failed": "red", "undecided": "yellow", "missing": "red", "measured": "cyan"}


def megabytes(n_bytes: int | None) -> str:
    """Bytes as MB of 1,000,000 bytes with three significant digits; a dash for None."""
    if n_bytes is None:
        return "-"
    value = n_bytes / 1e6
    return f"{value:.3f}" if value < 1 else f"{value:.2f}" if value < 10 else f"{value:.1f}"


def summary_table(report: Report) -> Table:
    """One row per engine: size, main metric, loss, latency, load time and memory."""
    latency = report.latency_at()
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("engine")
    table.add_column("file MB", justify="right")
    table.add_column(f"{report.data[0].main_metric} % (95 % interval)", justify="right")
    table.add_column("drop, points", justify="right")
    table.add_column(f"p50 / p90 ms{latency.title}", justify="right")
    table.add_column("load ms", justify="right")
    table.add_column("peak MB", justify="right")
    for row in report.summary():
        metric = "-" if row.value is None else f"{row.value:.2f} [{row.low:.2f}, {row.high:.2f}]"
        drop = (
            "-" if row.drop is None else f"{row.drop.points:+.2f} [{row.drop.low:+.2f}, {row.drop.high:+.2f}]"
        )
        times = "-" if row.cell is None else f"{row.cell.p50_ms:.2f} / {row.cell.p90_ms:.2f}"
        process = row.process
        table.add_row(
            row.engine.label,
            megabytes(row.engine.file_bytes),
            metric,
            drop,
            times,
            "-" if process is None else f"{process.load_ms:.0f}",
            "-" if process is None else megabytes(process.peak_bytes),
            style="bold" if row.engine.name == report.main_engine else None,
        )
    return table


def _parity_table(report: Report) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False, title_justify="left")
    table.add_column("compared")
    for name in ("rows", "agreement %", "largest diff", "mean diff", "first row that differs"):
        table.add_column(name, justify="right")
    for item in report.parity:
        first = str(item.first_disagreements[0].row) if item.first_disagreements else "none"
        table.add_row(
            f"{item.engine} vs {item.against}" + (f" ({item.split})" if len(report.data) > 1 else ""),
            str(item.rows),
            f"{100 * item.agreement:.2f}",
            "0 (bit-identical)" if item.bit_identical else f"{item.max_abs:.2e}",
            f"{item.mean_abs:.2e}",
            first,
        )
    return table


def print_report(report: Report, console: Console | None = None) -> None:
    """Print verdict, gates and tables.

    Args:
        report: what was found.
        console: where to; None prints to stdout and honours NO_COLOR and pipes.
    """
    out = console or Console()
    colour = _MARKS[report.status]
    out.print(f"[bold {colour}]{report.status.upper()}[/]  {report.headline}", highlight=False)
    for gate in report.gates:
        mark = _MARKS[gate.status]
        out.print(
            f"  [{mark}]{gate.status:<9}[/] --{gate.name} {gate.limit:g}: {gate.detail}", highlight=False
        )
    out.print()
    out.print(summary_table(report))
    out.print()
    out.print(_parity_table(report))
    if report.layers is not None:
        trace = report.layers
        worst = max(trace.layers, key=lambda layer: layer.max_abs)
        text = (
            f"first layer that parts: {trace.first} (tolerance {trace.tolerance:g})"
            if trace.first
            else f"all {len(trace.layers)} LayerNorms within {trace.tolerance:g} of PyTorch; "
            f"largest {worst.max_abs:.1e} at {worst.module}"
        )
        out.print(f"\n{text}", highlight=False)
    for note in report.notes:
        out.print(f"note: {note}", style="dim", highlight=False)
