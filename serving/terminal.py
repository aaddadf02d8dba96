"""The report as tables in a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from qexport.serving.matrix import checks

if TYPE_CHECKING:
    from qexport.serving.report import Report

__all__ = ["megabytes", "print_report", "summary_table"]

_MARKS = {
    "passed": "green",
    "failed": "red",
    "undecided": "yellow",
    "incomplete": "yellow",
    "interrupted": "yellow",
    "missing": "red",
    "measured": "cyan",
}


def megabytes(n_bytes: int | None) -> str:
    """Bytes as MB of 1,000,000 bytes with three significant digits; a dash for None."""
    if n_bytes is None:
        return "-"
    value = n_bytes / 1e6
    return f"{value:.3f}" if value < 1 else f"{value:.2f}" if value < 10 else f"{value:.1f}"


def _plus_minus(value: float | None, low: float | None, high: float | None, sign: str) -> str:
    """A value and half the width of its interval; both ends are in the JSON and on the page."""
    if value is None or low is None or high is None:
        return "-"
    return f"{value:{sign}.2f} ±{(high - low) / 2:.1f}"


def summary_table(report: Report) -> Table:
    """One row per engine: size, main metric, loss, latency, load time and memory."""
    latency, reference = report.latency_at(), report.drop_reference
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("engine")
    against = f"drop vs {reference}, points" if reference else "drop"
    for name in (
        "file MB",
        f"{report.data[0].main_metric} %",
        against,
        f"ms{latency.title}",
        "load ms",
        "peak MB",
    ):
        table.add_column(name, justify="right")
    for row in report.summary():
        process = row.process
        table.add_row(
            escape(row.engine.label),
            megabytes(row.engine.file_bytes),
            _plus_minus(row.value, row.low, row.high, ""),
            _plus_minus(row.drop.points, row.drop.low, row.drop.high, "+") if row.drop else "-",
            "-" if row.cell is None else f"{row.cell.p50_ms:.2f}",
            "-" if process is None else f"{process.load_ms:.0f}",
            "-" if process is None else megabytes(process.peak_bytes),
            style="bold" if row.engine.name == report.main_engine else None,
        )
    return table


def _parity_table(report: Report) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False, title_justify="left")
    table.add_column("compared")
    noun = report.data[0].item
    for name in (f"{noun}s", "agreement %", "largest diff", "mean diff", f"first {noun} that differs"):
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


def _matrix_table(report: Report) -> Table:
    """One row per target's engine; the page has one column for each, and the versions."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    rows = {name: cells for name, cells in checks(report, report.matrix).items() if name != "versions"}
    table.add_column("target")
    for name in rows:
        table.add_column(name, justify="right")
    for index, column in enumerate(report.matrix):
        state = "" if column.status == "ran" else f" ({column.status})"
        table.add_row(escape(column.engine + state), *(cells[index] for cells in rows.values()))
    return table


def _print_targets(report: Report, out: Console) -> None:
    """The matrix, where a target is outside this process or did not run, and what each says of itself."""
    if not any(target.machine or target.reason for target in report.targets):
        return
    out.print()
    out.print(_matrix_table(report))
    for target in report.targets:
        for item in target.measures:
            value = f"{item.value:,.{0 if abs(item.value) >= 1000 else 3}f} {item.unit}"
            out.print(escape(f"{target.target}: {item.name}: {value}"), highlight=False)
        if target.reason:
            colour = {"ran": "cyan", "failed": "red", "missing": "yellow"}[target.status]
            out.print(
                f"[{colour}]{target.status:<7}[/] {escape(target.target)}: {escape(target.reason)}",
                highlight=False,
            )


def _print_mobile(report: Report, out: Console) -> None:
    """The mobile tools' verdicts, and what follows."""
    if report.mobile is None:
        return
    out.print()
    for item in report.mobile.providers:
        out.print(
            f"mobile  {escape(item.name)}: {item.as_is} as it is, {item.fixed_shapes} with fixed shapes; "
            f"{item.supported} of {item.nodes} nodes in {item.partitions} pieces",
            highlight=False,
        )
    for form in report.mobile.ort_format:
        if form.file_bytes is not None and form.max_abs is not None:
            out.print(
                f"mobile  ORT format, {form.engine}: {megabytes(form.file_bytes)} MB, {form.same} of "
                f"{form.rows} rows the same, largest logit difference {form.max_abs:.1e}",
                highlight=False,
            )
    for line in report.mobile.advice:
        out.print(f"[cyan]mobile[/]  {escape(line)}", highlight=False)


def _measure_table(report: Report) -> Table | None:
    """What else was found about two engines; None where nothing was."""
    table = Table(box=None, header_style="bold", pad_edge=False, title_justify="left")
    for name in ("compared", "measure"):
        table.add_column(name)
    for name in ("mean", "95 % interval"):
        table.add_column(name, justify="right")
    for item in report.parity:
        for measure in item.measures:
            table.add_row(
                f"{item.engine} vs {item.against}", measure.name, f"{measure.value:.4f}",
                f"{measure.low:.4f} to {measure.high:.4f}",
            )  # fmt: skip
    return table if table.row_count else None


def print_report(report: Report, console: Console | None = None) -> None:
    """Print verdict, gates and tables.

    Args:
        report: what was found.
        console: where to; None prints to stdout and honours NO_COLOR and pipes.
    """
    out = console or Console()
    colour = _MARKS[report.status]
    out.print(f"[bold {colour}]{report.status.upper()}[/]  {escape(report.headline)}", highlight=False)
    for gate in report.gates:
        mark = _MARKS[gate.status]
        out.print(
            f"  [{mark}]{gate.status:<9}[/] --{gate.name} {gate.limit:g}: {escape(gate.detail)}",
            highlight=False,
        )
    out.print()
    out.print(summary_table(report))
    out.print()
    out.print(_parity_table(report))
    measures = _measure_table(report)
    if measures is not None:
        out.print()
        out.print(measures)
    _print_targets(report, out)
    _print_mobile(report, out)
    if report.invariance is not None:
        found = report.invariance
        what = "bit-identical" if found.identical else f"outputs differ by at most {found.max_abs:.1e}"
        out.print(f"\n{found.rows} rows alone and inside padded batches: {what}", highlight=False)
    if report.layers is not None:
        trace = report.layers
        worst = max(trace.layers, key=lambda layer: layer.mean_abs)
        text = (
            f"first layer that parts: {trace.first} (tolerance {trace.tolerance:g})"
            if trace.first
            else f"all {len(trace.layers)} LayerNorms within {trace.tolerance:g} of PyTorch; "
            f"largest mean difference {worst.mean_abs:.1e} at {worst.module}"
        )
        out.print(escape(text), highlight=False)
    for note in report.notes:
        out.print(f"note: {escape(note)}", style="dim", highlight=False)
