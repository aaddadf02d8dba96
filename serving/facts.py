"""Facts about a file (bytes, hash, opset, method) and the one-sentence summary of a report."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path

from qexport.graphs.inventory import inspect_file
from qexport.serving.latency import LatencyCell
from qexport.serving.report import Accuracy, Drop, Engine, Model
from qexport.serving.session import model_file, read_json
from qexport.serving.terminal import megabytes

__all__ = ["describe_model", "file_bytes", "headline"]


def file_bytes(path: Path) -> int:
    """Bytes of an ONNX file and of the external data that it names.

    Raises:
        UnsupportedModelError: not an ONNX file, or external data is missing.
    """
    return inspect_file(path).total_bytes


def describe_model(folder_or_file: Path) -> Model:
    """Facts of an exported folder or a bare file.

    Raises:
        UnsupportedModelError: there is no file, or it is not ONNX.
    """
    path = model_file(folder_or_file)
    inventory = inspect_file(path)
    written = read_json(path.parent / "qexport.json")
    method, bits = written.get("method"), written.get("bits")
    return Model(
        path=str(folder_or_file),
        file=path.name,
        file_bytes=inventory.total_bytes,
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        method=None if method is None else str(method),
        bits=None if bits is None else str(bits),
        opset=inventory.opset or None,
        producer=inventory.producer,
        functions=len(inventory.functions),
        tensors=[dataclasses.asdict(row) for row in inventory.rows],
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
    parts = [f"{megabytes(model.file_bytes)} MB"]
    fp32 = sizes.get("fp32")
    if fp32:
        parts[0] += f" ({fp32 / model.file_bytes:.1f}x smaller than FP32)"
    first = next((item for item in accuracy if item.engine == main), None)
    if first is not None:
        best = first.metrics[0]
        parts.append(f"{best.metric} {100 * best.value:.1f} % [{100 * best.low:.1f}, {100 * best.high:.1f}]")
    for name, label in (("teacher", "its teacher"), ("fp32", "the FP32 export")):
        drop = next((item for item in drops if item.engine == main and item.against == name), None)
        if drop is not None:
            word = "below" if drop.points >= 0 else "above"
            parts.append(f"{abs(drop.points):.2f} points {word} {label}")
            break
    cell = max((cell for cell in latency if cell.engine == main), key=lambda cell: cell.length, default=None)
    if cell is not None:
        speed = f"{cell.p50_ms:.1f} ms at {cell.length} tokens"
        if engines[0].isa is not None:
            speed += f" on {engines[0].isa} kernels"
        others = {"fp32": "FP32", "int8": "ORT int8", "stock": "stock ONNX Runtime"}
        ratios = {item.against: item.median for item in cell.ratios}
        faster = [
            f"{ratios[name]:.1f}x as fast as {label}" for name, label in others.items() if name in ratios
        ]
        parts.append(speed + (f" ({', '.join(faster)})" if faster else ""))
    return ", ".join(parts)
