"""The engines that can be timed, by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from qexport.errors import UnknownNameError, UsageError
from qexport.serving.native import ISAS

__all__ = ["ONEDNN_ISAS", "EngineSpec", "FileKind", "choose_engines"]

FileKind = Literal["model", "fp32", "int8", "openvino-int8"]
"""Which file an engine opens: the one under test, or one that is made of the FP32 export."""

ONEDNN_ISAS = {
    "avx2": "AVX2",
    "avx-vnni": "AVX2_VNNI",
    "avx512-vnni": "AVX512_CORE_VNNI",
    "amx": "AVX512_CORE_AMX",
}
"""Our instruction sets -> the value of ONEDNN_MAX_CPU_ISA that holds OpenVINO's oneDNN to the same one."""


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """One engine: which file on which runtime, and how that is set up."""

    name: str
    """Key used everywhere: "native", "native-avx2", "stock", "fp32", "int8", "openvino", ..."""
    label: str
    """For people."""
    file: FileKind
    """What it opens."""
    runtime: Literal["onnxruntime", "openvino"] = "onnxruntime"
    """What runs it."""
    kernels: bool = False
    """Register the kernel library."""
    isa: str | None = None
    """Instruction set to hold the kernels to; None leaves the choice to the library."""
    precision: str | None = None
    """OpenVINO's INFERENCE_PRECISION_HINT; None leaves it to OpenVINO."""
    environment: dict[str, str] = field(default_factory=dict)
    """Environment variables of its process."""

    @property
    def ours(self) -> bool:
        """Whether it runs the file under test."""
        return self.file == "model"


_PLAIN = {
    spec.name: spec
    for spec in (
        EngineSpec("native", "qexport kernels", "model", kernels=True),
        EngineSpec("stock", "stock ONNX Runtime", "model"),
        EngineSpec("fp32", "ORT FP32", "fp32"),
        EngineSpec("int8", "ORT int8", "int8"),
        EngineSpec("openvino", "OpenVINO int8", "openvino-int8", "openvino"),
        EngineSpec("openvino-fp32", "OpenVINO FP32", "fp32", "openvino", precision="f32"),
        EngineSpec("openvino-bf16", "OpenVINO bf16", "fp32", "openvino", precision="bf16"),
    )
}


def _held(isa: str) -> EngineSpec:
    return EngineSpec(f"native-{isa}", f"qexport kernels, {isa}", "model", kernels=True, isa=isa)


def _openvino_held(isa: str) -> EngineSpec:
    limit = {"ONEDNN_MAX_CPU_ISA": ONEDNN_ISAS[isa]}
    label = f"OpenVINO int8, {isa}"
    return EngineSpec(f"openvino-{isa}", label, "openvino-int8", "openvino", environment=limit)


_KNOWN = {
    **_PLAIN,
    **{spec.name: spec for spec in map(_held, ISAS)},
    **{spec.name: spec for spec in map(_openvino_held, ONEDNN_ISAS)},
}


def choose_engines(
    engines: Sequence[str], against: Sequence[str] = (), isas: Sequence[str] = ()
) -> list[EngineSpec]:
    """The engines by name, each once.

    Args:
        engines: ways to run the file under test; the first one is what ratios are formed against.
        against: what it is compared with.
        isas: instruction sets; each adds the kernels held to it and, where `against` has "openvino" and
            oneDNN knows the set, OpenVINO held to it.
    Raises:
        UnknownNameError: no such engine or instruction set.
        UsageError: there is no engine, or the first one does not run the file under test.
    """
    names = list(engines)
    for isa in isas:
        if isa not in ISAS:
            raise UnknownNameError("instruction set", isa, ISAS)
        names.append(f"native-{isa}")
    names += against
    names += [f"openvino-{isa}" for isa in isas if isa in ONEDNN_ISAS and "openvino" in against]
    for name in names:
        if name not in _KNOWN:
            raise UnknownNameError("engine", name, _KNOWN)
    if not engines or not _KNOWN[names[0]].ours:
        got = f"got '{names[0]}'" if names else "got nothing"
        raise UsageError(f"--engines must begin with a way to run the file: native or stock, {got}")
    return [_KNOWN[name] for name in dict.fromkeys(names)]
