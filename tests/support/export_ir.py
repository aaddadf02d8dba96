"""The export IR in numpy, for onnx.reference: what a graph computes before it is lowered."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

Array = npt.NDArray[Any]
FLOOR = np.float32(1.2e-32)


def codes_of(
    x: Array,
    act: str,
    clip: float,
    stored: Array | None,
    axes: int | tuple[int, ...] = -1,
    top: int = 127,
) -> tuple[Array, Array]:
    """Whole numbers in -top..top as float64, and the scale; top is for static scales."""
    if clip > 0:
        x = np.clip(x, np.float32(-clip), np.float32(clip))
    if act == "static":
        assert stored is not None
        scale = np.asarray(stored, np.float32)
    else:
        largest = np.abs(x).max() if act == "dynamic-tensor" else np.abs(x).max(axis=axes, keepdims=True)
        scale = np.maximum(np.asarray(largest, np.float32) / np.float32(127), FLOOR)
    return np.clip(np.rint(x / scale), -top, top).astype(np.float64), scale


class QuantLinear(OpRun):
    op_domain = "qexport"

    def _run(
        self,
        x: Array,
        codes: Array,
        w_scale: Array,
        bias: Array,
        a_scale: Array | None = None,
        **attributes: Any,
    ) -> tuple[Array]:
        act, clip = attributes["act"], attributes.get("clip") or 0.0
        if act == "none":
            weight = codes.astype(np.float32) * w_scale.reshape(-1, 1)
            return ((x @ weight.T + bias).astype(np.float32),)
        top = 2 ** ((attributes.get("a_bits") or 8) - 1) - 1
        a, scale = codes_of(x, act, clip, a_scale, top=top)
        acc = (a @ codes.T.astype(np.float64)).astype(np.float32)
        return (acc * w_scale * scale + bias,)


class QuantEmbedding(OpRun):
    op_domain = "qexport"

    def _run(self, ids: Array, codes: Array, scale: Array, **_: Any) -> tuple[Array]:
        return (codes[ids].astype(np.float32) * scale[ids][..., None],)


class QuantAttention(OpRun):
    op_domain = "qexport"

    def _run(
        self, q: Array, k: Array, v: Array, mask: Array, *stored: Array, **attributes: Any
    ) -> tuple[Array]:
        q_scale, k_scale, p_scale, v_scale = (*stored, None, None, None, None)[:4]
        act, clip = attributes["act"], attributes["clip"]
        scaling, quantize_p = attributes["scaling"], attributes["quantize_p"]
        top = 2 ** ((attributes.get("a_bits") or 8) - 1) - 1
        qc, qs = codes_of(q, act, clip, q_scale, top=top)
        kc, ks = codes_of(k, act, clip, k_scale, top=top)
        acc = (qc @ kc.swapaxes(-1, -2)).astype(np.float32)
        scores = acc * (ks.swapaxes(-1, -2) if ks.ndim else ks) * (qs * np.float32(scaling))
        scores = scores + np.where(mask, np.float32(0), np.float32(-10000))
        steps = np.rint((scores - scores.max(-1, keepdims=True)) * np.float32(256))
        p = np.rint(np.exp(steps / np.float32(256)) * np.float32(1117))
        total = p.sum(-1, keepdims=True)
        if not quantize_p:
            return ((p.astype(np.float64) @ v.astype(np.float64)).astype(np.float32) / total,)
        p = p / total
        pc, ps = codes_of(p, act, 0.0, p_scale, top=attributes.get("p_top") or top)
        kept = v * mask.swapaxes(-1, -2) if act == "dynamic-token" else v
        _, vs = codes_of(kept, act, clip, v_scale, axes=(-2, -1))
        bounded = np.clip(v, -clip, clip) if clip > 0 else v
        vc = np.clip(np.rint(bounded / vs), -top, top).astype(np.float64)
        return ((pc @ vc).astype(np.float32) * (ps * vs),)


def run_reference(model: onnx.ModelProto, feeds: dict[str, Array]) -> Array:
    """First output on ONNX's own evaluator; `qexport` nodes are known."""
    evaluator = ReferenceEvaluator(model, new_ops=[QuantLinear, QuantEmbedding, QuantAttention])
    return np.asarray(evaluator.run(None, feeds)[0])


def model_of(
    nodes: list[onnx.NodeProto],
    inputs: dict[str, tuple[int, list[Any]]],
    output: tuple[str, list[Any]],
    constants: dict[str, Array],
) -> ir.Model:
    """A graph of export IR and standard nodes."""
    graph = helper.make_graph(
        nodes,
        "before",
        [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in inputs.items()],
        [helper.make_tensor_value_info(output[0], onnx.TensorProto.FLOAT, output[1])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("qexport", 1)]
    return ir.serde.deserialize_model(helper.make_model(graph, opset_imports=opsets, ir_version=8))


def node(kind: str, inputs: list[str], output: str = "y", **attributes: Any) -> onnx.NodeProto:
    """An export IR node; `name` is an attribute of it, not the name of the node."""
    name = attributes.pop("name", "")
    made = helper.make_node(kind, inputs, [output], domain="qexport", **attributes)
    made.attribute.append(helper.make_attribute("name", name))
    return made
