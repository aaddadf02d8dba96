"""ExportConfig: how one model folder becomes one ONNX folder, and which runtime the file is written for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from qexport.errors import UsageError

__all__ = ["OLDEST_ORT", "ExportConfig", "Target"]

OLDEST_ORT = (1, 16)
"""The oldest ONNX Runtime that exported files are tested on."""

_INLINES_EARLY = (1, 20)  # older runtimes inline functions too late to fold the unpacking: six times slower
_NEWEST_OPSET = ((1, 18, 21), (1, 17, 20), (1, 16, 19))  # (major, minor, newest ai.onnx opset), newest first
_IR_VERSIONS = {18: 8, 19: 9, 20: 9, 21: 10}  # ai.onnx opset -> the IR version that came with it
DEFAULT_OPSET = 18


@dataclass(frozen=True, slots=True)
class Target:
    """The format that a runtime can read."""

    opset: int = DEFAULT_OPSET
    """Version of the ai.onnx operator set."""
    ir_version: int = _IR_VERSIONS[DEFAULT_OPSET]
    """Version of the ONNX file format."""
    inline: bool = False
    """Write function bodies in place of `ai.qexport` nodes."""
    other_engines: bool = False
    """Inlined for engines that are not ONNX Runtime: only forms of operators that OpenVINO computes too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportConfig:
    """How one trained model folder becomes one ONNX folder."""

    model: Path
    """Student folder written by `qexport train`, or any FP32 Hugging Face folder."""
    output: Path
    """Folder to write."""
    opset: int | None = None
    """Version of the ai.onnx operator set, 18 to 21; default: 18, which every supported runtime reads."""
    min_ort: str = "1.20"
    """Oldest ONNX Runtime that must run the file well; below 1.20 function bodies are written in place."""
    inline: bool = False
    """Write function bodies in place of `ai.qexport` nodes, for engines without functions (OpenVINO)."""
    with_tokenizer: bool = False
    """Write model-text.onnx too: the same model with BERT's WordPiece in front, so that an app sends a
    string; it runs where onnxruntime-extensions is (extra tokenizer)."""
    force: bool = False
    """Replace an existing output folder."""
    check: bool = True
    """Run the file once on ONNX Runtime and compare it with PyTorch before it is put in place."""

    def __post_init__(self) -> None:
        self.target()

    def target(self) -> Target:
        """The format that `opset`, `min_ort` and `inline` ask for.

        Raises:
            UsageError: a version that is no version, too old, or that does not know the opset.
        """
        parts = self.min_ort.split(".")
        if not 2 <= len(parts) <= 3 or not all(part.isdigit() for part in parts):
            raise UsageError(f"--min-ort must be a version such as 1.20, got '{self.min_ort}'")
        version = (int(parts[0]), int(parts[1]))
        if version < OLDEST_ORT:
            raise UsageError(f"--min-ort must be 1.16 or newer, the oldest tested, got {self.min_ort}")
        opset = DEFAULT_OPSET if self.opset is None else self.opset
        if opset not in _IR_VERSIONS:
            raise UsageError(f"--opset must be one of {', '.join(map(str, _IR_VERSIONS))}, got {opset}")
        newest = next(known for major, minor, known in _NEWEST_OPSET if version >= (major, minor))
        if opset > newest:
            raise UsageError(
                f"ONNX Runtime {self.min_ort} reads opset {newest} at most, got --opset {opset}; "
                "lower --opset or raise --min-ort"
            )
        return Target(opset, _IR_VERSIONS[opset], self.inline or version < _INLINES_EARLY, self.inline)
