"""ONNX Runtime's own mobile tools on one file, and what their answers mean.

Two tools of the installed onnxruntime are run as they are: `check_onnx_model_mobile_usability` says which
nodes a phone's accelerators could take, `convert_onnx_models_to_ort` writes the ORT format that a reduced
build of ONNX Runtime reads. The converted file is run, with and without the kernel library.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from qexport.errors import QexportError
from qexport.serving.evaluate import EvalRows, evaluate
from qexport.serving.native import has_operators, library_problem
from qexport.serving.session import Session

__all__ = ["MobileCheck", "MobileProvider", "OrtFormat", "explain", "mobile_check", "read_usability"]

_SECONDS = 900
_ROWS = 64


@dataclass(frozen=True, slots=True)
class MobileProvider:
    """What the usability checker says about one accelerator of a phone."""

    name: str
    """NNAPI (Android), CoreML NeuralNetwork, CoreML MLProgram (iOS)."""
    nodes: int
    """Nodes of the graph, functions written in place."""
    supported: int
    """Of them, those that it could take if the input shapes were fixed, else as they are."""
    partitions: int
    """Pieces that those nodes fall into; each costs a way there and back."""
    as_is: str
    """ "yes", "maybe" or "no": whether it should help with this file."""
    fixed_shapes: str
    """The same for the file with fixed input shapes; as `as_is` where the tool did not ask."""
    unsupported: list[str]
    """Operators that it lacks."""


@dataclass(frozen=True, slots=True)
class OrtFormat:
    """The file in the ORT format, converted and run."""

    engine: str
    """ "stock", or "native": converted and run with the kernel library."""
    file_bytes: int | None
    """Its size; null when the conversion failed."""
    rows: int
    """Rows compared with the ONNX file on the same engine."""
    same: int
    """Rows with the same largest logit; of models that do not classify, rows that differ by 0.001 at most."""
    max_abs: float | None
    """Largest logit difference; null when it did not run."""
    problem: str
    """Why it was not converted or did not run; empty when it did."""


@dataclass(frozen=True, slots=True)
class MobileCheck:
    """The answers of ONNX Runtime's mobile tools, and what they mean."""

    onnxruntime: str
    """Version that the tools came with."""
    providers: list[MobileProvider]
    """One for each accelerator that the usability checker knows."""
    ort_format: list[OrtFormat]
    """The converted file, on stock ONNX Runtime and, where it fits, on the kernels."""
    advice: list[str] = field(default_factory=list)
    """What follows from it, one sentence each."""


def mobile_check(
    model: Path, rows: EvalRows, *, say: Callable[[str], None] = lambda line: None
) -> MobileCheck:
    """Run the tools on an .onnx file.

    Args:
        model: the file.
        rows: the first of them are run on the converted file.
        say: takes one line per step.
    """
    import onnxruntime

    say("mobile: ONNX Runtime's usability checker")
    done = _tool("check_onnx_model_mobile_usability", "--log_level", "info", str(model))
    providers = read_usability(done.stdout + done.stderr)
    formats = [_ort_format("stock", model, rows, say)]
    if has_operators(model) and library_problem() is None:
        formats.append(_ort_format("native", model, rows, say))
    advice = explain(model.stat().st_size, providers, formats)
    if not providers:
        advice.insert(0, f"The usability checker gave no answer ({_last_line(done.stdout + done.stderr)}).")
    return MobileCheck(onnxruntime.__version__, providers, formats, advice)


def read_usability(text: str) -> list[MobileProvider]:
    """The providers in what the usability checker prints; [] where none is found."""
    found: list[MobileProvider] = []
    for name in re.findall(r"Checking ((?:NNAPI|CoreML)[\w ]*)$", text, re.MULTILINE):
        escaped = re.escape(name)
        part = text[text.index(f"Checking {name}\n") :]
        counts = re.findall(
            rf"(\d+) partitions with a total of (\d+)/(\d+) nodes can be handled by the {escaped} EP",
            part,
        )
        sentence = rf"Model should perform well with {escaped} (as is|if modified).*: (\w+)"
        verdicts = dict(re.findall(sentence, part))
        if not counts or "as is" not in verdicts:
            continue
        operators = re.search(r"Unsupported ops: (.*)", part)
        partitions, supported, nodes = map(int, counts[-1] if len(counts) > 1 else counts[0])
        as_is = verdicts["as is"].lower()
        names = operators.group(1).replace("ai.onnx:", "").split(",") if operators else []
        fixed = verdicts.get("if modified", as_is).lower()
        found.append(MobileProvider(name, nodes, supported, partitions, as_is, fixed, names))
    return found


def explain(file_bytes: int, providers: list[MobileProvider], formats: list[OrtFormat]) -> list[str]:
    """What the answers mean for an app, one sentence each."""
    said = []
    helpful = [item.name for item in providers if "no" not in (item.as_is, item.fixed_shapes)]
    if helpful:
        said.append(f"{' and '.join(helpful)} may help: compare it with the CPU provider on a phone.")
    elif providers:
        said.append(
            "Run it on ONNX Runtime's CPU provider, the default on phones: the accelerators would take the "
            "graph in pieces, and the way there and back costs more than it saves."
        )
    for item in formats:
        if item.problem:
            said.append(f"ORT format, {item.engine}: {item.problem}.")
        elif item.file_bytes is not None and item.file_bytes > 1.2 * file_bytes:
            said.append(
                f"ORT format, {item.engine}: {item.file_bytes / 1e6:.1f} MB against {file_bytes / 1e6:.1f} "
                "MB, because the conversion unpacks the weights and stores the result; ship the .onnx file "
                "unless your build of ONNX Runtime reads the ORT format only."
            )
        elif item.file_bytes is not None:
            where = "; it runs only where the kernel library is registered" * (item.engine == "native")
            said.append(f"ORT format, {item.engine}: {item.file_bytes / 1e6:.1f} MB, weights packed{where}.")
    return said


def _tool(name: str, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", f"onnxruntime.tools.{name}", *words]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 1, "", f"{name} did not finish in {_SECONDS} s")


def _ort_format(engine: str, model: Path, rows: EvalRows, say: Callable[[str], None]) -> OrtFormat:
    """Convert the file and compare it with the ONNX file on the same engine."""
    from qexport.serving.kernels import library_path

    say(f"mobile: ORT format, {engine}")
    words = [str(model), "--optimization_style", "Fixed"]
    if engine == "native":
        words += ["--custom_op_library", str(library_path())]
    with tempfile.TemporaryDirectory(prefix="qexport-mobile-") as scratch:
        done = _tool("convert_onnx_models_to_ort", *words, "--output_dir", scratch)
        path = next(Path(scratch).rglob("*.ort"), None)
        if path is None:
            problem = f"not converted ({_last_line(done.stdout + done.stderr)})"
            return OrtFormat(engine, None, 0, 0, None, problem)
        size = path.stat().st_size
        for name in ("config.json", "qexport.json"):
            if (model.parent / name).is_file():
                (Path(scratch) / name).write_bytes((model.parent / name).read_bytes())
        kernels = "require" if engine == "native" else "off"
        try:
            wanted, _ = evaluate(Session(model, kernels=kernels), rows, max_rows=_ROWS)
            found, _ = evaluate(Session(path, kernels=kernels), rows, max_rows=_ROWS)
        except QexportError as error:
            return OrtFormat(engine, size, 0, 0, None, f"converted, but it does not run ({error})")
    apart = np.abs(found - wanted).reshape(len(found), -1).max(axis=1)
    if rows.kind == "classification":
        same = int((found.argmax(-1) == wanted.argmax(-1)).sum())
    else:
        same = int((apart <= 1e-3).sum())
    return OrtFormat(engine, size, len(found), same, float(apart.max()), "")


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:200] if lines else "no message"
