"""The report as one self-contained HTML page: no script, no external request, light and dark."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING, Any

from qexport.serving import plots
from qexport.serving.matrix import checks
from qexport.serving.terminal import megabytes

if TYPE_CHECKING:
    from jinja2 import Template

    from qexport.serving.parity import Parity
    from qexport.serving.report import Report

__all__ = ["Card", "Plot", "page_template", "render_page"]


@dataclass(frozen=True, slots=True)
class Card:
    """One big number at the top of the page."""

    title: str
    value: str
    unit: str
    detail: str
    tone: str
    """"good", "bad" or "" for the colour of the detail line."""


@dataclass(frozen=True, slots=True)
class Plot:
    """One figure with its caption."""

    title: str
    caption: str
    svg: str


_VERDICTS = {
    "passed": "Every gate passed",
    "failed": "A gate failed",
    "undecided": "These rows cannot decide",
    "incomplete": "A target did not run",
    "interrupted": "Stopped by Ctrl-C before the end",
    "measured": "Measured, no gate was set",
}


def _cards(report: Report) -> list[Card]:
    cards = []
    sizes = {engine.name: engine.file_bytes for engine in report.engines}
    fp32 = sizes.get("fp32")
    smaller = (
        f"{fp32 / report.model.file_bytes:.1f}x smaller than FP32"
        if fp32
        else f"sha256 {report.model.sha256[:12]}"
    )
    cards.append(Card("File size", megabytes(report.model.file_bytes), "MB", smaller, "good" if fp32 else ""))
    row = next((row for row in report.summary() if row.engine.name == report.main_engine), None)
    if row is not None and row.value is not None and row.low is not None and row.high is not None:
        detail, tone = f"95 % interval {row.low:.1f} to {row.high:.1f}", ""
        if row.drop is not None:
            word = "below" if row.drop.points >= 0 else "above"
            detail = f"{abs(row.drop.points):.2f} points {word} {report.engine(row.drop.against).label}"
            tone = "bad" if row.drop.low > 0 else "good" if row.drop.high <= 0 else ""
        cards.append(Card(report.data[0].main_metric.capitalize(), f"{row.value:.2f}", "%", detail, tone))
    if row is not None and row.cell is not None:
        detail = f"p99 {row.cell.p99_ms:.2f} ms"
        tone = ""
        ratio = next((item for item in row.cell.ratios if item.against == "fp32"), None)
        if ratio is not None:
            detail = f"{_times(ratio.median)} than FP32"
            tone = "good" if ratio.low > 1 else "bad" if ratio.high < 1 else ""
        stock = next((item for item in row.cell.ratios if item.against == "stock"), None)
        if stock is not None:
            detail += f"; {_times(stock.median)} than stock ONNX Runtime"
        title = f"Latency, {row.cell.length} tokens, {row.cell.threads} thread{'s' * (row.cell.threads > 1)}"
        cards.append(Card(title, f"{row.cell.p50_ms:.2f}", "ms", detail, tone))
    parity = next((item for item in report.parity if item.engine == report.main_engine), None)
    if parity is not None:
        detail = (
            f"{parity.disagreements} of {parity.rows} {report.data[0].item}s differ"
            if parity.disagreements
            else (f"all {parity.rows} {report.data[0].item}s, largest logit difference {parity.max_abs:.1e}")
        )
        title = f"Agreement with {report.engine(parity.against).label}"
        cards.append(Card(title, f"{100 * parity.agreement:.2f}", "%", detail, ""))
    kernels = _against_stock(report)
    if kernels is not None:
        same = kernels.rows - kernels.disagreements
        size = "every logit is the same float32 number" if kernels.bit_identical else (
            f"largest logit difference {kernels.max_abs:.1e}"
        )  # fmt: skip
        tone = "good" if same == kernels.rows else "bad"
        cards.append(
            Card("Same answer as stock ONNX Runtime", f"{same:,}", f"of {kernels.rows:,}", size, tone)
        )
    return cards


def _times(ratio: float) -> str:
    """A ratio of times in words: "2.10x faster"."""
    return f"{ratio:.2f}x faster" if ratio >= 1 else f"{1 / ratio:.2f}x slower"


def _against_stock(report: Report) -> Parity | None:
    """The main engine against stock ONNX Runtime, where the main engine is the kernel library."""
    return next(
        (item for item in report.parity if (item.engine, item.against) == (report.main_engine, "stock")), None
    )


def _plots(report: Report) -> list[Plot]:
    found = []
    panels = dict.fromkeys(plots.panel(cell) for cell in report.latency)
    for clock, threads in panels:
        cells = [cell for cell in report.latency if plots.panel(cell) == (clock, threads)]
        caption = (
            f"Median of {cells[0].rounds} rounds, batch {cells[0].batch_size}; the band reaches to the 90th "
            "percentile. Engines ran in turns, so a busy moment hits all of them."
        )
        title = f"Latency by length, {threads} thread{'s' * (threads > 1)}"
        if clock != "host":
            title, caption = f"Latency by length on {clock}", f"{caption} By the clock of {clock}."
        found.append(Plot(title, caption, plots.latency_plot(report, clock, threads)))
    found.append(
        Plot(
            "Size on disk",
            "Whole files, external data included; 1 MB is 1,000,000 bytes.",
            plots.size_plot(report),
        )
    )
    found.append(Plot("What the bytes are", "Tensors of the file by kind.", plots.contents_plot(report)))
    found.append(
        Plot("Metric", "Dots are the measured values; bars hold the true value with 95 % confidence, per "
             "engine. To compare two engines use the paired drop: it is far sharper than overlapping bars.",
             plots.accuracy_plot(report))
    )  # fmt: skip
    found.append(
        Plot(
            "Logit differences",
            "How many rows differ by how much; bins are decades.",
            plots.histogram_plot(report),
        )
    )
    found.append(
        Plot(
            "Layer by layer",
            "ONNX against PyTorch on one batch, over real tokens only. The mean tells a wrong layer; the "
            "largest also shows single 8-bit codes that round the other way.",
            plots.layers_plot(report),
        )
    )
    return [plot for plot in found if plot.svg]


def _reproduce(report: Report) -> str:
    return report.command or f"qexport verify {report.model.path} --task {report.data[0].task}"


def _number(value: float | None, digits: int = 2) -> str:
    return "–" if value is None else f"{value:,.{digits}f}"


def _small(value: float | None) -> str:
    if value is None:
        return "–"
    return "0" if value == 0 else f"{value:.1e}" if value < 0.01 else f"{value:.3f}"


def page_template(name: str) -> Template:
    """The template `name` of this folder, with the filters that pages use."""
    from jinja2 import Environment, FunctionLoader, StrictUndefined
    from markupsafe import Markup

    folder = resources.files("qexport.serving")
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        loader=FunctionLoader(lambda file: folder.joinpath(file).read_text(encoding="utf-8")),
    )  # fmt: skip
    environment.filters.update(mb=megabytes, number=_number, small=_small, svg=Markup)
    return environment.get_template(name)


def render_page(report: Report) -> str:
    """The whole page as text; opens from disk, prints, and needs no network."""
    labels: dict[str, Any] = {engine.name: engine.short_label for engine in report.engines}
    return page_template("report.html.j2").render(
        report=report,
        noun=report.data[0].item,
        verdict=_VERDICTS[report.status],
        cards=_cards(report),
        plots=_plots(report),
        summary=report.summary(),
        latency_title=report.latency_at().title,
        labels=labels,
        checks=checks(report, report.matrix),
        command=_reproduce(report),
        config=json.dumps(report.config, indent=2, ensure_ascii=False),
    )
