"""A small writer of ONNX function bodies, and the record that an operator of `ai.qexport` is kept in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from qexport.errors import UsageError

__all__ = ["DOMAIN", "MAX_OPSET", "MIN_OPSET", "VERSION", "Body", "Operator"]

DOMAIN = "ai.qexport"
"""Operator domain of every function."""

VERSION = 2
"""Version of the operator set; bodies may get faster within a version, results may not change."""

MIN_OPSET = 17
"""The oldest ai.onnx operator set that bodies are written for."""

MAX_OPSET = 21
"""The newest one."""

Reference = Callable[..., "tuple[npt.NDArray[Any], ...]"]


@dataclass(frozen=True, slots=True)
class Operator:
    """One operator of the set."""

    name: str
    """Operator type, as written in a node."""
    inputs: tuple[str, ...]
    """Input names in order; all are required."""
    outputs: tuple[str, ...]
    """Output names in order."""
    attributes: tuple[str, ...]
    """Attribute names; all are required."""
    build: Callable[[Body], None]
    """Writes the body."""
    reference: Reference
    """The numpy definition: arrays in input order, attributes by keyword, a tuple of outputs."""
    doc: str
    """One paragraph."""

    def function(self, opset: int = 18) -> onnx.FunctionProto:
        """The operator as a model-local function.

        Args:
            opset: version of ai.onnx that the model imports, MIN_OPSET..MAX_OPSET.
        Raises:
            UsageError: no body for that version.
        """
        if not MIN_OPSET <= opset <= MAX_OPSET:
            raise UsageError(
                f"function bodies are written for opset {MIN_OPSET} to {MAX_OPSET}, got {opset}; "
                "pass --opset 18"
            )
        body = Body(opset)
        self.build(body)
        return helper.make_function(
            DOMAIN,
            self.name,
            list(self.inputs),
            list(self.outputs),
            body.nodes,
            [helper.make_opsetid("", opset)],
            list(self.attributes),
            doc_string=self.doc,
        )


class Body:
    """Collects the nodes of a function; every method returns the name of a new value."""

    def __init__(self, opset: int) -> None:
        self.opset = opset
        self.nodes: list[onnx.NodeProto] = []
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._attributes: dict[str, str] = {}
        self._count = 0

    def node(self, op_type: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        """Append a node of one output."""
        if not output:
            self._count += 1
            output = f"{op_type.lower()}_{self._count}"
        self.nodes.append(helper.make_node(op_type, list(inputs), [output], name=output, **attributes))
        return output

    def constant(self, value: npt.ArrayLike, dtype: npt.DTypeLike) -> str:
        """A tensor; the same tensor is written once."""
        array = np.asarray(value, dtype)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            self._constants[key] = self.node("Constant", value=numpy_helper.from_array(array))
        return self._constants[key]

    def integer(self, name: str) -> str:
        """The function's integer attribute `name` as int64 [1]."""
        if name not in self._attributes:
            scalar = self._reference(name, "value_int", onnx.AttributeProto.INT)
            self._attributes[name] = self.node("Reshape", scalar, self.constant([1], np.int64))
        return self._attributes[name]

    def number(self, name: str) -> str:
        """The function's float attribute `name` as a float32 scalar."""
        if name not in self._attributes:
            self._attributes[name] = self._reference(name, "value_float", onnx.AttributeProto.FLOAT)
        return self._attributes[name]

    def forward_number(self, name: str) -> None:
        """Give the last node the function's float attribute `name` under the same name."""
        kind = onnx.AttributeProto.FLOAT
        self.nodes[-1].attribute.append(onnx.AttributeProto(name=name, ref_attr_name=name, type=kind))

    def _reference(self, name: str, field: str, kind: onnx.AttributeProto.AttributeType) -> str:
        output = self.node("Constant")
        self.nodes[-1].attribute.append(onnx.AttributeProto(name=field, ref_attr_name=name, type=kind))
        return output

    def reduce(self, op_type: str, x: str, axes: Sequence[int] | None, *, keepdims: bool) -> str:
        """ReduceMax, ReduceMin or ReduceMean, over all axes for None.

        The axes are an attribute before opset 18 and an input from then on.
        """
        if axes is None:
            return self.node(op_type, x, keepdims=int(keepdims))
        if self.opset < 18:
            return self.node(op_type, x, keepdims=int(keepdims), axes=list(axes))
        return self.node(op_type, x, self.constant(list(axes), np.int64), keepdims=int(keepdims))

    def largest_magnitude(self, x: str, axes: Sequence[int] | None, *, keepdims: bool) -> str:
        """max |x|, as the larger of max x and -min x: no tensor of the size of x in between."""
        high = self.reduce("ReduceMax", x, axes, keepdims=keepdims)
        low = self.node("Neg", self.reduce("ReduceMin", x, axes, keepdims=keepdims))
        return self.node("Max", high, low)
