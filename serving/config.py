"""What `verify` measures and which bounds must hold."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qexport.errors import UsageError
from qexport.serving.parity import LAYER_TOLERANCE

__all__ = ["VerifyConfig"]


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyConfig:
    """What to measure, and the bounds that must hold."""

    model: Path
    """The exported folder, or an .onnx file."""
    baseline: Path | None = None
    """FP32 ONNX folder (`qexport to-onnx TEACHER`) to compare size, accuracy and time with."""
    int8: bool = True
    """With `baseline`: also ONNX Runtime's own dynamic int8 quantisation of it."""
    targets: tuple[str, ...] = ("auto",)
    """Where to run it; the first is the main one. "auto" is native where its library fits, and stock."""
    target_rows: int | None = None
    """Rows for targets and modes other than the main one; None takes each target's own limit."""
    latency: bool = True
    """Measure latency, in turns with the baselines."""
    lengths: tuple[int, ...] = (16, 32, 64, 128)
    """Tokens per text."""
    threads: tuple[int, ...] = (1,)
    """Threads inside one operator; the first is used for accuracy."""
    batch_size: int = 1
    """Texts per timed run."""
    iterations: int = 30
    """Timed rounds per length and thread count."""
    warmup: int = 3
    """Rounds before, not timed."""
    processes: int = 3
    """Child processes per file for load time and peak memory; 0 leaves them out."""
    layer_tolerance: float = LAYER_TOLERANCE
    """Mean absolute difference of a LayerNorm output that still counts as the same."""
    max_drop: float | None = None
    """Gate: points of the main metric that may be lost, paired with the teacher (else the FP32 baseline)."""
    mobile_check: bool = False
    """Run ONNX Runtime's mobile tools on the file."""
    min_agreement: float | None = None
    """Gate: percent of rows with the student's prediction (else the teacher's, else the baseline's), e.g.
    99.9."""
    max_latency_ms: float | None = None
    """Gate: median latency at `latency_length` tokens and the first thread count."""
    latency_length: int | None = None
    """Length that the latency gate judges; None means the longest measured."""
    max_size_mb: float | None = None
    """Gate: size of the ONNX file; 1 MB is 1,000,000 bytes."""
    seed: int = 0
    """Of the token ids in timed batches."""
    command: str = ""
    """Command line that repeats it, for the report."""

    def __post_init__(self) -> None:
        if not self.targets:
            raise UsageError("at least one --target must be given, such as stock")
        if self.min_agreement is not None and not 1.0 < self.min_agreement <= 100.0:
            raise UsageError(
                f"--min-agreement is in percent, above 1 and at most 100, got {self.min_agreement:g}; "
                "write 99.9 for 99.9 % of the rows"
            )
        for name in ("max_latency_ms", "max_size_mb"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise UsageError(f"--{name.replace('_', '-')} must be above 0, got {value:g}")
        if self.max_drop is not None and math.isnan(self.max_drop):
            raise UsageError("--max-drop must be a number of points, got nan")
        for name, value in (("iterations", self.iterations), ("batch-size", self.batch_size)):
            if value < 1:
                raise UsageError(f"--{name} must be at least 1, got {value}")
        for name, values in (("lengths", self.lengths), ("threads", self.threads)):
            if not values or min(values) < 1:
                raise UsageError(f"--{name} must be at least 1 each, got {list(values)}")
        if self.latency_length is not None and self.latency_length not in self.lengths:
            raise UsageError(
                f"the latency gate judges {self.latency_length} tokens, which --lengths does not measure"
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; paths as text."""
        values = dataclasses.asdict(self)
        return {key: str(value) if isinstance(value, Path) else value for key, value in values.items()}
