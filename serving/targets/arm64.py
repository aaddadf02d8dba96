"""Target `arm64`: ONNX Runtime for arm64 Linux under QEMU's user mode, alone and with the kernel library.

It shows that the numbers are right there. Its time is the emulator's and is never shown; what it reports
instead is how many instructions one inference executes.
"""

from __future__ import annotations

import platform
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from qexport.errors import EnvironmentProblem, MissingToolError, QexportError, UsageError
from qexport.serving.emulation import emulator as qemu
from qexport.serving.emulation.root import find_root, make_root, write_cpuinfo
from qexport.serving.latency import feeds_from_rows
from qexport.serving.native import NOTHING_TO_RUN, has_operators
from qexport.serving.runner.build import build_plugin, build_runner, kernels_for, runner_problem
from qexport.serving.runner.channel import ProcessChannel
from qexport.serving.runner.client import RunnerClient
from qexport.serving.runner.runtime import VERSION, fetch_library, find_library
from qexport.serving.session import Batch, Session
from qexport.serving.targets.protocol import Clock, Facts, Job, Measure, Say

__all__ = ["TARGET", "Arm64Place", "Arm64Target"]

_MACHINE = "aarch64-linux-gnu"
_FIX = "qexport target prepare arm64"
_ROWS = 32
_COUNTED_LENGTHS = (32, 128)
_PROCESSOR = "max,sve=off,pauth-impdef=on"
"""QEMU's best processor without SVE, which few phones have and which is emulated at half the speed;
pointers are signed by a quick method instead of the standard's."""


class Arm64Target:
    """arm64 Linux, emulated."""

    name = "arm64"
    modes = ("arm64-stock", "arm64-native")

    def row_limit(self, mode: str) -> int | None:
        """32 rows: an emulated inference takes some thirty times as long. `--target-rows` asks for more."""
        return _ROWS

    def clock(self, mode: str) -> Clock:
        """None: emulated time is no latency."""
        return "none"

    def library(self) -> None:
        """Nothing in this process."""

    def check(self) -> None:
        """The emulator, the arm64 libraries, ONNX Runtime, the runner and the kernels are there.

        Raises:
            MissingToolError: one is not; `fix` fetches it.
            EnvironmentProblem: this is an arm64 machine already.
        """
        if platform.machine().lower() in ("aarch64", "arm64"):
            raise EnvironmentProblem(
                "target arm64 emulates what this machine is; use the targets native and stock"
            )
        if sys.platform != "linux":
            raise EnvironmentProblem(
                "target arm64 needs QEMU's user mode, which runs on Linux only; use ssh://USER@HOST"
            )
        if qemu.emulator() is None:
            raise MissingToolError(
                "target arm64 needs an emulator, qemu-aarch64", "apt-get install qemu-user"
            )
        if find_root() is None or find_library("aarch64") is None:
            raise MissingToolError("target arm64 has not been prepared", _FIX)
        problem = runner_problem(_MACHINE)
        if problem:
            raise MissingToolError(f"target arm64 has not been prepared for this version: {problem}", _FIX)

    def prepare(self, say: Say) -> dict[str, Any]:
        """Fetch the arm64 libraries and ONNX Runtime, and compile runner, kernels and the counting plugin.

        Raises:
            EnvironmentProblem: something cannot be fetched or compiled.
        """
        root = make_root(say)
        library = fetch_library("aarch64", say)
        build_runner(_MACHINE, say)
        kernels_for(_MACHINE, say)
        if qemu.counting_emulator() is not None:
            build_plugin(qemu.COUNT_PLUGIN, say)
        self.check()
        return {"system": str(root), "onnxruntime": f"{VERSION} ({library})", "qemu": _emulator_version()}

    def start(self, say: Say) -> Arm64Place:
        """Nothing runs before a file is opened."""
        self.check()
        return Arm64Place(say)


def _emulator_version() -> str:
    program = qemu.emulator()
    return qemu.emulator_version(program) if program else "none"


class Arm64Place:
    """Runners under the emulator.

    Args:
        say: takes one line of progress.
    """

    def __init__(self, say: Say) -> None:
        self._say = say
        self._clients: dict[tuple[Path, str, int], RunnerClient] = {}

    def facts(self) -> Facts:
        """The emulated processor; versions of QEMU and of ONNX Runtime."""
        machine = {"processor": f"QEMU -cpu {_PROCESSOR}, emulated", "architecture": "aarch64"}
        library = find_library("aarch64")
        versions = {"qemu": _emulator_version()}
        if library is not None:
            versions["onnxruntime"] = VERSION
        return Facts(machine, versions)

    def open(self, model: Path, *, mode: str, threads: int) -> RunnerClient:
        """Load an .onnx file in a runner of its own.

        Raises:
            UnsupportedModelError: ONNX Runtime refuses the file.
            UsageError: there is no such mode.
        """
        if mode not in Arm64Target.modes:
            raise UsageError(f"target arm64 has the modes {', '.join(Arm64Target.modes)}, got '{mode}'")
        key = (model, mode, threads)
        if key not in self._clients:
            if mode == "arm64-native" and not has_operators(model):
                self._say(f"{mode}: {NOTHING_TO_RUN.format(model.name)}; it is the same as arm64-stock")
            program = qemu.emulator()
            if program is None:
                raise MissingToolError("the emulator has gone", "apt-get install qemu-user")
            self._say(f"{mode}: loading {model.name} in the emulator, which takes a while")
            self._clients[key] = RunnerClient(
                ProcessChannel(_command([program], model, mode, threads)), "arm64"
            )
        return self._clients[key]

    def time(
        self, jobs: Mapping[str, Job], batch: Batch, *, rounds: int, warmup: int
    ) -> Mapping[str, npt.NDArray[np.float64]]:
        """Never called: there is no clock."""
        raise UsageError("target arm64 is emulated, its time is no latency")

    def measures(self) -> list[Measure]:
        """Executed instructions of one inference in every mode that ran, at 32 and 128 tokens if they fit."""
        program = qemu.counting_emulator()
        if program is None:
            self._say("no instructions were counted: that needs qemu-user, the dynamic build of QEMU 6 to 8")
            return []
        found: list[Measure] = []
        try:
            plugin = build_plugin(qemu.COUNT_PLUGIN, self._say)
            for (model, mode, threads), client in self._clients.items():
                if plugin is not None and threads == 1:
                    self._say(f"{mode}: counting executed instructions, which takes a while")
                    found += _count(program, plugin, model, mode, client)
        except QexportError as error:
            self._say(f"no instructions were counted: {error}")
        return found

    def close(self) -> None:
        """End every runner."""
        for client in self._clients.values():
            client.close()
        self._clients.clear()


def _command(emulator: list[str], model: Path, mode: str, threads: int, *more: str) -> list[str]:
    """The command of one runner.

    Raises:
        MissingToolError: what was prepared has gone.
    """
    root, library = find_root(), find_library("aarch64")
    if root is None or library is None:
        raise MissingToolError("what target arm64 needs has gone", _FIX)
    write_cpuinfo(root)
    command = [
        *emulator,
        "-cpu",
        _PROCESSOR,
        "-L",
        str(root),
        str(build_runner(_MACHINE)),
        "--runtime",
        str(library),
    ]
    command += ["--model", str(model.absolute()), "--threads", str(threads), *more]
    return [*command, "--kernels", str(kernels_for(_MACHINE))] if mode == "arm64-native" else command


def _count(program: str, plugin: Path, model: Path, mode: str, running: RunnerClient) -> list[Measure]:
    """Instructions of the second inference at each length; the first one allocates memory."""
    with tempfile.TemporaryDirectory(prefix="qexport-count-") as folder:
        counts = Path(folder) / "counts"
        emulated = [program, "-plugin", f"file={plugin},out={counts}"]
        client = RunnerClient(ProcessChannel(_command(emulated, model, mode, 1, "--mark")), "arm64")
        try:
            found = []
            longest = Session(model).position_limit
            for length in [length for length in _COUNTED_LENGTHS if length <= longest]:
                batch = feeds_from_rows(
                    [{"input_ids": np.ones((1, 1), dtype=np.int64)}], length=length, batch_size=1
                )
                client.timed(batch, repeats=2)
                isa = running.facts.get("isa")
                found.append(
                    Measure(
                        f"instructions per inference, {mode}, {length} tokens",
                        float(qemu.last_count(counts)), "instructions",
                        f"counted by a plugin of QEMU {qemu.emulator_version(program)} on one thread"
                        + (f", kernels on {isa}" if isa else ""),
                    )
                )  # fmt: skip
            return found
        finally:
            client.close()


TARGET = Arm64Target()
