"""`qexport kernels`: the kernel library of this installation, and libraries for other machines."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from qexport import console

__all__ = ["build", "kernels"]

_JSON = Annotated[bool, typer.Option("--json", help="Print as JSON on stdout.")]


def kernels(context: typer.Context, *, json: _JSON = False) -> None:
    """Show the kernel library: where it is, what this processor can run, what it will run; or build one.

    QEXPORT_ISA forces an instruction set, QEXPORT_KERNELS names another library.

    Examples:

      qexport kernels

      QEXPORT_ISA=avx2 qexport kernels --json

      qexport kernels build --target aarch64-linux-android --output android
    """
    if context.invoked_subcommand is not None:
        return
    facts = _facts()
    if json:
        console.print_json(facts)
        return
    from rich.table import Table

    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in facts.items():
        text = ", ".join(value) if isinstance(value, list) else str(value or "")
        table.add_row(name.replace("_", " "), text or "none")
    console.show(table)


def _facts() -> dict[str, Any]:
    """What `qexport kernels --json` prints.

    Raises:
        EnvironmentProblem: there is a library that cannot be used, or the processor lacks $QEXPORT_ISA.
        UnknownNameError: $QEXPORT_ISA is no instruction set.
    """
    import onnxruntime

    from qexport.serving.kernels import Kernels, library_path
    from qexport.serving.kernels.crossbuild import TARGETS
    from qexport.serving.machine import environment

    machine = environment()
    facts: dict[str, Any] = {
        "library": None,
        "version": None,
        "isa": None,
        "supported_isas": [],
        "forced_isa": os.environ.get("QEXPORT_ISA") or None,
        "cpu": machine.cpu,
        "architecture": machine.architecture,
        "features": machine.flags,
        "onnxruntime": onnxruntime.__version__,
        "targets": list(TARGETS),
    }
    path = library_path()
    if path is None:
        console.say(
            "this installation has no kernel library, every file runs on stock ONNX Runtime; install again "
            "where it can be compiled, or build one with: qexport kernels build --target host --output DIR"
        )
        return facts
    library = Kernels(path)
    if facts["forced_isa"]:
        library.set_isa(facts["forced_isa"])
    facts |= {
        "library": str(path),
        "version": library.version,
        "isa": library.isa,
        "supported_isas": list(library.supported_isas),
    }
    return facts


def build(
    *,
    target: Annotated[
        str, typer.Option("--target", "-t", help="One that `qexport kernels` lists, or host: this machine.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder that the library is written into.")],
    force: Annotated[bool, typer.Option("--force", help="Replace a library that is there.")] = False,
    json: _JSON = False,
) -> None:
    """Compile the kernel library for another machine, or for this one, with the package ziglang.

    Needs no SDK of the target; the compiler comes with the extra bundle of qexport. The result is checked:
    its processor, its size, its symbols, and that it needs no other library (on macOS none but libSystem).

    Examples:

      qexport kernels build --target aarch64-linux-android --output app/src/main/jniLibs/arm64-v8a

      qexport kernels build --target x86_64-windows -o windows
    """
    from qexport.serving.kernels.crossbuild import build as run
    from qexport.serving.kernels.crossbuild import find_target

    built = run(find_target(target), output, force=force, report=console.say)
    if json:
        console.print_json(
            {
                "target": built.target,
                "path": str(built.path),
                "bytes": built.n_bytes,
                "needs": list(built.needs),
                "seconds": round(built.seconds, 3),
            }
        )
        return
    needs = f"needs {', '.join(built.needs)}" if built.needs else "needs no other library"
    console.show(f"{built.path}: {built.target}, {built.n_bytes / 1000:.0f} kB, {needs}")
