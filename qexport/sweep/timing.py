"""Times of a sweep's files, all in one pass in turns, so that a busy moment hits every one of them."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qexport.errors import QexportError
from qexport.sweep.table import Row

if TYPE_CHECKING:
    import onnx

    from qexport.serving.session import Session

__all__ = ["graph_key", "time_files"]

_ENGINES = {"stock": "off", "native": "auto"}
"""Name -> mode of the kernels: ONNX Runtime alone, and with the kernel library where it fits the file."""

_SHAPE_NUMBERS = 16  # an int64 tensor of so many or fewer may be a shape or axes, which are part of the graph
_FIRST_WORD = 1000  # ids below are padding, marks and letters


def time_files(
    files: Mapping[str, tuple[Row, Path]],
    *,
    lengths: Sequence[int],
    threads: int,
    rounds: int,
    say: Callable[[str], None] = lambda line: None,
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Medians of exported files, batch 1.

    Files of the same graph are timed once, and the others get the times of the one that was. Graphs are the
    same when nothing but the values of their weights and scales differs: see `graph_key`.

    Args:
        files: key of a run -> its row and its ONNX folder.
        lengths: tokens of the text; ids are drawn at random, seeded.
        threads: inside one operator.
        rounds: each runs every file once; three more come before and do not count.
        say: told what is timed.
    Yields:
        key, what belongs into its row under "latency".
    """  # fmt: skip
    from qexport.serving.latency import interleave, run_ms

    graphs: dict[str, list[str]] = {}
    for key, (_, folder) in files.items():
        try:
            graphs.setdefault(graph_key(folder), []).append(key)
        except QexportError as error:
            say(f"not timed: {error}")
    sessions: dict[tuple[str, str], Session] = {}
    for keys in graphs.values():
        _, folder = files[keys[0]]
        for engine, mode in _ENGINES.items():
            found = _open(folder, mode, threads, say)
            if found is not None:
                sessions[keys[0], engine] = found
    medians: dict[str, dict[str, float]] = {}
    for length in lengths:
        say(f"timing {len(sessions)} sessions at {length} tokens, {rounds} rounds in turns")
        turns = {
            f"{key} {engine}": _turn(run_ms, session, length) for (key, engine), session in sessions.items()
        }
        for name, times in interleave(turns, rounds=rounds, warmup=3).items():
            key, _, engine = name.partition(" ")
            ordered = sorted(float(value) for value in times)
            medians.setdefault(key, {})[f"{length} tokens, {engine}"] = round(ordered[len(ordered) // 2], 3)
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    for keys in graphs.values():
        for key in keys:
            if keys[0] in medians:
                yield key, {
                    "median_ms": medians[keys[0]], "measured_on": files[keys[0]][0]["name"], "batch": 1,
                    "threads": threads, "rounds": rounds, "load_average": load,
                }  # fmt: skip


def graph_key(folder: Path) -> str:
    """SHA-256 of what an ONNX file computes with, all but the values of its weights and scales.

    Nodes, their attributes (a clip is one, and changes neither size nor operators), function bodies, and type
    and shape of every tensor count; so do small int64 tensors, which are shapes and axes.

    Raises:
        UnsupportedModelError: no such file, or not ONNX.
    """
    from qexport.graphs.inventory import read_model
    from qexport.graphs.tensor_roles import all_nodes

    model = read_model(folder / "model.onnx")
    model.ClearField("metadata_props")
    for tensor in model.graph.initializer:
        _strip(tensor)
    for node in all_nodes(model.graph.node):
        for attribute in node.attribute:
            if attribute.HasField("t"):
                _strip(attribute.t)
            if attribute.HasField("g"):
                for tensor in attribute.g.initializer:
                    _strip(tensor)
    return hashlib.sha256(model.SerializeToString(deterministic=True)).hexdigest()


def _strip(tensor: onnx.TensorProto) -> None:
    """Leave name, type and shape of a tensor; its values only where they may be shapes or axes."""
    import onnx

    if tensor.data_type == onnx.TensorProto.INT64 and math.prod(tensor.dims) <= _SHAPE_NUMBERS:
        return
    bare = onnx.TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
    tensor.CopyFrom(bare)


def _open(folder: Path, mode: str, threads: int, say: Callable[[str], None]) -> Session | None:
    from qexport.serving.session import Session

    try:
        return Session(folder, threads=threads, kernels=mode)
    except QexportError as error:
        say(f"not timed: {error}")
        return None


def _turn(
    run_ms: Callable[[Callable[[], object]], float], session: Session, length: int
) -> Callable[[], float]:
    import numpy as np

    words = int(session.config["vocab_size"])
    first = min(_FIRST_WORD, words // 2)
    ids = np.random.default_rng(0).integers(first, words, (1, min(length, session.position_limit)))
    return lambda: run_ms(lambda: session.run({"input_ids": ids}))
