"""What `qexport bench` measures."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qexport.errors import UsageError
from qexport.serving.bench.engines import EngineSpec, choose_engines

__all__ = ["BenchConfig", "MatmulShape"]


@dataclass(frozen=True, slots=True)
class MatmulShape:
    """One product of activations [M, K] with a weight [N, K]."""

    m: int
    """Rows of activations: tokens."""
    k: int
    """Inputs."""
    n: int
    """Outputs."""

    @classmethod
    def parse(cls, text: str) -> MatmulShape:
        """Read "128x768x3072": M, K, N.

        Raises:
            UsageError: not three whole numbers above 0.
        """
        found = re.fullmatch(r"(\d+)x(\d+)x(\d+)", text.strip().lower())
        sizes = [int(size) for size in found.groups()] if found else [0]
        if min(sizes) < 1:
            raise UsageError(
                f"--matmul takes shapes such as 128x768x3072 (tokens x inputs x outputs), got '{text}'"
            )
        return cls(*sizes)

    def __str__(self) -> str:
        return f"{self.m}x{self.k}x{self.n}"


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchConfig:
    """What to measure, against what, and how long."""

    model: Path
    """Folder written by to-onnx, or an .onnx file in it."""
    engines: tuple[str, ...] = ("native", "stock")
    """How the file is run, by comma: native (with the kernel library), stock (plain ONNX Runtime), or the
    kernels held to one instruction set, such as native-avx2. Ratios are against the first one."""
    against: tuple[str, ...] = ("fp32", "int8")
    """What it is compared with: fp32 and int8 (ONNX Runtime), openvino (int8 by NNCF), openvino-fp32,
    openvino-bf16, by comma; those of OpenVINO need the extra bench."""
    isa: tuple[str, ...] = ()
    """Instruction sets to hold the kernels to, by comma, one more engine each; OpenVINO too, where it is
    among --against."""
    fp32: Path | None = None
    """FP32 ONNX folder that the others are made of; default: random weights of the same architecture."""
    output: Path | None = None
    """Folder for bench.json and bench.html; default: bench, inside the model's folder."""
    lengths: tuple[int, ...] = (8, 16, 32, 64, 128, 256)
    """Tokens per text, comma-separated."""
    batch_sizes: tuple[int, ...] = (1, 8)
    """Texts per run, comma-separated."""
    threads: tuple[int, ...] = (1, 2)
    """Threads of an engine, comma-separated."""
    rounds: int = 15
    """Timed rounds of each cell; in each of them every engine has one turn."""
    warmup: int = 2
    """Rounds before, not timed."""
    repeats: int = 3
    """Runs in one turn, whose median counts, so that an engine finds its own data in the caches; 1 where the
    slowest engine takes more than 0.2 s."""
    pin: bool = True
    """Keep every engine on the same cores, one a thread."""
    profile: bool = False
    """Also find out which operators the time goes to, and their share of what this core can do."""
    matmul: tuple[str, ...] = ()
    """Also time single matrix products of these shapes: tokens x inputs x outputs, such as 128x768x3072."""
    matmul_bits: int = 2
    """Bits of the weights in --matmul: 1 to 8."""
    seed: int = 0
    """Of the token ids."""

    def __post_init__(self) -> None:
        for name in ("lengths", "batch_sizes", "threads"):
            values = getattr(self, name)
            if not values or min(values) < 1:
                raise UsageError(f"--{name.replace('_', '-')} must be at least 1 each, got {list(values)}")
            if len(set(values)) < len(values):
                raise UsageError(f"--{name.replace('_', '-')} names a value twice: {list(values)}")
        for name in ("rounds", "repeats"):
            if getattr(self, name) < 1:
                raise UsageError(f"--{name} must be at least 1, got {getattr(self, name)}")
        if self.warmup < 0:
            raise UsageError(f"--warmup must be at least 0, got {self.warmup}")
        if not 1 <= self.matmul_bits <= 8:
            raise UsageError(f"--matmul-bits must be from 1 to 8, got {self.matmul_bits}")
        self.specs()
        self.shapes()

    def specs(self) -> list[EngineSpec]:
        """The engines, the one that ratios are formed against first.

        Raises:
            UnknownNameError, UsageError: see `choose_engines`.
        """
        return choose_engines(self.engines, self.against, self.isa)

    def shapes(self) -> list[MatmulShape]:
        """The shapes of --matmul."""
        return [MatmulShape.parse(text) for text in self.matmul]

    @property
    def folder(self) -> Path:
        """Where bench.json and bench.html go."""
        if self.output is not None:
            return self.output
        return (self.model if self.model.is_dir() else self.model.parent) / "bench"

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; paths as text."""
        values = dataclasses.asdict(self)
        return {
            name: str(value)
            if isinstance(value, Path)
            else list(value)
            if isinstance(value, tuple)
            else value
            for name, value in values.items()
        }
