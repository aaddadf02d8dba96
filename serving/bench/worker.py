"""One engine in a process of its own: one JSON message a line on stdin, one answer a line on stdout.

    python -m qexport.serving.bench.worker '{"path": "model.onnx", "threads": 1, ...}'

An engine gets its own process so that its environment variables, its threads and its memory are its own. The
process is pinned before any library starts its threads, opens the file, answers with what that cost, and then
runs when it is told to, so that the parent can let several engines take turns. It ends with its stdin.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, Protocol

from qexport.errors import EnvironmentProblem, QexportError, UnsupportedModelError
from qexport.serving.probe import peak_memory, resident_memory

__all__ = ["TensorSpec", "WorkerSpec", "main"]

Feeds = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSpec:
    """What the process opens, and how."""

    path: str
    """An .onnx file, or OpenVINO's .xml."""
    empty: str
    """A model of one node that is run before `path` is opened: what the runtime itself costs."""
    runtime: str = "onnxruntime"
    """"onnxruntime" or "openvino"."""
    threads: int = 1
    """Threads inside one operator."""
    cpus: list[int] | None = None
    """Processors to stay on; None leaves that to the system."""
    kernels: bool = False
    """Register the kernel library."""
    isa: str | None = None
    """Instruction set to hold the kernels to."""
    precision: str | None = None
    """OpenVINO's INFERENCE_PRECISION_HINT."""
    profile: str | None = None
    """Prefix of ONNX Runtime's profile; None times without one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """One input, made by the process itself: the same seed gives the same values in every engine."""

    shape: list[int]
    """Its shape."""
    dtype: str = "int64"
    """Its dtype."""
    low: float = 0
    """Least value."""
    high: float = 1
    """Largest value; equal to `low`: a constant."""
    seed: int = 0
    """Of its values."""


class _Engine(Protocol):
    def settings(self) -> dict[str, str]:
        """What the runtime says about itself, once it has run."""

    def load(self, feeds: Feeds) -> Callable[[], object]:
        """What runs these feeds once."""

    def finish(self) -> str | None:
        """End the profile and name its file."""


class _Onnxruntime:
    """A session with the settings that `Session` has."""

    def __init__(self, spec: WorkerSpec, path: str, *, measured: bool) -> None:
        import onnxruntime as ort

        from qexport.serving.native import kernels_in
        from qexport.serving.session import runtime_errors, session_options

        options = session_options(spec.threads)
        self._profiles = measured and spec.profile is not None
        if self._profiles:
            options.enable_profiling = True
            options.profile_file_prefix = spec.profile
        mode = "require" if spec.kernels and measured else "off"
        with kernels_in(options, Path(path), mode=mode, isa=spec.isa if measured else None) as engine:
            try:
                self._session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
            except runtime_errors() as error:
                reason = " ".join(str(error).split())
                raise UnsupportedModelError(f"ONNX Runtime cannot load {path} ({reason[:300]})") from error
        self._outputs = [node.name for node in self._session.get_outputs()]
        self._inputs = [node.name for node in self._session.get_inputs()]
        self._engine = engine

    def settings(self) -> dict[str, str]:
        known = {"isa": self._engine.isa, "version": self._engine.version}
        return {name: value for name, value in known.items() if value is not None}

    def load(self, feeds: Feeds) -> Callable[[], object]:
        known = {name: feeds[name] for name in self._inputs}
        return lambda: self._session.run(self._outputs, known)

    def finish(self) -> str | None:
        return str(self._session.end_profiling()) if self._profiles else None


class _OpenVino:
    """A compiled model for latency: one stream, one request."""

    _SHOWN = (
        "INFERENCE_NUM_THREADS", "NUM_STREAMS", "INFERENCE_PRECISION_HINT", "PERFORMANCE_HINT",
        "ENABLE_CPU_PINNING",
    )  # fmt: skip

    def __init__(self, spec: WorkerSpec, path: str, *, measured: bool) -> None:
        import openvino

        core = openvino.Core()
        wanted: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "INFERENCE_NUM_THREADS": spec.threads,
        }
        if spec.precision is not None:
            if spec.precision.upper() not in [*core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"), "F32"]:
                raise EnvironmentProblem(
                    f"OpenVINO has no {spec.precision} on this processor; leave openvino-{spec.precision} out"
                )
            wanted["INFERENCE_PRECISION_HINT"] = spec.precision
        try:
            compiled = core.compile_model(path, "CPU", wanted)
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise UnsupportedModelError(f"OpenVINO cannot load {path} ({reason[:300]})") from error
        self._compiled, self._request = compiled, compiled.create_infer_request()
        self._inputs = [port.get_any_name() for port in compiled.inputs]

    def settings(self) -> dict[str, str]:
        shown = {name: _plain(self._compiled.get_property(name)) for name in self._SHOWN}
        return {**shown, "products": self._products()}

    def _products(self) -> str:
        """The kernels of the matrix products, the most used first: "jit_gemm_I8 x35, brgemm_avx2_f32 x6".

        Raises:
            UnsupportedModelError: a product has none: OpenVINO would leave it out and be very fast.
        """
        found: Counter[str] = Counter()
        for node in self._compiled.get_runtime_model().get_ops():
            facts = node.get_rt_info()
            if any(word in facts["layerType"].astype(str) for word in ("MatMul", "FullyConnected")):
                found[facts["primitiveType"].astype(str)] += 1
        if any(name.startswith("undef") for name in found):
            raise UnsupportedModelError(
                "OpenVINO has no kernel for this model's products when it is held so low"
            )
        return ", ".join(f"{name} x{count}" for name, count in found.most_common())

    def load(self, feeds: Feeds) -> Callable[[], object]:
        known = {name: feeds[name] for name in self._inputs}
        return lambda: self._request.infer(known, share_inputs=True, share_outputs=True)

    def finish(self) -> str | None:
        return None


def _plain(value: Any) -> str:
    """One word of an OpenVINO property: "<Type: 'float32'>" becomes float32."""
    text = str(value).removeprefix("<Type: '").removesuffix("'>")
    return text.rpartition(".")[2]


def _tensor(spec: TensorSpec) -> Any:
    import numpy as np

    dtype = np.dtype(spec.dtype)
    if spec.low == spec.high:
        return np.full(spec.shape, spec.low, dtype)
    rng = np.random.default_rng(spec.seed)
    if dtype.kind == "f":
        return rng.uniform(spec.low, spec.high, spec.shape).astype(dtype)
    return rng.integers(int(spec.low), int(spec.high), spec.shape, endpoint=True).astype(dtype)


class _Worker:
    def __init__(self, spec: WorkerSpec) -> None:
        self.kind: Callable[..., _Engine] = _OpenVino if spec.runtime == "openvino" else _Onnxruntime
        self.spec = spec
        self.run: Callable[[], object] = lambda: None

    def open(self) -> dict[str, Any]:
        """Open the empty model, then the file, and say what each cost."""
        import numpy as np

        from qexport.serving.latency import run_ms

        empty = self.kind(self.spec, self.spec.empty, measured=False)
        call = empty.load({"x": np.zeros(1, np.float32)})
        call_ms = statistics.median(run_ms(call) for _ in range(50))
        gc.collect()
        before, begin = resident_memory(), time.perf_counter()
        self.engine = self.kind(self.spec, self.spec.path, measured=True)
        load_ms = (time.perf_counter() - begin) * 1e3
        gc.collect()
        gc.disable()  # a collection in the middle of a run would be counted
        return {
            "load_ms": load_ms,
            "call_ms": call_ms,
            "empty_bytes": before,
        }

    def feed(self, tensors: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        """Make the inputs of the runs that follow."""
        self.run = self.engine.load({name: _tensor(TensorSpec(**spec)) for name, spec in tensors.items()})
        return {}

    def turn(self, repeats: int) -> dict[str, Any]:
        """Median milliseconds of some runs in a row."""
        from qexport.serving.latency import run_ms

        return {"ms": statistics.median(run_ms(self.run) for _ in range(repeats))}

    def state(self) -> dict[str, Any]:
        """Resident bytes now and their peak, and what the runtime says about itself."""
        memory = {"resident_bytes": resident_memory(), "peak_bytes": peak_memory()}
        return {**memory, "settings": self.engine.settings()}

    def roofline(self, isa: str | None) -> dict[str, Any]:
        """What this core can do; see `qexport.serving.bench.roofline`."""
        from qexport.serving.bench.roofline import measure_roofline

        return asdict(measure_roofline(isa))

    def finish(self) -> dict[str, Any]:
        """End the profile."""
        return {"profile": self.engine.finish()}


def _answer(worker: _Worker, message: dict[str, Any]) -> dict[str, Any]:
    """Carry out one message: {"do": "turn", "repeats": 3}."""
    try:
        found: dict[str, Any] = getattr(worker, message.pop("do"))(**message)
        return found
    except QexportError as problem:
        return {"error": type(problem).__name__, "text": str(problem)}
    except MemoryError:
        return {"error": "EnvironmentProblem", "text": "there is not enough memory"}
    except Exception as error:  # onnxruntime and OpenVINO raise many unrelated types
        reason = " ".join(str(error).split())
        return {"error": "UnsupportedModelError", "text": f"{type(error).__name__}: {reason[:300]}"}


def main(arguments: list[str] | None = None) -> int:
    """Serve one engine until stdin ends.

    Args:
        arguments: one, the WorkerSpec as JSON.
    """
    (text,) = sys.argv[1:] if arguments is None else arguments
    spec = WorkerSpec(**json.loads(text))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's: it keeps what was measured
    out: IO[str] = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print must not come between the answers
    if spec.cpus is not None:
        os.sched_setaffinity(0, spec.cpus)
    worker = _Worker(spec)
    for line in sys.stdin:
        print(json.dumps(_answer(worker, json.loads(line))), file=out, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
