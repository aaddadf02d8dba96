"""`qexport predict`: label and probability of some texts."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Annotated

import typer

from qexport import console
from qexport.errors import DataError, UsageError

__all__ = ["predict"]


def predict(
    model: Annotated[Path, typer.Argument(help="Folder written by to-onnx, or the .onnx file in it.")],
    texts: Annotated[list[str] | None, typer.Argument(help="Texts; none or '-' reads one a line.")] = None,
    *,
    pair: Annotated[
        list[str] | None, typer.Option("--pair", help="Second text of a pair task, once per text.")
    ] = None,
    file: Annotated[Path | None, typer.Option("--file", help="Text file, one text a line, UTF-8.")] = None,
    threads: Annotated[int, typer.Option("--threads", help="CPU threads.")] = 1,
    batch_size: Annotated[int, typer.Option("--batch-size", help="Texts per run.")] = 32,
    kernels: Annotated[
        str,
        typer.Option(
            "--kernels",
            metavar="MODE",
            help="auto: the kernel library where it fits, else stock ONNX Runtime; require: an error where "
            "it does not; off: stock ONNX Runtime.",
        ),
    ] = "auto",
    isa: Annotated[
        str | None,
        typer.Option(
            "--isa", help="Instruction set to hold the kernels to, such as avx2; default: the best."
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print every label's probability as JSON.")] = False,
) -> None:
    """Print label and probability of each text, with ONNX Runtime alone: torch is not loaded.

    Examples:

      qexport predict onnx "a fine film" "two hours of my life gone"

      qexport predict mrpc "He left." --pair "He went away."

      cat reviews.txt | qexport predict onnx - --json

      qexport predict onnx --file reviews.txt --threads 2 --kernels require
    """
    from qexport.serving.session import Session

    rows = _texts(texts or [], file)
    if pair and len(pair) != len(rows):
        raise UsageError(f"give --pair once per text, got {len(pair)} for {len(rows)} texts")
    session = Session(model, threads=threads, kernels=kernels, isa=isa, batch_size=batch_size)
    if console.is_verbose():
        console.say(session.engine.describe())
    found = session.predict(rows, pair or None)
    if json:
        console.print_json(
            [{"text": text, **dataclasses.asdict(item)} for text, item in zip(rows, found, strict=True)]
        )
        return
    for text, item in zip(rows, found, strict=True):
        number = item.probability if item.probability is not None else item.scores[item.label]
        console.show(f"{item.label:<12} {number:.4f}  {text}")


def _texts(texts: list[str], file: Path | None) -> list[str]:
    if file is not None and texts:
        raise UsageError("give the texts as arguments or by --file, not both")
    if file is not None:
        try:
            rows = file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(
                f"cannot read {file} as UTF-8 text ({error}); give a text file, one text a line"
            ) from error
    elif not texts or texts == ["-"]:
        if not texts and sys.stdin.isatty():
            raise UsageError('give at least one text: qexport predict DIR "a fine film"')
        rows = sys.stdin.read().splitlines()
    else:
        return texts
    rows = [row for row in rows if row.strip()]
    if not rows:
        raise DataError("there is no text to classify; give one a line")
    return rows
