"""The joined tables as one self-contained HTML page, in the style of `verify`'s."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources

from qexport.results.joined import Group, Joined, Variant
from qexport.results.markdown import (
    Sources,
    cell_texts,
    drop_text,
    latency_lengths,
    task_head,
    value_text,
)
from qexport.results.plots import CROWDED, Point, pareto_plot

__all__ = ["render_page"]


@dataclass(frozen=True, slots=True)
class _Figure:
    title: str
    caption: str
    svg: str
    wide: bool = False
    """Over the whole width of the page."""


def render_page(joined: Joined, *, command: str, title: str) -> str:
    """The whole page as text; opens from disk and needs no network."""
    from jinja2 import Environment, FunctionLoader, StrictUndefined
    from markupsafe import Markup

    def source(name: str) -> str:
        package = "qexport.serving" if name == "page.css" else "qexport.results"
        return resources.files(package).joinpath(name).read_text(encoding="utf-8")

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        loader=FunctionLoader(source),
    )  # fmt: skip
    environment.filters["svg"] = Markup
    sources = Sources()
    groups = [_group(joined, group, sources, index) for index, group in enumerate(joined.groups)]
    return environment.get_template("report.html.j2").render(
        title=title,
        joined=joined,
        groups=groups,
        sources=sources.numbers,
        command=command,
        machines=joined.machines(),
        seeds=sorted({row["seed"] for row in joined.rows}),
        tasks=list(dict.fromkeys(row["task"] for row in joined.rows)),
    )


def _group(joined: Joined, group: Group, sources: Sources, index: int) -> dict[str, object]:
    lengths = latency_lengths(group)
    tables = []
    for task in group.tasks:
        found = [variant for variant in group.variants if (variant, task) in group.cells]
        tables.append({
            "task": task,
            "head": task_head(joined.metric(task), lengths),
            "rows": [cell_texts(one.label, group.cells[one, task], sources, lengths) for one in found],
            "facts": joined.facts(group, task),
            "commands": [
                (row["name"], row["commands"]) for one in found for row in group.cells[one, task].rows
            ],
        })  # fmt: skip
    averages = [
        {
            "label": one.variant.label,
            "tasks": "all" if len(one.tasks) == len(group.tasks) else ", ".join(one.tasks),
            "value": value_text(one.value),
            "drop": drop_text(one.drop),
            "paper": "-" if one.paper is None else f"{one.paper:.2f}",
            "size": f"{one.file_bytes / 1e6:.2f}",
            "latency": [f"{one.latency[n]:.2f}" if n in one.latency else "-" for n in lengths],
        }
        for one in (group.averages() if len(group.tasks) > 1 else [])
    ]
    return {
        "name": group.name, "tasks": group.tasks, "tables": tables, "averages": averages, "lengths": lengths,
        "figures": [figure for figure in _figures(joined, group, lengths, f"g{index}") if figure.svg],
    }  # fmt: skip


def _figures(joined: Joined, group: Group, lengths: list[str], prefix: str) -> list[_Figure]:
    found = []
    costs = [("size", "file, MB", "")]
    longest = {length.rpartition(" ")[2]: length for length in lengths}  # engine -> its last length
    costs += [(f"latency, {engine}", f"median ms, {length}", length) for engine, length in longest.items()]
    for index, (cost, x_label, length) in enumerate(costs):
        slug = f"cost{index}"
        whole = [one for one in group.averages() if len(one.tasks) == len(group.tasks) > 1]
        points = [
            Point(one.variant.label, one.variant.method, cost_of, one.value.mean, one.value.spread)
            for one in whole
            if (cost_of := one.latency.get(length) if length else one.file_bytes / 1e6)
        ]
        title = f"Average against {cost}"
        caption = (
            f"Mean of the main metrics over {', '.join(group.tasks)}. The dashed line joins models that no "
            "cheaper one equals; a bar is the standard deviation over seeds."
        )
        svg = pareto_plot(f"{prefix}-{slug}", points, x_label=x_label, y_label="main metric, %")
        found.append(_Figure(title, caption, svg, wide=len(points) > CROWDED))
        for number, task in enumerate(group.tasks):
            here = [_point(group, one, task, length) for one in group.variants if (one, task) in group.cells]
            name, y_label = f"{prefix}-{slug}-{number}", f"{joined.metric(task)}, %"
            shown = [point for point in here if point is not None]
            svg = pareto_plot(name, shown, x_label=x_label, y_label=y_label)
            title, caption = f"{task} against {cost}", "A bar is the standard deviation over seeds."
            found.append(_Figure(title, caption, svg, wide=len(shown) > CROWDED))
    return found


def _point(group: Group, variant: Variant, task: str, length: str) -> Point | None:
    cell = group.cells[variant, task]
    cost = cell.latency.get(length) if length else cell.file_bytes / 1e6
    if not cost:
        return None
    return Point(variant.label, variant.method, cost, cell.value.mean, cell.value.spread)
