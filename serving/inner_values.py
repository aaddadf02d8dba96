"""Inner values of a graph as outputs, to see where two engines part."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from qexport.errors import UnsupportedModelError

__all__ = ["with_outputs"]


def with_outputs(path: Path, names: Sequence[str]) -> bytes:
    """The model in `path` with inner values `names` as further graph outputs.

    Raises:
        UnsupportedModelError: the file cannot be read, or a name is not a value of the main graph.
    """
    import onnx

    try:
        model = onnx.load(str(path))
    except Exception as error:  # protobuf's DecodeError lives in a private module
        raise UnsupportedModelError(f"{path} is not a readable ONNX file ({error})") from error
    produced = {value for node in model.graph.node for value in node.output}
    missing = [name for name in names if name not in produced]
    if missing:
        raise UnsupportedModelError(
            f"{path} has no value called {missing[0]}; its layer list belongs to another file"
        )
    present = {value.name for value in model.graph.output}
    for name in names:
        if name not in present:
            model.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    return bytes(model.SerializeToString())
