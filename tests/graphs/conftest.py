"""Fixtures of the graph tests."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import onnx
import onnx_ir as ir
import pytest

if TYPE_CHECKING:
    from qexport.graphs.export_modules import ExportWrapper


PLAIN = (str, int, float, bool, tuple, type(None))


@pytest.fixture(scope="session")
def trace_once() -> Iterator[None]:
    """torch.onnx takes seconds and depends on modules, weights and opset only: run it once for each."""
    from qexport.graphs import export

    traces: dict[tuple[int, str], bytes] = {}
    trace = export._trace

    def cached(wrapper: ExportWrapper, opset: int) -> ir.Model:
        digest = hashlib.sha256(repr(wrapper).encode())
        for name, module in wrapper.named_modules():  # what repr leaves out: how activations are quantised
            plain = {key: value for key, value in vars(module).items() if isinstance(value, PLAIN)}
            digest.update(f"{name} {sorted(plain.items(), key=str)}".encode())
        for name, tensor in wrapper.state_dict().items():
            digest.update(name.encode() + tensor.numpy().tobytes())
        key = (opset, digest.hexdigest())
        if key not in traces:
            traces[key] = ir.serde.serialize_model(trace(wrapper, opset)).SerializeToString()
        return ir.serde.deserialize_model(onnx.load_from_string(traces[key]))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "_trace", cached)
        yield
