"""The files that engines open: the model under test, and what is made of the FP32 export and kept."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from qexport import cache
from qexport.atomic import atomic_folder
from qexport.errors import EnvironmentProblem, MissingPackageError, UnsupportedModelError, UsageError
from qexport.serving import baselines
from qexport.serving.bench.engines import EngineSpec, FileKind
from qexport.serving.machine import has_vnni

__all__ = ["EngineFile", "cache_folder", "check_packages", "engine_files"]

_NOTE = "qexport_bench.json"


@dataclass(frozen=True, slots=True)
class EngineFile:
    """What an engine opens."""

    path: Path
    """An .onnx file, or OpenVINO's .xml."""
    how: str
    """How it was made, one line."""

    @property
    def n_bytes(self) -> int:
        """Bytes on disk, with the weights beside it."""
        from qexport.serving.facts import file_bytes

        if self.path.suffix == ".xml":
            return self.path.stat().st_size + self.path.with_suffix(".bin").stat().st_size
        return file_bytes(self.path)


def cache_folder() -> Path:
    """$QEXPORT_CACHE/bench, else ~/.cache/qexport/bench."""
    return cache.cache_folder() / "bench"


def check_packages(specs: Iterable[EngineSpec]) -> None:
    """Find out before any work whether the packages of the engines are installed.

    Raises:
        MissingPackageError: OpenVINO or NNCF is missing.
    """
    needed: list[str] = []
    for spec in specs:
        if spec.runtime == "openvino":
            needed += ["openvino", *(["nncf"] if spec.file == "openvino-int8" else [])]
    missing = [name for name in dict.fromkeys(needed) if find_spec(name) is None]
    if missing:
        raise MissingPackageError(
            f"--against openvino needs the package {' and '.join(missing)}; "
            'run: pip install "qexport[bench]", or leave openvino out'
        )


def engine_files(
    model: Path,
    fp32: Path | None,
    kinds: Iterable[FileKind],
    *,
    cache: Path,
    how_fp32: str,
    say: Callable[[str], None] = lambda line: None,
) -> dict[FileKind, EngineFile]:
    """The file of each kind; quantised ones are made once per FP32 file and kept.

    Args:
        model: the .onnx file under test.
        fp32: the FP32 .onnx file; None when no kind needs it.
        kinds: what the engines open.
        cache: folder where quantised files are kept.
        how_fp32: where the FP32 file came from, one clause.
        say: told what takes long.
    Raises:
        UsageError: a kind needs the FP32 file and there is none.
        UnsupportedModelError: a quantiser failed on the FP32 file.
        EnvironmentProblem: the process that quantises for OpenVINO ended.
    """
    wanted = list(dict.fromkeys(kinds))
    found: dict[FileKind, EngineFile] = {}
    if "model" in wanted:
        found["model"] = EngineFile(model, "the file under test")
    if wanted in ([], ["model"]):
        return found
    if fp32 is None:
        raise UsageError("fp32, int8 and openvino are made of an FP32 export; give its folder with --fp32")
    found["fp32"] = EngineFile(fp32, how_fp32)
    if "int8" in wanted or "openvino-int8" in wanted:
        place = cache / _sha256(fp32)[:16]
        if "int8" in wanted:
            found["int8"] = _ort_int8(fp32, place, say)
        if "openvino-int8" in wanted:
            found["openvino-int8"] = _openvino_int8(fp32, place, say)
    return found


def _sha256(path: Path) -> str:
    """Of an .onnx file; external data, when there is some, by size and time."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**22):
            digest.update(block)
    for beside in sorted(path.parent.glob(f"{path.name}[._]*data*")):
        digest.update(f"{beside.name} {beside.stat().st_size} {beside.stat().st_mtime_ns}".encode())
    return digest.hexdigest()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"


def _ort_int8(fp32: Path, place: Path, say: Callable[[str], None]) -> EngineFile:
    """ONNX Runtime's dynamic int8; the kind of weights depends on the processor."""
    folder = place / f"int8-{'signed' if has_vnni() else 'unsigned'}-ort{_version('onnxruntime')}"
    note = folder / _NOTE
    if not note.is_file():
        say("quantising the FP32 export to dynamic int8 with ONNX Runtime")
        with atomic_folder(folder, force=True) as part:
            _, how = baselines.dynamic_int8(fp32, part)
            (part / _NOTE).write_text(json.dumps({"how": how}), encoding="utf-8")
    return EngineFile(folder / "model.onnx", str(json.loads(note.read_text(encoding="utf-8"))["how"]))


def _openvino_int8(fp32: Path, place: Path, say: Callable[[str], None]) -> EngineFile:
    """NNCF's static int8, made in a process of its own: it is large, and it prints."""
    versions = f"openvino {_version('openvino')}, nncf {_version('nncf')}"
    folder = place / f"openvino-int8-{versions.replace(', ', '-').replace(' ', '')}"
    path = folder / "model.xml"
    if not (folder / _NOTE).is_file():
        say("quantising the FP32 export to int8 with NNCF for OpenVINO; this takes a minute for BERT-base")
        with atomic_folder(folder, force=True) as part:
            command = [
                sys.executable,
                "-m",
                "qexport.serving.bench.nncf_int8",
                str(fp32),
                str(part / path.name),
            ]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                words = done.stderr.strip().splitlines() or ["no message"]
                kind = EnvironmentProblem if done.returncode < 0 else UnsupportedModelError
                raise kind(f"NNCF cannot quantise {fp32} for OpenVINO ({words[-1][:300]})")
            (part / _NOTE).write_text(json.dumps({"versions": versions}), encoding="utf-8")
    how = f"nncf.quantize of the FP32 export for OpenVINO ({versions}), calibrated on random token ids"
    return EngineFile(path, how)
