"""The benchmark as one self-contained HTML page, in the style of `verify`'s."""

from __future__ import annotations

import json

from qexport.serving.bench import plots
from qexport.serving.bench.report import BenchReport
from qexport.serving.bench.terminal import mebibytes, milliseconds, percent, ratio_of
from qexport.serving.page import Card, Plot, page_template
from qexport.serving.terminal import megabytes

__all__ = ["render_page"]

_CARD_LENGTH = 128


def _cards(report: BenchReport) -> list[Card]:
    """Milliseconds at 128 tokens or the longest, ratios to the others there, file and memory."""
    ours = report.engine(report.main_engine)
    cards = []
    own = [cell for cell in report.cells if cell.engine == ours.name]
    if own:
        first = [
            cell for cell in own if (cell.threads, cell.batch_size) == (own[0].threads, own[0].batch_size)
        ]
        cell = next((one for one in first if one.length == _CARD_LENGTH), first[-1])
        place = (
            f"{cell.length} tokens, batch {cell.batch_size}, {cell.threads} thread{'s' * (cell.threads > 1)}"
        )
        spread = f"quartiles {milliseconds(cell.p25_ms)} to {milliseconds(cell.p75_ms)}"
        cards.append(Card(f"{ours.label}, {place}", milliseconds(cell.p50_ms), "ms", spread, ""))
        for ratio in cell.ratios:
            other = report.engine(ratio.against)
            tone = "good" if ratio.low > 1 else "bad" if ratio.high < 1 else ""
            interval = f"95 % interval {ratio.low:.2f} to {ratio.high:.2f}"
            cards.append(Card(f"{other.label}, there", f"{ratio.median:.2f}", "x ours", interval, tone))
    opening = next((one for one in report.openings if one.engine == ours.name), None)
    if opening is not None and opening.session_bytes is not None:
        detail = f"over an empty process; peak {mebibytes(opening.peak_bytes)} MiB in all"
        cards.append(Card("Memory of the session", mebibytes(opening.session_bytes), "MiB", detail, ""))
    cards.append(
        Card("File size", megabytes(report.model.file_bytes), "MB", f"sha256 {report.model.sha256[:12]}", "")
    )
    return cards


def _plots(report: BenchReport) -> list[Plot]:
    found = []
    for threads, batch_size in report.groups():
        place = f"batch {batch_size}, {threads} thread{'s' * (threads > 1)}"
        caption = "Medians; the band reaches from the 10th to the 90th percentile."
        svg = plots.times_plot(report, threads, batch_size)
        found.append(Plot(f"Time by length, {place}", caption, svg))
        caption = (
            "Above 1 ours is faster. Ratios are formed within each round; the band is the 95 % interval of "
            "the median."
        )
        svg = plots.ratio_plot(report, threads, batch_size)
        found.append(Plot(f"Time of the others over ours, {place}", caption, svg))
    return [plot for plot in found if plot.svg]


def render_page(report: BenchReport) -> str:
    """The whole page as text; opens from disk and needs no network."""
    model = report.model
    name = " ".join(part for part in (model.method, model.bits) if part) or model.file
    return page_template("bench.html.j2").render(
        report=report,
        title=f"{name}: benchmark",
        cards=_cards(report),
        plots=_plots(report),
        labels={engine.name: engine.label for engine in report.engines},
        milliseconds=milliseconds,
        mebibytes=mebibytes,
        percent=percent,
        ratio_of=ratio_of,
        config=json.dumps(report.config, indent=2, ensure_ascii=False),
    )
