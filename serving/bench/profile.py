"""Where the time of a file goes: ONNX Runtime's own profile, summed up by operator, against the roofline."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qexport.serving.bench.roofline import Roofline

__all__ = ["OperatorTime", "Profile", "node_macs", "read_profile"]

_BYTES = {
    "bool": 1, "uint8": 1, "int8": 1, "uint16": 2, "int16": 2, "uint32": 4, "int32": 4, "uint64": 8,
    "int64": 8, "bfloat16": 2, "float16": 2, "float": 4, "double": 8,
}  # fmt: skip
_PRODUCTS = ("MatMul", "Gemm", "MatMulInteger", "MatMulIntegerToFloat")

Shapes = Sequence[tuple[str, tuple[int, ...]]]
"""(dtype, shape) of each input or output of a node."""


@dataclass(frozen=True, slots=True)
class OperatorTime:
    """All nodes of one operator type."""

    operator: str
    """Type of the node as it ran, after ONNX Runtime's own fusions."""
    nodes: int
    """Nodes of that type."""
    ms: float
    """Milliseconds in a run, median over the runs."""
    share: float
    """Part of the time of all nodes."""
    macs: int
    """Multiply-accumulates in a run; 0 for an operator that is no product."""
    n_bytes: int
    """Bytes of all inputs and outputs in a run that ONNX Runtime tells: weights as they are in the file, and
    none that it repacked itself."""
    peak_share: float | None
    """Multiply-accumulates a second over the peak of the core; null without the kernel library."""
    copy_share: float | None
    """Bytes a second over those of a copy; above 1 where the caches deliver."""
    roofline_share: float | None
    """Least time by the roofline over the time taken; null without the kernel library."""


@dataclass(frozen=True, slots=True)
class Profile:
    """One engine at one length, as ONNX Runtime's profiler saw it."""

    engine: str
    """Name of the engine."""
    length: int
    """Tokens per text."""
    batch_size: int
    """Texts per run."""
    threads: int
    """Threads inside one operator."""
    runs: int
    """Runs that were summed up."""
    run_ms: float
    """Median of a whole run, profiler on."""
    nodes_ms: float
    """Sum of `ms` over the operators; the rest of a run is ONNX Runtime between the nodes."""
    operators: list[OperatorTime]
    """By time, the longest first."""


def node_macs(operator: str, inputs: Shapes, outputs: Shapes) -> int:
    """Multiply-accumulates of one node; 0 when it is no matrix product.

    Args:
        operator: type of the node.
        inputs: of the node, in order.
        outputs: of the node, in order.
    """
    if not inputs or not outputs:
        return 0
    first = inputs[0][1]
    if operator.startswith("QuantizedAttention"):
        return 2 * math.prod(first) * first[-2] if len(first) >= 2 else 0  # q [B, S, H*D]: Q K^T and P V
    if operator.endswith(_PRODUCTS) and first:
        return math.prod(outputs[0][1]) * first[-1]
    return 0


def _shapes(listed: Sequence[Mapping[str, Sequence[int]]]) -> Shapes:
    return [(dtype, tuple(shape)) for entry in listed for dtype, shape in entry.items()]


def _n_bytes(shapes: Shapes) -> int:
    return sum(_BYTES.get(dtype, 4) * math.prod(shape) for dtype, shape in shapes)


def read_profile(
    path: Path,
    *,
    engine: str,
    length: int,
    batch_size: int,
    threads: int,
    skip: int,
    roofline: Roofline | None,
) -> Profile:
    """Sum up the file that ONNX Runtime's profiler wrote.

    Args:
        path: JSON list of events; times in microseconds.
        engine: name of the engine.
        length: tokens per text.
        batch_size: texts per run.
        threads: threads inside one operator.
        skip: first runs that do not count.
        roofline: what the core can do; None leaves the shares out.
    """
    events: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    runs = [event for event in events if event.get("name") == "model_run"][skip:]
    times: dict[str, list[float]] = defaultdict(lambda: [0.0] * len(runs))
    nodes: dict[str, dict[str, tuple[int, int]]] = defaultdict(dict)
    for event in events:
        place = event.get("args", {})
        if event.get("cat") != "Node" or not str(event.get("name", "")).endswith("_kernel_time"):
            continue
        index = next(
            (index for index, run in enumerate(runs) if run["ts"] <= event["ts"] <= run["ts"] + run["dur"]),
            None,
        )
        if index is None:
            continue
        operator = str(place["op_name"])
        times[operator][index] += event["dur"] / 1e3
        inputs = _shapes(place.get("input_type_shape", []))
        outputs = _shapes(place.get("output_type_shape", []))
        work = node_macs(operator, inputs, outputs), _n_bytes(inputs) + _n_bytes(outputs)
        nodes[operator][str(event["name"])] = work
    nodes_ms = sum(float(np.median(taken)) for taken in times.values())
    found = []
    for operator, taken in times.items():
        ms = float(np.median(taken))
        macs = sum(work[0] for work in nodes[operator].values())
        n_bytes = sum(work[1] for work in nodes[operator].values())
        known = roofline is not None and ms > 0
        found.append(
            OperatorTime(
                operator=operator, nodes=len(nodes[operator]), ms=ms,
                share=ms / nodes_ms if nodes_ms else 0.0, macs=macs, n_bytes=n_bytes,
                peak_share=1e3 * macs / ms / (roofline.macs_per_s * threads) if roofline and known else None,
                copy_share=1e3 * n_bytes / ms / roofline.copy_bytes_per_s if roofline and known else None,
                roofline_share=roofline.bound_ms(macs, n_bytes, threads) / ms if roofline and known else None,
            )
        )  # fmt: skip
    found.sort(key=lambda row: -row.ms)
    run_ms = float(np.median([run["dur"] / 1e3 for run in runs])) if runs else 0.0
    return Profile(engine, length, batch_size, threads, len(runs), run_ms, nodes_ms, found)
