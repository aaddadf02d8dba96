"""Facts about the machine and the versions that a measurement was made on."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

__all__ = ["Environment", "cpu_flags", "environment", "has_vnni", "physical_cores"]

_X86_FLAGS = (
    "sse4_1", "avx", "avx2", "fma", "avx_vnni", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16",
    "amx_tile", "amx_int8", "amx_bf16",
)  # fmt: skip
_ARM_FLAGS = ("asimd", "asimddp", "asimdhp", "i8mm", "bf16", "sve", "sve2", "sme")
_PACKAGES = (
    "qexport",
    "onnxruntime",
    "onnx",
    "numpy",
    "tokenizers",
    "torch",
    "transformers",
    "openvino",
    "nncf",
)


@dataclass(frozen=True, slots=True)
class Environment:
    """What a timing depends on besides the model."""

    cpu: str
    """Name of the processor."""
    architecture: str
    """x86_64, aarch64, ..."""
    flags: list[str]
    """Instruction sets that matter for int8 and bf16, as Linux spells them."""
    cores: int
    """Logical processors that this process may use."""
    memory_bytes: int | None
    """Physical memory."""
    load_average: float | None
    """Runnable processes over the last minute when measuring began; above the cores: a busy machine."""
    system: str
    """Operating system and its release."""
    python: str
    """Version of Python."""
    versions: dict[str, str]
    """Package -> version, of those installed."""


def _cpuinfo() -> str:
    path = Path("/proc/cpuinfo")
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _field(text: str, *names: str) -> str:
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip() in names:
            return value.strip()
    return ""


def cpu_flags() -> list[str]:
    """The instruction sets of this CPU that matter here; empty where the system does not tell."""
    present = set(_field(_cpuinfo(), "flags", "Features").split())
    return [flag for flag in (*_X86_FLAGS, *_ARM_FLAGS) if flag in present]


def has_vnni() -> bool:
    """Whether signed 8-bit weights cannot saturate in 16-bit sums here (VNNI or AMX on x86; any arm64)."""
    if platform.machine().lower() in ("arm64", "aarch64"):
        return True
    return bool({"avx_vnni", "avx512_vnni", "amx_int8"} & set(cpu_flags()))


def physical_cores() -> list[int]:
    """One logical processor of each core that this process may use; [] where processes cannot be pinned."""
    if not hasattr(os, "sched_getaffinity"):
        return []
    found: dict[str, int] = {}
    for cpu in sorted(os.sched_getaffinity(0)):
        siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        found.setdefault(siblings.read_text().strip() if siblings.is_file() else str(cpu), cpu)
    return list(found.values())


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def environment() -> Environment:
    """Facts of this machine now; names neither the host nor the user."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    return Environment(
        cpu=_field(_cpuinfo(), "model name", "Model") or platform.processor() or "unknown",
        architecture=platform.machine(),
        flags=cpu_flags(),
        cores=cores,
        memory_bytes=_memory(),
        load_average=None if load is None else round(load, 2),
        system=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
        versions=_versions(),
    )
