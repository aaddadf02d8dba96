"""`qexport to-onnx`: one trained folder becomes one small ONNX file."""

from __future__ import annotations

from typing import Annotated

import typer

from qexport import console
from qexport.graphs.config import ExportConfig
from qexport.options import Option, takes_config

__all__ = ["to_onnx"]

OPTIONS = {
    "model": Option(argument=True, metavar="STUDENT"),
    "output": Option(("--output", "-o"), also_positional=True),
}


@takes_config(ExportConfig, OPTIONS)
def to_onnx(
    config: ExportConfig,
    *,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")] = False,
) -> None:
    """Export a trained folder to one ONNX file with packed weights, check it, and compare it with PyTorch.

    Examples:

      qexport to-onnx student --output onnx

      qexport to-onnx teacher teacher-onnx

      qexport to-onnx student -o old --min-ort 1.16

      qexport to-onnx student -o app --with-tokenizer
    """
    from qexport.graphs.export import to_onnx as run

    result = run(config, report=console.say)
    if json:
        console.print_json(result.to_json())
    else:
        console.show(result.inventory.table(), result.summary())
