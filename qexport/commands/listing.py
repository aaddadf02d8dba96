"""`qexport tasks` and `qexport methods`: what can be named after --task and --method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated

import typer

from qexport import console

__all__ = ["methods", "tasks"]

_JSON = Annotated[bool, typer.Option("--json", help="Print as JSON on stdout.")]


_WHAT = {
    "classification": "those of the file",
    "regression": "a number",
    "span": "a place in the text",
    "tokens": "the tags of the files",
    "embedding": "a vector",
}
"""What a task without label names asks for."""


def tasks(*, json: _JSON = False) -> None:
    """List the registered tasks: labels, columns, metrics, longest sequence.

    Example: qexport tasks
    """
    from qexport.training.tasks import TASKS

    rows = [
        {
            "task": task.name,
            "labels": list(task.labels) or _WHAT[task.kind],
            "columns": list(task.columns),
            "metrics": list(task.metrics),
            "max_length": task.max_length,
        }
        for task in TASKS.values()
    ]
    _list(rows, json)


def methods(*, json: _JSON = False) -> None:
    """List the training methods: what each does, its default bits, its source.

    Example: qexport methods
    """
    from qexport.training.recipes import RECIPES

    rows = [
        {"method": name, "bits": recipe.default_bits, "summary": recipe.summary, "source": recipe.source}
        for name, recipe in RECIPES.items()
    ]
    _list(rows, json)


def _list(rows: Sequence[Mapping[str, object]], json: bool) -> None:
    if json:
        console.print_json(rows)
        return
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in rows[0]:
        table.add_column(name.replace("_", " "), overflow="fold")
    for row in rows:
        cells = (", ".join(map(str, cell)) if isinstance(cell, list) else str(cell) for cell in row.values())
        table.add_row(*cells)
    console.show(table)
