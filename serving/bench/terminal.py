"""The benchmark as tables in a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from qexport.serving.bench.report import BenchReport, Cell, MatmulCell
from qexport.serving.latency import Ratio
from qexport.serving.terminal import megabytes

__all__ = ["mebibytes", "milliseconds", "percent", "print_report", "ratio_of", "times"]

_PROFILE_ROWS = 14


def milliseconds(value: float) -> str:
    """Three significant digits or so."""
    return f"{value:.3f}" if value < 1 else f"{value:.2f}" if value < 100 else f"{value:.0f}"


def percent(share: float | None) -> str:
    """A share in percent; a dash for None."""
    return "-" if share is None else f"{100 * share:.0f} %"


def spread(cell: Cell | None) -> str:
    """Median and half the distance of the quartiles: "3.31 ±0.05"."""
    if cell is None:
        return "-"
    return f"{milliseconds(cell.p50_ms)} ±{milliseconds((cell.p75_ms - cell.p25_ms) / 2)}"


def times(ratio: Ratio | None) -> str:
    """A ratio and half the width of its interval, "2.31x ±0.04"; both ends are in the JSON."""
    return "-" if ratio is None else f"{ratio.median:.2f}x ±{(ratio.high - ratio.low) / 2:.2f}"


def ratio_of(cell: Cell | MatmulCell | None, against: str) -> Ratio | None:
    """The ratio of `cell` to one engine."""
    return None if cell is None else next((one for one in cell.ratios if one.against == against), None)


def _table(title: str, first: str, columns: Sequence[str]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False, title=escape(title), title_justify="left")
    table.add_column(first)
    for name in columns:
        table.add_column(name, justify="right")
    return table


def _times_table(report: BenchReport, threads: int, batch_size: int) -> Table:
    """A row an engine, and under them the ratio of each other one to the main one."""
    cells = [cell for cell in report.cells if (cell.threads, cell.batch_size) == (threads, batch_size)]
    lengths = list(dict.fromkeys(cell.length for cell in cells))
    title = (
        f"Median ms ± half the quartile distance, batch {batch_size}, {threads} thread{'s' * (threads > 1)}"
    )
    table = _table(title, "tokens", [str(length) for length in lengths])
    for engine in report.engines:
        row = [
            report.cell(engine.name, length=length, batch_size=batch_size, threads=threads)
            for length in lengths
        ]
        main = engine.name == report.main_engine
        table.add_row(escape(engine.label), *map(spread, row), style="bold" if main else None)
    label = report.engine(report.main_engine).label
    for engine in report.engines:
        if engine.name == report.main_engine:
            continue
        ours = [
            report.cell(report.main_engine, length=length, batch_size=batch_size, threads=threads)
            for length in lengths
        ]
        ratios = [times(ratio_of(cell, engine.name)) for cell in ours]
        table.add_row(escape(f"{engine.label} / {label}"), *ratios, style="cyan")
    return table


def _memory_table(report: BenchReport) -> Table:
    table = _table(
        "In a process of its own", "engine", ["file MB", "load ms", "session MiB", "peak MiB", "cores"]
    )
    threads = report.openings[0].threads if report.openings else 1
    for opening in report.openings:
        if opening.threads != threads:
            continue
        engine = report.engine(opening.engine)
        cpus = "not pinned" if opening.cpus is None else ",".join(map(str, opening.cpus))
        table.add_row(
            escape(engine.label), megabytes(engine.file_bytes), f"{opening.load_ms:.0f}",
            mebibytes(opening.session_bytes), mebibytes(opening.peak_bytes), cpus,
        )  # fmt: skip
    return table


def mebibytes(n_bytes: int | None) -> str:
    """Bytes as MiB of 1,048,576 bytes; a dash for None."""
    return "-" if n_bytes is None else f"{n_bytes / 2**20:.1f}"


def _profile_tables(report: BenchReport) -> list[Table]:
    """One table per engine, at 128 tokens or the longest below."""
    tables = []
    for name in dict.fromkeys(profile.engine for profile in report.profiles):
        profiles = [profile for profile in report.profiles if profile.engine == name]
        shown = next((one for one in profiles if one.length == 128), profiles[-1])
        title = (
            f"{report.engine(name).label}, {shown.length} tokens, batch {shown.batch_size}: operators "
            f"{milliseconds(shown.nodes_ms)} ms of {milliseconds(shown.run_ms)} ms"
        )
        table = _table(title, "operator", ["nodes", "ms", "share", "of peak", "of copy", "of roofline"])
        for row in shown.operators[:_PROFILE_ROWS]:
            table.add_row(
                escape(row.operator), str(row.nodes), milliseconds(row.ms), percent(row.share),
                percent(row.peak_share) if row.macs else "-", percent(row.copy_share),
                percent(row.roofline_share),
            )  # fmt: skip
        tables.append(table)
    return tables


def _matmul_table(report: BenchReport) -> Table:
    columns = ["bits", "threads", "ms", "call ms", "of peak", "of copy", "against the main engine"]
    table = _table("Single products: tokens x inputs x outputs", "product", columns)
    for cell in report.matmuls:
        main = next(
            one for one in report.matmuls
            if (one.engine, one.shape, one.threads) == (report.main_engine, cell.shape, cell.threads)
        )  # fmt: skip
        table.add_row(
            escape(f"{cell.shape} {report.engine(cell.engine).label}"), str(cell.bits), str(cell.threads),
            milliseconds(cell.p50_ms), milliseconds(cell.call_ms), percent(cell.peak_share),
            percent(cell.copy_share), times(ratio_of(main, cell.engine)),
        )  # fmt: skip
    return table


def print_report(report: BenchReport, console: Console | None = None) -> None:
    """Print every table.

    Args:
        report: what was found.
        console: where to; None prints to stdout.
    """
    out = console or Console()
    where = report.environment
    load = "" if where.load_average is None else f", load {where.load_average:g} before"
    facts = f"{where.cpu}, {where.cores} cores ({', '.join(where.flags) or 'flags unknown'}){load}"
    out.print(escape(facts), highlight=False)
    for threads, batch_size in report.groups():
        out.print()
        out.print(_times_table(report, threads, batch_size))
    out.print()
    out.print(_memory_table(report))
    for table in _profile_tables(report):
        out.print()
        out.print(table)
    if report.matmuls:
        out.print()
        out.print(_matmul_table(report))
    for name, roofline in report.rooflines.items():
        text = (
            f"{report.engine(name).label}: peak of {roofline.isa} {roofline.macs_per_s / 1e9:.0f} G "
            f"multiply-accumulates/s, copy {roofline.copy_bytes_per_s / 1e9:.1f} GB/s"
        )
        out.print(escape(text), highlight=False)
    for note in report.notes:
        out.print(f"note: {escape(note)}", style="dim", highlight=False)
