"""Models of one operator, and sessions that run them on the kernels or on the function bodies."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from onnx import helper

from qexport.graphs.operators import DOMAIN, OPERATORS
from qexport.graphs.operators.single import chain_model

OUTPUT_TYPES = {"q": np.uint8}
"""Of outputs that are not float32."""

OUTPUT_RANKS = {("QuantizePerTensor", "scale"): 0}
"""Ranks of outputs that differ from that of the first input."""


def one_node(
    operator: str,
    inputs: Mapping[str, np.ndarray],
    attributes: Mapping[str, int | float],
    constants: Collection[str] = (),
    *,
    opset: int = 18,
) -> bytes:
    """A model of one node named "the_node" with the operator's body in it; sizes of inputs are dynamic."""
    kind = OPERATORS[operator]
    node = helper.make_node(
        operator, list(kind.inputs), list(kind.outputs), name="the_node", domain=DOMAIN, **attributes
    )
    rank = next(iter(inputs.values())).ndim + ("Gather" in operator)
    outputs = {
        name: np.empty((1,) * OUTPUT_RANKS.get((operator, name), rank), OUTPUT_TYPES.get(name, np.float32))
        for name in kind.outputs
    }
    model = chain_model(
        [node],
        [kind],
        {name: array for name, array in inputs.items() if name not in constants},
        {name: array for name, array in inputs.items() if name in constants},
        outputs,
        opset=opset,
    )
    return bytes(model.SerializeToString())


def session(
    model: bytes | str, library: Path | None, *, optimize: bool = False, threads: int = 1
) -> ort.InferenceSession:
    """A session, with the kernel library registered unless that is None; without it the bodies run."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    levels = ort.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimize else levels.ORT_DISABLE_ALL
    if library:
        options.register_custom_ops_library(str(library))
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def run(
    model: bytes,
    inputs: Mapping[str, np.ndarray],
    library: Path | None,
    *,
    optimize: bool = False,
    threads: int = 1,
) -> dict[str, Any]:
    """Outputs by name; inputs that the model stores may be there too."""
    made = session(model, library, optimize=optimize, threads=threads)
    feed = {item.name: inputs[item.name] for item in made.get_inputs()}
    names = [item.name for item in made.get_outputs()]
    return dict(zip(names, made.run(names, feed), strict=True))


def same(a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray]) -> bool:
    """Whether all outputs are equal, bit for bit but for the kind of a NaN and the sign of a zero."""
    return a.keys() == b.keys() and all(
        a[name].dtype == b[name].dtype
        and a[name].shape == b[name].shape
        and np.array_equal(a[name], b[name], equal_nan=a[name].dtype.kind == "f")
        for name in a
    )
