"""`qexport bundle`: model, tokenizer, kernel library and a sample program for one platform, in one folder."""

from __future__ import annotations

from typing import Annotated

import typer

from qexport import console
from qexport.options import Option, takes_config
from qexport.serving.bundle.config import BundleConfig

__all__ = ["bundle"]

OPTIONS = {
    "model": Option(argument=True, metavar="FOLDER"),
    "target": Option(("--target", "-t")),
    "output": Option(("--output", "-o")),
}


@takes_config(BundleConfig, OPTIONS)
def bundle(
    config: BundleConfig,
    *,
    json: Annotated[bool, typer.Option("--json", help="Print what was written as JSON on stdout.")] = False,
) -> None:
    """Hand an exported folder over to an app: model, tokenizer, kernel library, a sample that runs, licences.

    The kernel library is compiled for the target with the package ziglang (extra bundle of qexport).

    Examples:

      qexport bundle onnx --target android --output android-app

      qexport bundle onnx --target web -o page && python -m http.server --directory page

      qexport bundle onnx --target linux-arm64 -o box
    """
    from qexport.serving.bundle.contents import bundle as run

    result = run(config, report=console.say)
    if json:
        console.print_json(result.to_json())
    else:
        console.show(result.summary())
