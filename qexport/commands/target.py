"""`qexport target`: where `verify` can run a file, what each target needs, and how to get it."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from qexport import console
from qexport.errors import EnvironmentProblem

__all__ = ["listing", "prepare", "target"]

_JSON = Annotated[bool, typer.Option("--json", help="Print as JSON on stdout.")]


def target(context: typer.Context) -> None:
    """Show or prepare the targets of verify: this process, Node, a browser, an emulator, another machine.

    Examples:

      qexport target list

      qexport target prepare web
    """
    if context.invoked_subcommand is None:
        listing()


def listing(*, json: _JSON = False) -> None:
    """List every target: the ways it runs a file, and whether it can be used here, or what is missing.

    Example: qexport target list
    """
    from qexport.serving.targets import get_target, target_names

    rows: list[dict[str, Any]] = []
    for name in target_names():
        found = get_target(name)
        try:
            found.check()
            problem, fix = None, None
        except EnvironmentProblem as error:
            problem, fix = str(error), getattr(error, "fix", None)
        modes = list(found.modes)
        rows.append(
            {"target": name, "modes": modes, "ready": problem is None, "problem": problem, "fix": fix}
        )
    if json:
        console.print_json(rows)
        return
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("target", "ways to run", "here"):
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(row["target"], ", ".join(row["modes"]), row["problem"] or "ready")
    console.show(table)


def prepare(
    name: Annotated[str, typer.Argument(help="One that `qexport target list` shows.", metavar="NAME")],
    *,
    json: _JSON = False,
) -> None:
    """Fetch what a target needs into QEXPORT_CACHE, checked against the checksums that this package ships.

    Needs a package index once; verify then needs none.

    Examples:

      qexport target prepare web

      QEXPORT_CACHE=/srv/cache qexport target prepare node
    """
    from qexport.serving.targets import get_target

    facts = get_target(name).prepare(console.say)
    if json:
        console.print_json({"target": name, **facts})
        return
    console.show(f"{name} is ready: " + ", ".join(f"{key} {value}" for key, value in facts.items()))
