"""The test functions of a kernel library (serving/kernels/hooks.cpp) for numpy arrays; no ONNX Runtime."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np

SCALES = {"dynamic-token": 0, "dynamic-tensor": 1, "static": 2}


class Hooks:
    """A library opened for its test functions."""

    def __init__(self, path: Path) -> None:
        self.library = ctypes.CDLL(str(path))
        for name in ("qexport_kernels_version", "qexport_supported_isas", "qexport_isa"):
            getattr(self.library, name).restype = ctypes.c_char_p
        self.library.qexport_matmul_room.restype = ctypes.c_int64
        self.library.qexport_peak.restype = ctypes.c_longlong
        self.isas: list[str] = self.library.qexport_supported_isas().decode().split()

    def set_isa(self, isa: str | None) -> None:
        """The instruction set of sessions made from now on; None for the best."""
        assert self.library.qexport_set_isa(isa.encode() if isa else None) == 0, isa

    def _call(self, name: str, isa: str, *arguments: Any) -> None:
        converted = [
            argument.ctypes.data_as(ctypes.c_void_p) if isinstance(argument, np.ndarray)
            else ctypes.c_float(argument) if isinstance(argument, float)
            else ctypes.c_int64(argument)
            for argument in arguments
        ]  # fmt: skip
        problem = getattr(self.library, name)(isa.encode(), *converted)
        assert problem == 0, f"{name} on {isa}: {problem}"

    def matmul(
        self,
        isa: str,
        bits: int,
        a: np.ndarray,
        zero_point: int,
        a_scale: np.ndarray,
        packed: np.ndarray,
        w_scale: np.ndarray,
        bias: np.ndarray,
    ) -> np.ndarray:
        """Y [m, n] of A uint8 [m, k]; a_scale [m] or [1], packed [n, width], w_scale [n] or [1], bias [n]."""
        (m, k), n = a.shape, len(packed)
        room = np.empty(self.library.qexport_matmul_room(bits, *map(ctypes.c_int64, (m, n, k))), np.uint8)
        y = np.full((m, n), np.nan, np.float32)
        packed = np.ascontiguousarray(packed)
        problem = self.library.qexport_matmul_prepare(
            bits, ctypes.c_int64(n), ctypes.c_int64(k),
            packed.ctypes.data_as(ctypes.c_void_p), room.ctypes.data_as(ctypes.c_void_p),
        )  # fmt: skip
        assert problem == 0
        self._call(
            "qexport_matmul", isa, bits, m, n, k, np.ascontiguousarray(a), zero_point, a_scale,
            int(a_scale.size != 1), w_scale, int(w_scale.size != 1), bias, room, y,
        )  # fmt: skip
        return y

    def quantize(self, isa: str, x: np.ndarray, clip: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
        """Codes and scales of x [rows, width]."""
        codes, scale = np.zeros(x.shape, np.uint8), np.full((len(x), 1), np.nan, np.float32)
        self._call("qexport_quantize_per_token", isa, x, *x.shape, float(clip), codes, scale)
        return codes, scale

    def gelu(self, isa: str, x: np.ndarray, clip: float = 0.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """gelu(x [rows, width]), its codes and scales."""
        y, codes = np.full(x.shape, np.nan, np.float32), np.zeros(x.shape, np.uint8)
        scale = np.full((len(x), 1), np.nan, np.float32)
        self._call("qexport_gelu_quantize_per_token", isa, x, *x.shape, float(clip), y, codes, scale)
        return y, codes, scale

    def add_layer_norm(
        self,
        isa: str,
        x: np.ndarray,
        residual: np.ndarray,
        gamma: np.ndarray,
        beta: np.ndarray,
        epsilon: float = 1e-12,
        clip: float = 0.0,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """LayerNorm(x + residual), its codes and scales; x and residual [rows, width]."""
        y, codes = np.full(x.shape, np.nan, np.float32), np.zeros(x.shape, np.uint8)
        scale = np.full((len(x), 1), np.nan, np.float32)
        self._call(
            "qexport_add_layer_norm_quantize_per_token", isa, x, residual, gamma, beta, *x.shape,
            float(epsilon), float(clip), y, codes, scale,
        )  # fmt: skip
        return y, codes, scale

    def attention(
        self,
        isa: str,
        q: np.ndarray,
        k: np.ndarray,
        v: np.ndarray,
        mask: np.ndarray,
        *,
        num_heads: int,
        scaling: float,
        clip: float = 0.0,
        activation: str = "dynamic-token",
        quantize_pv: bool = True,
        fixed: tuple[float, ...] = (),
    ) -> np.ndarray:
        """Y [B, S, H * D] of q, k, v of that shape; mask bool [B, ..., S]."""
        batch, tokens, channels = q.shape
        width = channels // num_heads
        room = np.empty(64 * (tokens + 64) * (width + 64) + (1 << 20), np.uint8)
        y = np.full(q.shape, np.nan, np.float32)
        scales = np.zeros(4, np.float32)
        scales[: len(fixed)] = fixed
        self._call(
            "qexport_attention", isa, q, k, v, np.ascontiguousarray(mask), batch, tokens, num_heads, width,
            float(scaling), float(clip), SCALES[activation], int(quantize_pv), scales, room, room.size, y,
        )  # fmt: skip
        return y
