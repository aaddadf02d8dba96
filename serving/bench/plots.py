"""The plots of the benchmark page: milliseconds by length, and how many times faster."""

from __future__ import annotations

from qexport.serving.bench.report import BenchReport
from qexport.serving.bench.terminal import milliseconds
from qexport.serving.plots import Line, colour, lines_plot

__all__ = ["ratio_plot", "times_plot"]


def times_plot(report: BenchReport, threads: int, batch_size: int) -> str:
    """Median milliseconds by length of every engine, with the band from the 10th to the 90th percentile."""
    lines = []
    for engine in report.engines:
        cells = [
            cell for cell in report.cells
            if (cell.engine, cell.threads, cell.batch_size) == (engine.name, threads, batch_size)
        ]  # fmt: skip
        if cells:
            cells.sort(key=lambda cell: cell.length)
            lines.append(
                Line(
                    label=f"{engine.label} {milliseconds(cells[-1].p50_ms)} ms",
                    colour=colour(engine.name, report.main_engine),
                    x=[cell.length for cell in cells], y=[cell.p50_ms for cell in cells],
                    low=[cell.p10_ms for cell in cells], high=[cell.p90_ms for cell in cells],
                )
            )  # fmt: skip
    return lines_plot(f"times-{threads}-{batch_size}", lines[::-1], y_label="milliseconds, log scale")


def ratio_plot(report: BenchReport, threads: int, batch_size: int) -> str:
    """How many times faster the main engine is than each other one, with 95 % intervals; "" if alone."""
    ours = [
        cell for cell in report.cells
        if (cell.engine, cell.threads, cell.batch_size) == (report.main_engine, threads, batch_size)
    ]  # fmt: skip
    ours.sort(key=lambda cell: cell.length)
    lines = []
    for engine in report.engines:
        ratios = [(c.length, one) for c in ours for one in c.ratios if one.against == engine.name]
        if ratios:
            lines.append(
                Line(
                    label=f"{engine.label} {ratios[-1][1].median:.2f}x",
                    colour=colour(engine.name, report.main_engine),
                    x=[length for length, _ in ratios], y=[one.median for _, one in ratios],
                    low=[one.low for _, one in ratios], high=[one.high for _, one in ratios],
                )
            )  # fmt: skip
    name, label = f"ratio-{threads}-{batch_size}", "its time over ours, log scale"
    return lines_plot(name, lines[::-1], y_label=label, level=1.0)
