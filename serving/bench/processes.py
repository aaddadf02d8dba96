"""The parent's side of an engine's process."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from qexport import errors
from qexport.serving.bench.worker import TensorSpec, WorkerSpec
from qexport.serving.complaints import Complaints
from qexport.serving.machine import physical_cores

__all__ = ["EngineProcess", "Opened", "State", "empty_model", "pinned"]


@dataclass(frozen=True, slots=True)
class Opened:
    """What opening the file cost."""

    load_ms: float
    """Milliseconds to open the file."""
    call_ms: float
    """Milliseconds of running the empty model: what a call costs besides the operators."""
    empty_bytes: int | None
    """Resident bytes when only the empty model was open."""


@dataclass(frozen=True, slots=True)
class State:
    """A process after its first runs."""

    resident_bytes: int | None
    """Resident bytes now; None where the system does not tell."""
    peak_bytes: int | None
    """Their peak."""
    settings: dict[str, str]
    """What the runtime says about itself: instruction set, threads, precision."""


def pinned(threads: int) -> list[int] | None:
    """Processors for an engine of `threads` threads, one of a core each, the last ones; None: cannot pin.

    The first core is where most systems handle interrupts.
    """
    cores = physical_cores()
    return cores[-threads:] if 0 < threads <= len(cores) else None


@contextlib.contextmanager
def empty_model() -> Iterator[Path]:
    """A file with one node, Identity of float32 [1] `x`, that lives as long as the block."""
    from onnx import TensorProto, helper, save

    described = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "y")]
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])], "empty", described[:1], described[1:]
    )
    with tempfile.TemporaryDirectory(prefix="qexport-bench-") as folder:
        path = Path(folder) / "empty.onnx"
        save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), path)
        yield path


class EngineProcess:
    """One engine, open and ready to take turns.

    Args:
        name: of the engine, for messages.
        spec: what it opens.
        environment: further environment variables.
    Raises:
        QexportError: what the process raised: a file that does not load, a library that is missing.
        EnvironmentProblem: the process did not start or died.
    """

    def __init__(self, name: str, spec: WorkerSpec, environment: Mapping[str, str]) -> None:
        self.name, self.spec = name, spec
        self._complaints = Complaints()
        command = [sys.executable, "-m", "qexport.serving.bench.worker", json.dumps(asdict(spec))]
        try:
            self._child = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._complaints.file,
                text=True, encoding="utf-8", env={**os.environ, **environment},
            )  # fmt: skip
        except OSError as error:
            self._complaints.close()
            raise errors.EnvironmentProblem(f"engine {name} did not start ({error})") from error
        try:
            self.opened = Opened(**self._ask("open"))
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> EngineProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """Number of the process."""
        return self._child.pid

    def close(self) -> None:
        """End the process."""
        self._child.kill()
        self._child.wait()
        for stream in (self._child.stdin, self._child.stdout, self._complaints):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()

    def feed(self, tensors: Mapping[str, TensorSpec]) -> None:
        """Make the inputs of the runs that follow."""
        self._ask("feed", tensors={name: asdict(spec) for name, spec in tensors.items()})

    def turn(self, repeats: int = 1) -> float:
        """Median milliseconds of `repeats` runs in a row, timed in the process."""
        return float(self._ask("turn", repeats=repeats)["ms"])

    def state(self) -> State:
        """Memory and settings, after a run.

        Raises:
            UnsupportedModelError: OpenVINO left the products out, because it has no kernel for them.
        """
        return State(**self._ask("state"))

    def roofline(self, isa: str | None) -> dict[str, Any]:
        """Fields of a `Roofline`."""
        return self._ask("roofline", isa=isa)

    def finish_profile(self) -> Path:
        """End ONNX Runtime's profile and give its file."""
        return Path(self._ask("finish")["profile"])

    def _ask(self, what: str, **values: Any) -> dict[str, Any]:
        assert self._child.stdin is not None and self._child.stdout is not None
        try:
            self._child.stdin.write(json.dumps({"do": what, **values}) + "\n")
            self._child.stdin.flush()
            line = self._child.stdout.readline()
        except OSError:
            line = ""
        if not line:
            raise errors.EnvironmentProblem(f"the process of engine {self.name} ended: {self._last_words()}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            kind = getattr(errors, answer["error"], errors.UnsupportedModelError)
            problem: errors.QexportError = kind.__new__(kind)  # UnknownNameError composes its own message
            problem.args = (f"engine {self.name}: {answer['text']}",)
            raise problem
        return answer

    def _last_words(self) -> str:
        code = self._child.wait()
        lines = self._complaints.text().strip().splitlines()
        return f"exit code {code}, {lines[-1][:300] if lines else 'no message'}"
