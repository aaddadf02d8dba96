"""The plots of the report page: matplotlib figures as inline SVG whose colours are CSS variables.

Every colour is drawn as a marker value and then replaced by `var(--...)`, so that one figure reads well on a
light and on a dark page. Identifiers are prefixed per figure, because several figures share one document.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from qexport.serving.latency import LatencyCell
    from qexport.serving.report import Report

__all__ = [
    "COLOURS",
    "Line",
    "accuracy_plot",
    "colour",
    "contents_plot",
    "histogram_plot",
    "latency_plot",
    "layers_plot",
    "lines_plot",
    "panel",
    "size_plot",
    "svg_figure",
]

_INK, _MUTED, _GRID = "#010101", "#020202", "#030303"
COLOURS = {
    "main": "#0a0001",
    "fp32": "#0a0002",
    "int8": "#0a0003",
    "student": "#0a0004",
    "stock": "#0a0006",
    "openvino": "#0a0007",
    "teacher": "#0a0005",
}
"""Marker colour of each engine; every further engine is drawn in the ink of secondary text."""
_VARIABLES = {
    _INK: "var(--ink)",
    _MUTED: "var(--muted)",
    _GRID: "var(--grid)",
    **{value: f"var(--{name})" for name, value in COLOURS.items()},
}
_STYLE: Any = {
    "font.family": "sans-serif",
    "font.size": 10.5,
    "svg.fonttype": "none",
    "text.color": _INK,
    "axes.edgecolor": _GRID,
    "axes.labelcolor": _MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "xtick.color": _MUTED,
    "ytick.color": _MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "grid.color": _GRID,
    "grid.linewidth": 0.8,
    "lines.linewidth": 2.2,
}


def svg_figure(name: str, width: float, height: float, draw: Callable[[Figure, Axes], None]) -> str:
    """Draw one figure and give it as an <svg> element.

    Args:
        name: prefix of its identifiers; also the hash salt, so the same data gives the same bytes.
        width: inches; the page scales it.
        height: inches.
        draw: draws into the figure's only axes.
    """
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with matplotlib.rc_context(dict(_STYLE) | {"svg.hashsalt": name}):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        draw(figure, axes)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", text)
    text = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', text)
    text = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", text)
    text = re.sub(r'xlink:href="#([^"]+)"', rf'href="#{name}-\1"', text)
    for marker, variable in _VARIABLES.items():
        text = text.replace(marker, variable)
    head, tail = text.split(">", 1)
    return re.sub(r'\s(width|height)="[^"]*"', "", head) + ">" + tail  # the page decides on the size


def colour(name: str, main: str) -> str:
    """Marker colour of engine `name`, where `main` is the engine under test."""
    return COLOURS["main"] if name == main else COLOURS.get(name, _MUTED)


def _label(report: Report, name: str) -> str:
    return next((engine.short_label for engine in report.engines if engine.name == name), name)


def _nice(value: float) -> str:
    return (
        f"{value:.0f}"
        if value >= 100
        else f"{value:.1f}"
        if value >= 10
        else f"{value:.2g}"
        if value
        else "0"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One engine in a plot by length."""

    label: str
    """Name and last value, at its right end."""
    colour: str
    """Marker colour; see `colour`."""
    x: Sequence[int]
    """Tokens per text, sorted."""
    y: Sequence[float]
    """Value at each."""
    low: Sequence[float]
    """Lower edge of the band."""
    high: Sequence[float]
    """Upper edge of the band."""


def lines_plot(name: str, lines: Sequence[Line], *, y_label: str, level: float | None = None) -> str:
    """Lines with bands by length, both axes logarithmic; "" without lines.

    Args:
        name: prefix of the figure's identifiers.
        lines: the last one is drawn on top.
        y_label: of the vertical axis.
        level: a dashed line across; None leaves it out.
    """
    if not lines:
        return ""

    def draw(figure: Figure, axes: Axes) -> None:
        ends: list[tuple[float, str, str]] = []
        for line in lines:
            axes.fill_between(line.x, line.low, line.high, color=line.colour, alpha=0.15, linewidth=0)
            axes.plot(line.x, line.y, color=line.colour, marker="o", markersize=5)
            ends.append((line.y[-1], line.label, line.colour))
        if level is not None:
            axes.axhline(level, color=_MUTED, linewidth=1.2, linestyle=(0, (4, 3)))
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        lengths = sorted({length for line in lines for length in line.x})
        axes.set_xticks(lengths, [str(length) for length in lengths])
        axes.minorticks_off()
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        low, high = axes.get_ylim()
        _spread_ticks(axes, low, high)
        axes.grid(axis="y")
        axes.set_xlabel("tokens per text")
        axes.set_ylabel(y_label)
        _end_labels(axes, lengths[-1], ends)

    return svg_figure(name, 5.6, 3.6, draw)


def panel(cell: LatencyCell) -> tuple[str, int]:
    """The plot that a latency belongs to: its clock, and on the host's clock its thread count (else 0)."""
    return cell.clock, cell.threads if cell.clock == "host" else 0


def latency_plot(report: Report, clock: str, threads: int) -> str:
    """Median latency by length of one `panel`, band from p50 to p90; "" without data."""
    cells_of: dict[str, list[LatencyCell]] = {}
    for cell in sorted(report.latency, key=lambda cell: cell.length):
        if panel(cell) == (clock, threads):
            cells_of.setdefault(cell.engine, []).append(cell)
    shades = _shades(list(cells_of), report.main_engine)
    lines = [
        Line(
            label=f"{_label(report, name)} {_nice(cells[-1].p50_ms)} ms",
            colour=shades[name],
            x=[cell.length for cell in cells], y=[cell.p50_ms for cell in cells],
            low=[cell.p50_ms for cell in cells], high=[cell.p90_ms for cell in cells],
        )
        for name, cells in sorted(cells_of.items(), key=lambda item: shades[item[0]] == COLOURS["main"])
    ]  # fmt: skip
    return lines_plot(
        re.sub(r"\W+", "-", f"latency-{clock}-{threads}"), lines, y_label="milliseconds, log scale"
    )


def _shades(names: Sequence[str], main: str) -> dict[str, str]:
    """A colour for each engine of one panel; on another clock its first engine has that of the main one."""
    ours = main if main in names else names[0] if names else main
    spare = iter(() if main in names else (COLOURS["student"], COLOURS["openvino"], COLOURS["stock"]))
    found = {}
    for name in names:
        kind = next((kind for kind in ("fp32", "int8") if name.startswith(f"{kind}-")), name)
        known = name == ours or kind in COLOURS
        found[name] = colour(name if name == ours else kind, ours) if known else next(spare, _MUTED)
    return found


def _spread_ticks(axes: Axes, low: float, high: float) -> None:
    """Ticks at 1, 2 and 5 of each decade, so that a range of less than a decade has some."""
    steps = [base * 10.0**power for power in range(-4, 6) for base in (1, 2, 5)]
    axes.set_yticks([step for step in steps if low <= step <= high])


def _end_labels(axes: Axes, x: float, ends: Sequence[tuple[float, str, str]]) -> None:
    """Name each line at its right end, pushed apart where they would touch."""
    low, high = (float(np.log(edge)) for edge in axes.get_ylim())
    gap = (high - low) * 0.085
    placed: list[float] = []
    for value, text, shade in sorted(ends):
        at = float(np.log(value))
        if placed:
            at = max(at, placed[-1] + gap)
        placed.append(at)
        axes.annotate(
            text, (x, float(np.exp(at))), xytext=(10, 0), textcoords="offset points", color=shade,
            va="center", annotation_clip=False, fontweight="bold",
        )  # fmt: skip


def _bars(
    axes: Axes, names: Sequence[str], values: Sequence[float], texts: Sequence[str], colours: Sequence[str]
) -> None:
    places = np.arange(len(names))[::-1]
    axes.barh(places, values, height=0.6, color=list(colours))
    for place, value, text in zip(places, values, texts, strict=True):
        axes.annotate(text, (value, place), xytext=(6, 0), textcoords="offset points", va="center")
    axes.set_yticks(places, list(names), color=_INK)
    axes.set_xticks([])
    axes.spines["bottom"].set_visible(False)
    axes.set_xlim(0, max(values) * 1.28)


def size_plot(report: Report) -> str:
    """Size of each ONNX file; "" when there is only one."""
    files = [engine for engine in report.engines if engine.name in (report.main_engine, "fp32", "int8")]
    if len(files) < 2:
        return ""
    ours = report.model.file_bytes
    sizes = [(engine.file_bytes or 0) / 1e6 for engine in files]
    texts = [
        f"{_nice(size)} MB"
        + ("" if engine.name == report.main_engine else f" · {(engine.file_bytes or 0) / ours:.1f}x ours")
        for engine, size in zip(files, sizes, strict=True)
    ]
    shades = [colour(engine.name, report.main_engine) for engine in files]

    def draw(figure: Figure, axes: Axes) -> None:
        _bars(axes, [engine.model_label for engine in files], sizes, texts, shades)

    return svg_figure("size", 5.6, 0.5 + 0.5 * len(files), draw)


def accuracy_plot(report: Report) -> str:
    """Main metric of each engine with its 95 % interval, on the first split; "" when there is only one."""
    split = report.data[0].split
    items = [item for item in report.accuracy if item.split == split]
    if len(items) < 2:
        return ""

    def draw(figure: Figure, axes: Axes) -> None:
        places = np.arange(len(items))[::-1]
        for place, item in zip(places, items, strict=True):
            best, shade = item.metrics[0], colour(item.engine, report.main_engine)
            axes.plot([100 * best.low, 100 * best.high], [place, place], color=shade, alpha=0.45, linewidth=5,
                      solid_capstyle="butt")  # fmt: skip
            axes.plot([100 * best.value], [place], color=shade, marker="o", markersize=9)
            axes.annotate(f"{100 * best.value:.2f}", (100 * best.high, place), xytext=(8, 0),
                          textcoords="offset points", va="center")  # fmt: skip
        axes.set_yticks(places, [_label(report, item.engine) for item in items], color=_INK)
        axes.set_ylim(-0.6, len(items) - 0.4)
        left, right = axes.get_xlim()
        axes.set_xlim(left, right + 0.12 * (right - left))
        axes.grid(axis="x")
        axes.spines["left"].set_visible(False)
        axes.set_xlabel(f"{items[0].metrics[0].metric}, %, with 95 % interval ({items[0].rows} rows)")

    return svg_figure("accuracy", 5.6, 0.9 + 0.42 * len(items), draw)


def histogram_plot(report: Report) -> str:
    """Rows by largest logit difference to the first reference; "" without a comparison."""
    parity = next((item for item in report.parity if item.engine == report.main_engine), None)
    if parity is None:
        return ""
    edges, counts = parity.histogram.edges, np.asarray(parity.histogram.counts)
    names = ["0"] + [f"1e{round(np.log10(edge))}" for edge in edges[1:-1]]
    used = np.flatnonzero(counts)
    first, last = max(0, int(used.min()) - 1), min(len(counts) - 1, int(used.max()) + 1)

    def draw(figure: Figure, axes: Axes) -> None:
        places = np.arange(first, last + 1)
        axes.bar(places, counts[first : last + 1], width=0.94, align="edge", color=COLOURS["main"])
        for place in places:
            if counts[place]:
                axes.annotate(str(counts[place]), (place + 0.47, counts[place]), xytext=(0, 3),
                              textcoords="offset points", ha="center")  # fmt: skip
        ticks = [place for place in range(first, last + 2) if place < len(names)]
        axes.set_xticks(ticks, [names[place] for place in ticks])
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        axes.margins(y=0.15)
        axes.set_xlabel(f"largest logit difference within a row, against {_label(report, parity.against)}")

    return svg_figure("difference", 5.6, 2.7, draw)


def layers_plot(report: Report) -> str:
    """Mean and largest difference of each LayerNorm in graph order, with the tolerance; "" without layers."""
    trace = report.layers
    if trace is None or not trace.layers:
        return ""
    floor = 1e-9  # a difference of zero has no place on a log scale
    mean, most = (
        np.clip([getattr(layer, name) for layer in trace.layers], floor, 1e9)
        for name in ("mean_abs", "max_abs")
    )

    def draw(figure: Figure, axes: Axes) -> None:
        places = np.arange(1, len(mean) + 1)
        axes.plot(places, most, color=_MUTED, linewidth=1.2, marker="o", markersize=3)
        axes.plot(places, mean, color=COLOURS["main"], marker="o", markersize=5)
        axes.axhline(trace.tolerance, color=_MUTED, linewidth=1.2, linestyle=(0, (4, 3)))
        for text, value, shade in (
            ("mean", float(mean[-1]), COLOURS["main"]), ("largest", float(most[-1]), _MUTED),
            (f"tolerance {trace.tolerance:g}", trace.tolerance, _MUTED),
        ):  # fmt: skip
            ends.append((value, text, shade))
        axes.set_yscale("log")
        axes.set_ylim(float(mean.min()) / 3, max(float(most.max()), trace.tolerance) * 4)
        axes.set_xlim(0.5, len(mean) + 0.5)
        axes.set_xticks([place for place in places if (place - 1) % max(1, len(places) // 13) == 0])
        axes.minorticks_off()
        axes.grid(axis="y")
        axes.set_xlabel("LayerNorm, in graph order")
        axes.set_ylabel("difference")
        _end_labels(axes, len(mean) + 0.3, ends)

    ends: list[tuple[float, str, str]] = []
    return svg_figure("layers", 5.6, 2.9, draw)


def contents_plot(report: Report) -> str:
    """What the bytes of the file are, one bar per kind of tensor; "" when the file was not inspected."""
    parts = sorted(report.model.tensors, key=lambda row: -row["n_bytes"])[:7]
    if not parts:
        return ""
    sizes = [row["n_bytes"] / 1e6 for row in parts]
    texts = [
        f"{_nice(size)} MB · {100 * row['share']:.0f} % · {row['storage']}"
        for row, size in zip(parts, sizes, strict=True)
    ]

    def draw(figure: Figure, axes: Axes) -> None:
        _bars(axes, [row["kind"] for row in parts], sizes, texts, [COLOURS["main"]] * len(parts))
        axes.set_xlim(0, max(sizes) * 2.8)

    return svg_figure("contents", 5.6, 0.4 + 0.42 * len(parts), draw)
