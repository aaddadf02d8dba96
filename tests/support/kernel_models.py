"""Models of one operator, and sessions that run them on the kernels or on the function bodies."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from onnx import helper

from qexport.graphs.operators import DOMAIN, OPERATORS, gather_name, matmul_name
from qexport.graphs.operators.single import chain_model
from qexport.graphs.packing import pack

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


Example = tuple[dict[str, np.ndarray], dict[str, "int | float"], tuple[str, ...]]


def example(operator: str, rng: np.random.Generator) -> Example:
    """Small inputs, attributes, and the names of the inputs that a model stores, for any operator."""
    bits = {name(bits): bits for name in (matmul_name, gather_name) for bits in range(1, 9)}
    normal = partial(_normal, rng)
    if operator in bits:
        top = 1 if bits[operator] <= 2 else 2 ** (bits[operator] - 1) - 1
        codes = (rng.integers(0, 2, (19, 70)) * 2 - 1) * rng.integers(1, top + 1, (19, 70))
        packed = pack(codes.astype(np.int8), bits[operator])
        if "Gather" in operator:
            inputs = {"indices": rng.integers(0, 19, (2, 5)), "table": packed, "scale": normal(19)}
            return inputs, {"K": 70}, ("table", "scale")
        inputs = {
            "A": rng.integers(0, 256, (2, 5, 70)).astype(np.uint8), "a_scale": normal(2, 5, 1),
            "a_zero_point": np.array(128, np.uint8), "B": packed, "b_scale": normal(19), "bias": normal(19),
        }  # fmt: skip
        return inputs, {"K": 70}, ("a_zero_point", "B", "b_scale", "bias")
    if "Attention" in operator:
        inputs = {name: normal(2, 17, 24) for name in "qkv"} | {"mask": rng.random((2, 1, 1, 17)) < 0.8}
        scales = OPERATORS[operator].inputs[4:]
        inputs |= {name: np.array(0.02, np.float32) for name in scales}
        attributes: dict[str, int | float] = {
            "num_heads": 2,
            "scaling": 0.3,
            "clip": 0.0,
            "top": 7,
            "p_top": 15,
        }
        return inputs, {key: attributes[key] for key in OPERATORS[operator].attributes}, scales
    inputs = {"x": normal(2, 5, 70), "residual": normal(1, 5, 70), "gamma": normal(70), "beta": normal(70)}
    inputs["scale"] = np.array(0.02, np.float32)
    inputs = {name: inputs[name] for name in OPERATORS[operator].inputs}
    values = {"clip": 2.5, "epsilon": 1e-12}
    stored = tuple(name for name in ("gamma", "beta", "scale") if name in inputs)
    return inputs, {key: values[key] for key in OPERATORS[operator].attributes}, stored


def _normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.normal(size=shape).astype(np.float32)


def write_examples(folder: Path) -> None:
    """A model and a feed for every operator: NAME.onnx, NAME.npz."""
    rng = np.random.default_rng(0)
    for operator in OPERATORS:
        inputs, attributes, stored = example(operator, rng)
        (folder / f"{operator}.onnx").write_bytes(one_node(operator, inputs, attributes, stored))
        np.savez(folder / f"{operator}.npz", **inputs)


def feeds(count: int) -> list[dict[str, np.ndarray]]:
    """Batches for a tiny encoder: several lengths, some rows padded."""
    rng = np.random.default_rng(0)
    made = []
    for index in range(count):
        batch, length = int(rng.integers(1, 4)), int(rng.integers(1, 38))
        ids = rng.integers(4, 20, (batch, length))
        mask = np.ones_like(ids)
        mask[0, max(1, length - index) :] = 0
        made.append({"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)})
    return made
