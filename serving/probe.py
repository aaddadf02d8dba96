"""What one file costs a fresh process: load time, first run, peak memory.

    python -m qexport.serving.probe model.onnx --length 64

As a script it imports only onnxruntime and numpy, loads the file, runs it and prints one line of JSON. With
`--library` it registers a custom-op library first, by ONNX Runtime's own call, as any program may.
`probe` starts it in a child process: a peak can only be measured in a process that did nothing else.
"""

from __future__ import annotations

import sys

if __name__ == "__main__" and sys.path and __file__.startswith(sys.path[0] or "\0"):
    del sys.path[0]  # run by path: modules beside this file must not shadow installed ones

import argparse
import json
import os
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Probe", "main", "peak_memory", "probe", "resident_memory"]


@dataclass(frozen=True, slots=True)
class Probe:
    """Cost of one file in a process of its own."""

    load_ms: float
    """Opening the file on ONNX Runtime: parse, optimise, fold."""
    load_cpu_ms: float
    """Processor time of the same, all threads: what a busy machine does not change."""
    first_run_ms: float
    """First run after loading, batch 1."""
    peak_bytes: int | None
    """Peak resident memory of the process after loading and running; None where the system does not tell."""
    runtime_bytes: int | None
    """Resident memory before loading: the interpreter, numpy and onnxruntime themselves."""
    length: int
    """Tokens of the run."""
    threads: int
    """Threads inside one operator."""

    @property
    def model_bytes(self) -> int | None:
        """Peak memory that the file adds to the runtime."""
        if self.peak_bytes is None or self.runtime_bytes is None:
            return None
        return max(0, self.peak_bytes - self.runtime_bytes)


def _status(field: str) -> int | None:
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as file:
            for line in file:
                if line.startswith(field + ":"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None


def peak_memory() -> int | None:
    """Peak resident bytes of this process.

    Linux: VmHWM, which starts afresh at exec; getrusage's ru_maxrss would carry over the size of the parent.
    """
    peak = _status("VmHWM")
    if peak is not None:
        return peak
    try:
        import resource
    except ImportError:
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * unit


def resident_memory() -> int | None:
    """Resident bytes of this process now; the peak where the system tells no more."""
    return _status("VmRSS") or peak_memory()


def _measure(path: str, *, length: int, threads: int, library: str | None) -> dict[str, Any]:
    import numpy as np
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    before = resident_memory()
    if library is not None:
        options.register_custom_ops_library(library)
    begin, processor = time.perf_counter(), time.process_time()
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    load_ms = (time.perf_counter() - begin) * 1e3
    load_cpu_ms = (time.process_time() - processor) * 1e3
    feeds = {
        node.name: np.full((1, length), 0 if node.name == "token_type_ids" else 1, dtype=np.int64)
        for node in session.get_inputs()
    }
    begin = time.perf_counter()
    session.run(None, feeds)
    first_run_ms = (time.perf_counter() - begin) * 1e3
    for _ in range(3):
        session.run(None, feeds)
    return {
        "load_ms": load_ms,
        "load_cpu_ms": load_cpu_ms,
        "first_run_ms": first_run_ms,
        "peak_bytes": peak_memory(),
        "runtime_bytes": before,
        "length": length,
        "threads": threads,
    }


def probe(
    path: str | Path,
    *,
    length: int = 128,
    threads: int = 1,
    library: Path | None = None,
    isa: str | None = None,
    timeout_s: float = 600.0,
) -> Probe:
    """Measure `path` in a child process.

    Args:
        path: an .onnx file.
        length: tokens of the run, batch 1.
        threads: threads inside one operator.
        library: custom-op library to register; None for ONNX Runtime alone.
        isa: instruction set that the library is held to; None leaves the choice to it.
        timeout_s: seconds after which the child is stopped.
    Raises:
        EnvironmentProblem: the child did not start, failed, or took longer than `timeout_s`.
    """
    from qexport.errors import EnvironmentProblem

    command = [sys.executable, __file__, str(path), "--length", str(length), "--threads", str(threads)]
    if library is not None:
        command += ["--library", str(library)]
    held = {"QEXPORT_ISA": isa} if isa is not None else {}
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
            env={**os.environ, **held},
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EnvironmentProblem(f"the process that measures {path} did not finish ({error})") from error
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise EnvironmentProblem(f"the process that measures {path} failed: {last[:300]}")
    return Probe(**json.loads(done.stdout.strip().splitlines()[-1]))


def main(arguments: list[str] | None = None) -> int:
    """Measure the file named on the command line and print one line of JSON."""
    parser = argparse.ArgumentParser(
        prog="python -m qexport.serving.probe", description=__doc__.splitlines()[0]
    )
    parser.add_argument("file")
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--library")
    options = parser.parse_args(arguments)
    if not os.path.isfile(options.file):
        print(f"{options.file} does not exist", file=sys.stderr)
        return 5
    found = _measure(options.file, length=options.length, threads=options.threads, library=options.library)
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
