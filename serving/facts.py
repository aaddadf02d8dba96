"""Facts about a file (bytes, hash, opset, method) and the one-sentence summary of a report."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import onnx

from qexport.errors import UnsupportedModelError
from qexport.serving.latency import LatencyCell
from qexport.serving.report import Accuracy, Drop, Engine, Model
from qexport.serving.session import model_file, read_json

__all__ = ["describe_model", "file_bytes", "headline"]


def _load(path: Path) -> onnx.ModelProto:
    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception as error:  # protobuf's DecodeError lives in a private module
        raise UnsupportedModelError(
            f"{path} is not a readable ONNX file ({error}); export it again"
        ) from error
    if not model.graph.node:
        raise UnsupportedModelError(f"{path} is not an ONNX model: its graph has no nodes; export it again")
    return model


def file_bytes(path: Path, model: onnx.ModelProto | None = None) -> int:
    """Bytes of an ONNX file and of every external data file that it names.

    Raises:
        UnsupportedModelError: not an ONNX file, or external data is missing.
    """
    model = model or _load(path)
    names = {
        entry.value
        for tensor in model.graph.initializer
        for entry in tensor.external_data
        if entry.key == "location"
    }
    total = path.stat().st_size
    for name in sorted(names):
        beside = path.parent / name
        if not beside.is_file():
            raise UnsupportedModelError(f"{path} keeps weights in {name}, which is not beside it; copy both")
        total += beside.stat().st_size
    return total


def describe_model(folder_or_file: Path) -> Model:
    """Facts of an exported folder or a bare file.

    Raises:
        UnsupportedModelError: there is no file, or it is not ONNX.
    """
    path = model_file(folder_or_file)
    model = _load(path)
    written = read_json(path.parent / "qexport.json")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    opset = next((item.version for item in model.opset_import if item.domain in ("", "ai.onnx")), None)
    method, bits = written.get("method"), written.get("bits")
    return Model(
        path=str(folder_or_file),
        file=path.name,
        file_bytes=file_bytes(path, model),
        sha256=digest,
        method=None if method is None else str(method),
        bits=None if bits is None else str(bits),
        opset=opset,
        producer=" ".join(part for part in (model.producer_name, model.producer_version) if part),
        functions=len(model.functions),
    )


def headline(
    model: Model,
    engines: Sequence[Engine],
    accuracy: Sequence[Accuracy],
    drops: Sequence[Drop],
    latency: Sequence[LatencyCell],
) -> str:
    """One sentence: size, metric, loss and speed, as far as they were measured."""
    sizes = {engine.name: engine.file_bytes for engine in engines}
    main = engines[0].name
    parts = [f"{model.file_bytes / 1e6:.1f} MB"]
    fp32 = sizes.get("fp32")
    if fp32:
        parts[0] += f" ({fp32 / model.file_bytes:.1f}x smaller than FP32)"
    first = next((item for item in accuracy if item.engine == main), None)
    if first is not None:
        best = first.metrics[0]
        parts.append(f"{best.metric} {100 * best.value:.1f} ± {50 * (best.high - best.low):.1f} %")
    for name, label in (("teacher", "its teacher"), ("fp32", "the FP32 export")):
        drop = next((item for item in drops if item.engine == main and item.against == name), None)
        if drop is not None:
            word = "below" if drop.points >= 0 else "above"
            parts.append(f"{abs(drop.points):.1f} points {word} {label}")
            break
    cell = max((cell for cell in latency if cell.engine == main), key=lambda cell: cell.length, default=None)
    if cell is not None:
        speed = f"{cell.p50_ms:.1f} ms at {cell.length} tokens"
        ratio = next((item for item in cell.ratios if item.against == "fp32"), None)
        parts.append(speed + (f" ({ratio.median:.1f}x FP32's speed)" if ratio else ""))
    return ", ".join(parts)
