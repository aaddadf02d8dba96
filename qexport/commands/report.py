"""`qexport report`: tables of sweeps as Markdown and as a page with Pareto plots."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qexport import console

__all__ = ["report"]


def report(
    tables: Annotated[
        list[Path],
        typer.Argument(
            metavar="TABLE.jsonl...",
            show_default=False,
            help="Tables written by qexport sweep; of a run in several the newest finished row counts.",
        ),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for report.md and report.html.", show_default=False)
    ],
    title: Annotated[str, typer.Option("--title", help="Title of the page.")] = "Results",
) -> None:
    """Join tables of sweeps: means and spreads over seeds, the papers' numbers beside them, Pareto plots.

    Examples:

      qexport report runs/grid/results.jsonl -o results

      qexport report here.jsonl gpu.jsonl -o results --title "All methods on GLUE"

    The page and the Markdown have the same tables; the page also the plots and the commands of every run.
    """  # fmt: skip
    from qexport.atomic import atomic_write_text
    from qexport.results.joined import join
    from qexport.results.markdown import markdown
    from qexport.results.page import render_page

    joined = join(tables)
    command = console.command_line()
    atomic_write_text(output / "report.md", markdown(joined, command=command))
    atomic_write_text(output / "report.html", render_page(joined, command=command, title=title))
    failed = f", {len(joined.failed)} failed" if joined.failed else ""
    console.show(f"{len(joined.rows)} runs{failed}: {output / 'report.md'}, {output / 'report.html'}")
