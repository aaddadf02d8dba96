"""`qexport sweep`: a grid of runs from a YAML file, one row each in a table."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer

from qexport import console
from qexport.options import Option, takes_config
from qexport.sweep.runner import SweepConfig

__all__ = ["sweep"]

OPTIONS = {
    "file": Option(argument=True, metavar="SWEEP.yaml"),
    "output": Option(("--output", "-o")),
    "only": Option(comma=True),
    "lengths": Option(comma=True),
}


@takes_config(SweepConfig, OPTIONS)
def sweep(
    config: SweepConfig,
    *,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")] = False,
) -> None:
    """Train, export and verify every run of a grid; go on where an earlier call stopped.

    Examples:

      qexport sweep sweep.yaml --dry-run

      qexport sweep sweep.yaml -o runs/grid

      qexport sweep sweep.yaml --jobs 4 --threads 2

      qexport sweep sweep.yaml --only method=kdlsq,ternarybert,task=mrpc --threads 1

      qexport sweep sweep.yaml --latency --lengths 32,128

    A run that failed is written down with its reason, and the others go on; the exit code then is 3.
    """
    from qexport.sweep import runner

    if config.dry_run:
        planned = runner.plan(config)
        if json:
            console.print_json([{"key": each.run.key, "name": each.run.name, "state": each.state,
                                 "wanted": each.wanted} for each in planned])  # fmt: skip
            return
        for each in planned:
            if each.wanted:
                console.show(f"{each.state:<10} {each.run.title:<44} {_shown(each)}")
        wanted = [each for each in planned if each.wanted]
        left = sum(each.state != "done" for each in wanted)
        console.show(f"{len(wanted)} of {len(planned)} runs, {left} left to do")
        return
    if config.latency:
        timed = runner.add_latency(config, say=console.say)
        console.show(f"{timed} rows have times")
        return
    result = runner.sweep(config, say=console.say)
    if json:
        console.print_json(dataclasses.asdict(result))
        return
    console.show(f"{result.done} runs done; table: {result.table}")


def _shown(planned: object) -> str:
    from qexport.sweep.run import WITHOUT_EFFECT
    from qexport.sweep.runner import Planned

    assert isinstance(planned, Planned)
    options = {name: value for name, value in planned.run.options.items() if name not in WITHOUT_EFFECT}
    return " ".join(f"{name}={value}" for name, value in options.items())
