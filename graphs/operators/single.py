"""Small models of operators of the set, for trying, measuring and testing them on a runtime."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from qexport.errors import UnknownNameError
from qexport.graphs.operators.body import DOMAIN, VERSION, Operator

__all__ = ["chain_model", "operator_model"]


def operator_model(
    operators: Mapping[str, Operator],
    name: str,
    inputs: Sequence[npt.NDArray[Any]],
    attributes: Mapping[str, int | float],
    *,
    opset: int = 18,
    constants: Collection[str] = (),
    static: bool = False,
) -> onnx.ModelProto:
    """A model of one node.

    Args:
        operators: the set.
        name: operator type.
        inputs: a value for each input; shapes and dtypes are taken from them.
        attributes: values of all attributes.
        opset: version of ai.onnx.
        constants: inputs that are stored in the model.
        static: write the sizes of the other inputs down; else they are dynamic.
    Raises:
        UnknownNameError: no such operator.
    """
    if name not in operators:
        raise UnknownNameError("operator", name, operators)
    operator = operators[name]
    results = operator.reference(*inputs, **attributes)
    node = helper.make_node(name, operator.inputs, operator.outputs, domain=DOMAIN)
    node.attribute.extend(helper.make_attribute(key, value) for key, value in attributes.items())
    values = dict(zip(operator.inputs, inputs, strict=True))
    return chain_model(
        [node],
        [operator],
        {key: value for key, value in values.items() if key not in constants},
        {key: value for key, value in values.items() if key in constants},
        dict(zip(operator.outputs, results, strict=True)),
        opset=opset,
        static=static,
    )


def chain_model(
    nodes: Sequence[onnx.NodeProto],
    operators: Sequence[Operator],
    inputs: Mapping[str, npt.NDArray[Any]],
    constants: Mapping[str, npt.NDArray[Any]],
    outputs: Mapping[str, npt.NDArray[Any]],
    *,
    opset: int = 18,
    static: bool = False,
) -> onnx.ModelProto:
    """A checked model of some nodes; inputs and outputs are described by example arrays."""
    graph = helper.make_graph(
        list(nodes),
        "operators",
        [_value(name, array, static) for name, array in inputs.items()],
        [_value(name, array, static) for name, array in outputs.items()],
        [
            numpy_helper.from_array(np.ascontiguousarray(array).reshape(array.shape), name)
            for name, array in constants.items()
        ],
    )
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", opset), helper.make_opsetid(DOMAIN, VERSION)],
        ir_version=8 if opset < 21 else 10,
        functions=[operator.function(opset) for operator in operators],
        producer_name="qexport",
    )
    onnx.checker.check_model(model, full_check=True)
    return model


def _value(name: str, array: npt.NDArray[Any], static: bool) -> onnx.ValueInfoProto:
    kind = helper.np_dtype_to_tensor_dtype(array.dtype)
    return helper.make_tensor_value_info(name, kind, array.shape if static else [None] * array.ndim)
