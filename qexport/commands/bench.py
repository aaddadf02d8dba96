"""`qexport bench`: an exported folder against other engines, in turns, on this machine."""

from __future__ import annotations

from typing import Annotated

import typer

from qexport import console
from qexport.options import Option, takes_config
from qexport.serving.bench.config import BenchConfig

__all__ = ["bench"]

OPTIONS = {
    "model": Option(argument=True, metavar="FOLDER"),
    "engines": Option(comma=True),
    "against": Option(comma=True),
    "isa": Option(comma=True),
    "output": Option(("--output", "-o")),
    "lengths": Option(comma=True),
    "batch_sizes": Option(("--batch-sizes", "--batch-size"), comma=True),
    "threads": Option(comma=True),
    "matmul": Option(comma=True),
}

PANELS = {
    "Engines": ("engines", "against", "isa", "fp32"),
    "Cells": ("lengths", "batch_sizes", "threads"),
    "Timing": ("rounds", "warmup", "repeats", "pin", "seed"),
    "Further measurements": ("profile", "matmul", "matmul_bits"),
}


@takes_config(BenchConfig, OPTIONS, panels=PANELS)
def bench(
    config: BenchConfig,
    *,
    json: Annotated[bool, typer.Option("--json", help="Print the report as JSON on stdout.")] = False,
) -> None:
    """Time an exported folder against other engines, each in a process of its own, in turns.

    Examples:

      qexport bench onnx --against fp32,int8,openvino

      qexport bench onnx --against openvino --isa avx2 --lengths 16,128 --threads 1

      qexport bench onnx --engines stock --profile

      qexport bench onnx --matmul 1x768x768,128x768x3072
    """
    from qexport.benchmarking import bench_folder
    from qexport.serving.bench.terminal import print_report

    with console.progress() as progress:
        report = bench_folder(config, command=console.command_line(), say=console.say, progress=progress)
    if json:
        console.print_json(report.to_dict())
        return
    print_report(report, console.results())
    console.show(f"report: {config.folder / 'bench.html'}")
