"""The Pareto plot: what a model gets against what it costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qexport.serving.plots import COLOURS, colour, svg_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["CROWDED", "Point", "front", "pareto_plot"]

_CYCLE = ("main", "int8", "student", "teacher", "stock", "openvino")
CROWDED = 10
"""With more points than this a plot is twice as wide."""

_SPACING = 0.24  # inches, between two labels
_ABOVE = 0.1  # inches: labels stand above the line of the front
_BESIDE = 0.16  # inches: and beside their points
_SMALL, _LARGE = (6.4, 4.6), (13.2, 6.6)  # inches
_WIDE = 5.0  # costs that differ by more have a logarithmic axis
_NEAR = 0.12  # of the width: labels that could touch


@dataclass(frozen=True, slots=True)
class Point:
    """One model."""

    label: str
    family: str
    """Points of one family have one colour; "fp32" has its own."""
    x: float
    """Cost: megabytes or milliseconds, above 0."""
    y: float
    """Percent."""
    spread: float | None = None
    """Half the length of a bar, percent."""


def front(points: Sequence[Point]) -> list[Point]:
    """The points that no cheaper or equally cheap one equals or beats, cheapest first."""
    best: list[Point] = []
    for point in sorted(points, key=lambda point: (point.x, -point.y)):
        if not best or point.y > best[-1].y:
            best.append(point)
    return best


def pareto_plot(name: str, points: Sequence[Point], *, x_label: str, y_label: str) -> str:
    """Points with labels, and the line through those that nothing beats; "" for fewer than two.

    Args:
        name: prefix of the figure's identifiers.
        points: models.
        x_label: of the cost.
        y_label: of the result.
    """
    if len(points) < 2:
        return ""
    width_in, height_in = _LARGE if len(points) > CROWDED else _SMALL
    families = [family for family in dict.fromkeys(point.family for point in points) if family != "fp32"]
    colours = {family: COLOURS[_CYCLE[index % len(_CYCLE)]] for index, family in enumerate(families)}
    colours["fp32"] = COLOURS["fp32"]

    def draw(figure: Figure, axes: Axes) -> None:
        low, high = min(point.x for point in points), max(point.x for point in points)
        if high > _WIDE * low:
            axes.set_xscale("log")
            axes.set_xlim(low / 1.25, high * (high / low) ** 0.45)
            round_values = [1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0]
            ticks = [value for value in round_values if low / 1.25 <= value <= high * 1.5]
            axes.set_xticks(ticks, labels=[f"{value:g}" for value in ticks])
        else:
            width = max(high - low, 0.1 * high)
            axes.set_xlim(low - 0.08 * width, high + 0.35 * width)
        values = [point.y for point in points]
        pad = max(max(values) - min(values), 1.0) * 0.12
        axes.set_ylim(min(values) - pad, max(values) + pad)
        best = front(points)
        axes.step([p.x for p in best], [p.y for p in best], where="post", color=colour("", "front"), lw=1.2,
                  ls=(0, (4, 3)), zorder=1)  # fmt: skip
        for point in points:
            shade = colours[point.family]
            if point.spread is not None:
                axes.errorbar(point.x, point.y, yerr=point.spread, color=shade, lw=1.4, capsize=0, zorder=2)
            axes.plot(point.x, point.y, "o", color=shade, ms=7, zorder=3)
        for point, height in _label_heights(points, axes, height_in):
            place = _fractions(axes, point)
            text = (place[0] + _BESIDE / width_in, height)
            axes.annotate(point.label, place, xytext=text, xycoords="axes fraction",
                          textcoords="axes fraction", va="center", fontsize=9, color=colours[point.family],
                          arrowprops={"arrowstyle": "-", "lw": 0.6, "color": colour("", "front"),
                                      "shrinkA": 0, "shrinkB": 4}
                          if abs(height - place[1] - _ABOVE / height_in) > 0.02 else None)  # fmt: skip
        axes.minorticks_off()
        axes.grid(axis="both")
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)

    return svg_figure(name, width_in, height_in, draw)


def _fractions(axes: Axes, point: Point) -> tuple[float, float]:
    """Where a point is, in fractions of the axes."""
    place = axes.transAxes.inverted().transform(axes.transData.transform((point.x, point.y)))
    return float(place[0]), float(place[1])


def _label_heights(points: Sequence[Point], axes: Axes, inches: float) -> list[tuple[Point, float]]:
    """Where each label goes, in fractions of the height: at its point, or pushed apart from close ones."""
    spacing, above = _SPACING / inches, _ABOVE / inches
    places = [(point, *_fractions(axes, point)) for point in points]
    columns: list[list[tuple[Point, float, float]]] = []
    for place in sorted(places, key=lambda place: place[1]):
        if columns and place[1] - columns[-1][0][1] < _NEAR:
            columns[-1].append(place)
        else:
            columns.append([place])
    found: list[tuple[Point, float]] = []
    for column in columns:
        ordered = sorted(column, key=lambda place: place[2])
        heights = [place[2] + above for place in ordered]
        for _ in range(200):
            moved = False
            for index in range(len(heights) - 1):
                gap = heights[index + 1] - heights[index]
                if gap < spacing - 1e-6:
                    heights[index] -= (spacing - gap) / 2
                    heights[index + 1] += (spacing - gap) / 2
                    moved = True
            if not moved:
                break
        found += [(place[0], height) for place, height in zip(ordered, heights, strict=True)]
    return found
