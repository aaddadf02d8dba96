"""Target `openvino`: the file with its functions inlined on OpenVINO, an engine with nothing in common with
ours.

Parity only: how fast OpenVINO is on a file made for it, `qexport bench --against openvino` tells.

Left to itself OpenVINO computes x / y as x * (1 / y), which rounds twice, so that an 8-bit code comes out
differently now and then. Divisions are therefore marked with the attribute by which its own passes protect
some of them (`ov::NonconvertibleDivide`); then every operator with a scale a token gives ONNX Runtime's bits.
"""

from __future__ import annotations

from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from qexport.errors import MissingToolError, UnsupportedModelError, UsageError
from qexport.serving.feeds import feeds_for
from qexport.serving.session import KNOWN_INPUTS, Batch, model_file
from qexport.serving.targets.local import LocalTarget
from qexport.serving.targets.protocol import Clock

__all__ = ["TARGET", "OpenVinoRunner", "OpenVinoTarget", "keep_divisions"]

KEPT_DIVISION = "nonconvertable_divide_0"
"""Name and version under which `ov::NonconvertibleDivide` stands among an operator's attributes."""


def keep_divisions(model: Any) -> int:
    """Mark every Divide of an `openvino.Model` so that it stays a division; the number of them."""
    divisions = [operator for operator in model.get_ops() if operator.get_type_name() == "Divide"]
    for operator in divisions:
        operator.get_rt_info()[KEPT_DIVISION] = ""
    return len(divisions)


class OpenVinoRunner:
    """One file on OpenVINO's CPU plugin, in float32.

    Args:
        model: a folder or an .onnx file; functions in it are inlined in memory, as `to-onnx --inline` does.
        threads: threads of an inference.
    Raises:
        UnsupportedModelError: OpenVINO or ONNX cannot read the file.
    """

    def __init__(self, model: Path, *, threads: int) -> None:
        import openvino

        self.path = model_file(model)
        core = openvino.Core()
        settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1}
        try:
            network = core.read_model(self._source())
            keep_divisions(network)
            self._compiled = core.compile_model(network, "CPU", settings)
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise UnsupportedModelError(f"OpenVINO cannot load {self.path} ({reason[:300]})") from error
        self._request = self._compiled.create_infer_request()
        self.inputs: tuple[str, ...] = tuple(port.get_any_name() for port in self._compiled.inputs)
        self.outputs: tuple[str, ...] = tuple(port.get_any_name() for port in self._compiled.outputs)
        foreign = [name for name in self.inputs if name not in KNOWN_INPUTS]
        if foreign:
            raise UnsupportedModelError(
                f"{self.path} has an input '{foreign[0]}', so it is no text classifier"
            )

    def _source(self) -> Any:
        """The path, or the bytes of the inlined model where the file has functions."""
        import onnx

        from qexport.graphs.pipeline import inline_functions

        try:
            proto = onnx.load(self.path)
        except Exception as error:  # DecodeError, whose module has no types, OSError, ...
            raise UnsupportedModelError(f"{self.path} is no ONNX file ({error})") from error
        if not proto.functions:
            return str(self.path)
        return inline_functions(proto).SerializeToString()

    def run(self, batch: Batch) -> dict[str, npt.NDArray[Any]]:
        """Every output of the file for one batch."""
        feeds = feeds_for(self.inputs, batch)
        try:
            found = self._request.infer(feeds)
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise UnsupportedModelError(f"OpenVINO failed on {self.path} ({reason[:300]})") from error
        return {
            name: np.array(found[port])
            for name, port in zip(self.outputs, self._compiled.outputs, strict=True)
        }


class OpenVinoTarget(LocalTarget):
    """OpenVINO in this process."""

    name = "openvino"
    modes = ("openvino",)

    def clock(self, mode: str) -> Clock:
        """None: the file is not made for it."""
        return "none"

    def check(self) -> None:
        """Look for the package.

        Raises:
            MissingToolError: it is not installed.
        """
        if find_spec("openvino") is None:
            raise MissingToolError(
                "target openvino needs the package openvino", 'pip install "qexport[bench]"'
            )

    def versions(self) -> dict[str, str]:
        """Version of openvino."""
        return {"openvino": version("openvino")}

    def open(self, model: Path, *, mode: str, threads: int) -> OpenVinoRunner:
        """Open `model`; see `OpenVinoRunner` for what it raises."""
        if mode not in self.modes:
            raise UsageError(f"target openvino has the mode openvino, got '{mode}'")
        return OpenVinoRunner(model, threads=threads)


TARGET = OpenVinoTarget()
