"""The runner in Python, for hosts that have python with numpy and onnxruntime; one file, nothing of qexport.

    python3 python_runner.py --model model.onnx [--kernels libqexport_kernels.so] [--isa NAME] [--threads N]
                             [--optimize 0|1] < batches > results

It reads and writes the same streams as qexport-runner (docs/targets-devices.md) with the same exit codes.
The functions on streams are used by qexport itself, too.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import platform
import struct
import sys
import time
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

MAGIC = struct.pack("<II", 0x52545851, 1)
"""The first eight bytes of a stream: QXTR and the version of the format."""

TYPES = {
    1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64", 9: "bool",
    10: "float16", 11: "float64", 12: "uint32", 13: "uint64",
}  # fmt: skip
"""Type number of ONNX -> name of numpy."""

NO_RUNTIME, NO_KERNELS, NO_ISA, BAD_MODEL, BAD_INPUT, RUN_FAILED, DISK_FULL, OUTPUT_CLOSED = (
    20, 23, 24, 25, 26, 27, 28, 29,
)  # fmt: skip
"""Exit codes, those of qexport-runner."""


class StreamEnded(Exception):
    """A stream ended in the middle of a record, or before its last one."""


def _take(stream: BinaryIO, n_bytes: int) -> bytes:
    parts = []
    while n_bytes:
        part = stream.read(n_bytes)
        if not part:
            raise StreamEnded
        parts.append(part)
        n_bytes -= len(part)
    return b"".join(parts)


def read_record(stream: BinaryIO) -> dict[str, Any]:
    """The next record, name -> array; {} is the end of the stream.

    Raises:
        StreamEnded: the stream ends in the middle of it.
        ValueError: this is no such stream.
    """
    (count,) = struct.unpack("<I", _take(stream, 4))
    if count > 64:
        raise ValueError("a record of too many tensors")
    record = {}
    for _ in range(count):
        (length,) = struct.unpack("<I", _take(stream, 4))
        if not 0 < length < 256:
            raise ValueError("a name is too long")
        name = _take(stream, length).decode("utf-8", "replace")
        kind, rank = struct.unpack("<II", _take(stream, 8))
        if kind not in TYPES or rank > 8:
            raise ValueError(f"unknown type {kind}, or {rank} dimensions")
        shape = struct.unpack(f"<{rank}q", _take(stream, 8 * rank))
        dtype = np.dtype(TYPES[kind]).newbyteorder("<")
        n_bytes = dtype.itemsize
        for dim in shape:
            n_bytes *= dim
        if min(shape, default=0) < 0 or n_bytes > 2**31:
            raise ValueError(f"the shape {list(shape)} cannot be")
        record[name] = np.frombuffer(_take(stream, n_bytes), dtype=dtype).reshape(shape)
    return record


def write_record(stream: BinaryIO, record: dict[str, Any]) -> None:
    """Write name -> array as one record, and flush; {} ends the stream."""
    numbers = {name: number for number, name in TYPES.items()}
    parts = [struct.pack("<I", len(record))]
    for name, value in record.items():
        array = np.ascontiguousarray(value)
        encoded = name.encode()
        parts.append(struct.pack("<I", len(encoded)) + encoded)
        parts.append(struct.pack("<II", numbers[array.dtype.name], np.ndim(value)))
        parts.append(struct.pack(f"<{np.ndim(value)}q", *np.shape(value)) + array.tobytes())
    stream.write(b"".join(parts))
    stream.flush()


def _fail(code: int, text: str) -> None:
    print(f"qexport-runner: {' '.join(text.split())}", file=sys.stderr, flush=True)
    raise SystemExit(code)


def _field(path: str, name: str) -> str:
    try:
        lines = Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), "")


def _numbers(pattern: str) -> dict[str, int]:
    """Path -> the number in each file of /sys that matches; what cannot be read is left out."""
    found = {}
    for path in sorted(Path("/sys").glob(pattern)):
        try:
            found[str(path)] = int(path.read_text())
        except (OSError, ValueError):
            continue
    return found


def machine_facts() -> dict[str, Any]:
    """The processor, its clock and temperature and the memory used so far, as far as the system tells."""
    facts: dict[str, Any] = {"architecture": platform.machine()}
    cpu = _field("/proc/cpuinfo", "model name") or _field("/proc/cpuinfo", "Hardware")
    if cpu:
        facts["cpu"] = cpu
    peak = _field("/proc/self/status", "VmHWM")
    if peak:
        facts["peak_bytes"] = 1024 * int(peak.split()[0])
    now = _numbers("devices/system/cpu/cpu[0-9]*/cpufreq/scaling_cur_freq").values()
    if now:
        facts |= {"lowest_khz": min(now), "highest_khz": max(now)}
        most = _numbers("devices/system/cpu/cpu[0-9]*/cpufreq/cpuinfo_max_freq").values()
        if most:
            facts["max_khz"] = max(most)
    heat = {}
    for path, value in _numbers("class/thermal/thermal_zone*/temp").items():
        zone = Path(path).parent
        try:
            name = zone.joinpath("type").read_text().strip()
        except OSError:
            name = "zone"
        if value > 0:
            heat[name + zone.name.removeprefix("thermal_zone")] = value / 1000
    if heat:
        facts["celsius"] = heat
    return facts


class _Program:
    """One session, and what it says about itself."""

    def __init__(self, options: argparse.Namespace) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            _fail(NO_RUNTIME, f"this python has no onnxruntime ({error})")
        self.facts: dict[str, Any] = {
            "runner": "python " + platform.python_version(),
            "onnxruntime": onnxruntime.__version__,
            "threads": options.threads,
        }
        onnxruntime.disable_telemetry_events()
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads, settings.inter_op_num_threads = options.threads, 1
        settings.log_severity_level = 4
        settings.add_session_config_entry("session.force_spinning_stop", "1")
        if not options.optimize:
            settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        if options.kernels:
            self._register(settings, options.kernels, options.isa)
        begin = time.perf_counter()
        try:
            self.session = onnxruntime.InferenceSession(
                options.model, settings, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # ONNX Runtime's exceptions share no base
            _fail(BAD_MODEL, f"{options.model} cannot be loaded ({error})")
        self.facts["load_ms"] = 1e3 * (time.perf_counter() - begin)
        self.inputs = [node.name for node in self.session.get_inputs()]
        self.outputs = [node.name for node in self.session.get_outputs()]
        self.facts |= {"inputs": self.inputs, "outputs": self.outputs}

    def _register(self, settings: Any, path: str, isa: str | None) -> None:
        try:
            library = ctypes.CDLL(path)
            for name in ("qexport_kernels_version", "qexport_isa"):
                getattr(library, name).restype = ctypes.c_char_p
            problem = library.qexport_set_isa(isa.encode()) if isa else 0
            if problem:
                _fail(NO_ISA, f"this processor lacks the instruction set {isa}")
            settings.register_custom_ops_library(path)
        except Exception as error:  # OSError, AttributeError, and those of ONNX Runtime
            _fail(NO_KERNELS, f"ONNX Runtime refuses the kernel library ({error})")
        self.facts |= {
            "kernels": library.qexport_kernels_version().decode(),
            "isa": library.qexport_isa().decode(),
        }

    def run(self, record: dict[str, Any]) -> dict[str, Any]:
        """Outputs of one batch, and `:ms`, float64 [repeats]."""
        missing = [name for name in self.inputs if name not in record]
        if missing:
            _fail(BAD_INPUT, f"the input record lacks the tensor {missing[0]}")
        feeds = {name: record[name] for name in self.inputs}
        repeats, warmup = (
            int(record.get(name, [default])[0]) for name, default in ((":repeats", 1), (":warmup", 0))
        )
        times: list[float] = []
        outputs: list[Any] = []
        for turn in range(-warmup, repeats):
            begin = time.perf_counter()
            try:
                outputs = self.session.run(self.outputs, feeds)
            except Exception as error:  # see above
                _fail(RUN_FAILED, f"ONNX Runtime cannot run the batch ({error})")
            if turn >= 0:
                times.append(1e3 * (time.perf_counter() - begin))
        return {**dict(zip(self.outputs, outputs, strict=True)), ":ms": np.array(times, dtype=np.float64)}

    def facts_record(self) -> dict[str, Any]:
        """`:facts`, a JSON object in UTF-8, uint8 [n]."""
        text = json.dumps({**self.facts, **machine_facts()})
        return {":facts": np.frombuffer(text.encode(), dtype=np.uint8)}


def main() -> None:
    """Read batches until the stream ends."""
    parser = argparse.ArgumentParser(description="Run an ONNX file on batches from standard input.")
    parser.add_argument("--model", required=True)
    parser.add_argument("--kernels")
    parser.add_argument("--isa")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--optimize", type=int, default=1)
    program = _Program(parser.parse_args())
    read, write = sys.stdin.buffer, sys.stdout.buffer
    try:
        write.write(MAGIC)
        write_record(write, program.facts_record())
        if _take(read, len(MAGIC)) != MAGIC:
            _fail(BAD_INPUT, "the input is no tensor stream of version 1")
        while record := read_record(read):
            write_record(write, program.run(record))
        write_record(write, program.facts_record())
        write_record(write, {})
    except StreamEnded:
        _fail(BAD_INPUT, "the input ends in the middle")
    except ValueError as error:
        _fail(BAD_INPUT, f"the input is no tensor stream: {error}")
    except OSError as error:
        full = error.errno in (28, 122)
        _fail(DISK_FULL if full else OUTPUT_CLOSED, f"the output cannot be written: {error.strerror}")


if __name__ == "__main__":
    main()
