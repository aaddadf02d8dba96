"""`qexport predict`: what an exported model says about some texts."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qexport import console
from qexport.atomic import atomic_write_bytes
from qexport.errors import DataError, UsageError

if TYPE_CHECKING:
    from qexport.serving.kinds.span import Answer
    from qexport.serving.session import Session

__all__ = ["predict"]


def predict(
    model: Annotated[Path, typer.Argument(help="Folder written by to-onnx, or the .onnx file in it.")],
    texts: Annotated[list[str] | None, typer.Argument(help="Texts; none or '-' reads one a line.")] = None,
    *,
    pair: Annotated[
        list[str] | None, typer.Option("--pair", help="Second text of a pair task, once per text.")
    ] = None,
    question: Annotated[
        str | None,
        typer.Option("--question", help="Question about --context, of a model that answers."),
    ] = None,
    context: Annotated[
        str | None, typer.Option("--context", help="Text with the answer; or give it as --file.")
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option("--file", help="Text file, UTF-8: one text a line, or the context of --question."),
    ] = None,
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
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Write sentence embeddings to this .npy file, not as JSON."),
    ] = None,
    json: Annotated[
        bool, typer.Option("--json", help="Print JSON: every label's probability, or every entity.")
    ] = False,
) -> None:
    """Print what a model says about each text, with ONNX Runtime alone: torch is not loaded.

    A classifier: label and probability. A token classifier: the entities with their places. A sentence
    encoder: the embedding, as JSON or .npy.

    Examples:

      qexport predict onnx "a fine film" "two hours of my life gone"

      qexport predict mrpc "He left." --pair "He went away."

      cat reviews.txt | qexport predict onnx - --json

      qexport predict onnx --file reviews.txt --threads 2 --kernels require

      qexport predict squad --question "Who wrote it?" --context "It was written by Ada in 1843."

      qexport predict ner-onnx "Ann Lee lives in Berlin." --json

      qexport predict minilm-onnx --file sentences.txt --output vectors.npy
    """
    from qexport.serving.session import Session

    if question is not None or context is not None:
        if question is None or (context is None) == (file is None) or texts or pair:
            raise UsageError("a question needs --question and one of --context and --file, and nothing else")
        text = _read(file) if context is None and file is not None else context or ""
        session = Session(model, threads=threads, kernels=kernels, isa=isa, batch_size=batch_size)
        if console.is_verbose():
            console.say(session.engine.describe())
        _show_answer(session.answer(question, text), question, json)
        return
    rows = _texts(texts or [], file)
    if pair and len(pair) != len(rows):
        raise UsageError(f"give --pair once per text, got {len(pair)} for {len(rows)} texts")
    session = Session(model, threads=threads, kernels=kernels, isa=isa, batch_size=batch_size)
    if console.is_verbose():
        console.say(session.engine.describe())
    if session.kind.name in ("tokens", "embedding"):
        if pair:
            raise UsageError(f"--pair has no meaning for a {session.kind.title} model; leave it out")
        if session.kind.name == "tokens":
            _show_entities(session, rows, json=json)
        else:
            _show_embeddings(session, rows, output)
        return
    if output is not None:
        raise UsageError(f"--output is for sentence embeddings, this is a {session.kind.title} model")
    found = session.predict(rows, pair or None)
    if json:
        console.print_json(
            [{"text": text, **dataclasses.asdict(item)} for text, item in zip(rows, found, strict=True)]
        )
        return
    for text, item in zip(rows, found, strict=True):
        number = item.probability if item.probability is not None else item.scores[item.label]
        console.show(f"{item.label:<12} {number:.4f}  {text}")


def _show_answer(found: Answer, question: str, json: bool) -> None:
    if json:
        console.print_json({"question": question, **dataclasses.asdict(found)})
    elif found.start is None:
        console.show(f"no answer in this text  {found.score:.4f}")
    else:
        console.show(f"{found.text}  {found.score:.4f}  characters {found.start} to {found.end}")


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {file} as UTF-8 text ({error}); give a text file") from error


def _show_entities(session: Session, rows: list[str], *, json: bool) -> None:
    """The entities of each text, a line for each, or JSON."""
    found = session.entities(rows)
    if json:
        console.print_json(
            [
                {"text": text, "entities": [dataclasses.asdict(entity) for entity in entities]}
                for text, entities in zip(rows, found, strict=True)
            ]
        )
        return
    for text, entities in zip(rows, found, strict=True):
        console.show(text)
        for entity in entities:
            where = f"{entity.start}-{entity.end}"
            console.show(f"  {entity.label:<10} {entity.score:.4f}  {where:<9} {entity.text}")


def _show_embeddings(session: Session, rows: list[str], output: Path | None) -> None:
    """The embedding of each text as JSON, or all of them in a .npy file."""
    found = session.embed(rows)
    if output is None:
        console.print_json(
            [{"text": text, "embedding": vector.tolist()} for text, vector in zip(rows, found, strict=True)]
        )
        return
    import io

    import numpy as np

    if output.suffix != ".npy":
        raise UsageError(f"--output must end in .npy, got {output}; leave it out for JSON")
    content = io.BytesIO()
    np.save(content, found)
    atomic_write_bytes(output, content.getvalue())
    console.say(f"{output}: float32 [{found.shape[0]}, {found.shape[1]}]")


def _texts(texts: list[str], file: Path | None) -> list[str]:
    if file is not None and texts:
        raise UsageError("give the texts as arguments or by --file, not both")
    if file is not None:
        rows = _read(file).splitlines()
    elif not texts or texts == ["-"]:
        if not texts and sys.stdin.isatty():
            raise UsageError('give at least one text: qexport predict DIR "a fine film"')
        rows = sys.stdin.read().splitlines()
    else:
        return texts
    rows = [row for row in rows if row.strip()]
    if not rows:
        raise DataError("there is no text; give one a line")
    return rows
