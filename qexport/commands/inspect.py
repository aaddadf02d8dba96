"""`qexport inspect`: what an ONNX file stores, how, and what it weighs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qexport import console

__all__ = ["inspect"]


def inspect(
    file: Annotated[Path, typer.Argument(help="Any .onnx file, or a folder with model.onnx.")],
    *,
    tensors: Annotated[bool, typer.Option("--tensors", help="One line per stored tensor too.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the inventory as JSON on stdout.")] = False,
) -> None:
    """Show how every tensor class of an ONNX file is stored: bits per weight, bytes, share of the file.

    Examples:

      qexport inspect onnx

      qexport inspect anything.onnx --tensors
    """
    from qexport.graphs.inventory import inspect_file

    inventory = inspect_file(file)
    if json:
        console.print_json(inventory.to_json(tensors=tensors))
        return
    console.show(inventory.table())
    if tensors:
        console.show(inventory.tensor_table())
