"""A device while files run on it: runner, libraries and models are copied there, each session a process."""

from __future__ import annotations

import contextlib
import hashlib
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from qexport.errors import EnvironmentProblem, MissingPackageError, MissingToolError, QexportError, UsageError
from qexport.serving.devices.address import Address
from qexport.serving.devices.connection import Connection
from qexport.serving.devices.lodging import HostFacts, Lodging
from qexport.serving.native import NOTHING_TO_RUN, has_operators
from qexport.serving.runner import python_runner
from qexport.serving.runner.build import build_runner, kernels_for
from qexport.serving.runner.client import RunnerClient
from qexport.serving.runner.runtime import find_library
from qexport.serving.session import Batch
from qexport.serving.targets.protocol import Facts, Job, Measure, Say

__all__ = ["DevicePlace"]


class DevicePlace:
    """One device.

    Args:
        address: what was asked for.
        connection: to it; closed with the place.
        modes: the names of the modes, stock and native.
        say: takes one line of progress.
    Raises:
        EnvironmentProblem: the device cannot be reached, is of no kind that the runner is written for, or has
            no libonnxruntime while none was given.
    """

    def __init__(self, address: Address, connection: Connection, modes: tuple[str, str], say: Say) -> None:
        self._address, self._connection, self._say = address, connection, say
        self._stock, self._native = modes
        self._clients: dict[tuple[Path, str, int], RunnerClient] = {}
        self._copied: dict[Path, str] = {}
        self._under_test: Path | None = None
        self._last: dict[str, dict[str, Any]] = {}
        self._no_kernels = ""
        self._versions: dict[str, str] = {}
        try:
            self._lodging = Lodging(connection, address.folder)
        except BaseException:
            connection.close()
            raise
        try:
            self._runner = self._install(self._lodging.facts)
            self._kernels = self._install_kernels(self._lodging.facts)
        except BaseException:
            self.close()
            raise

    def _install(self, host: HostFacts) -> list[str]:
        """Copy a runner and its library; the command that starts it, without model and kernels."""
        address, name = self._address, host.target()
        if address.runner == "python" or (address.runner == "" and self._only_python(host, name)):
            if not host.python:
                raise EnvironmentProblem(
                    f"{address.short} has no python3 with onnxruntime and numpy; install them there, "
                    f"or leave "
                    "runner=python out"
                )
            self._say(f"{address.short}: running in its own python, onnxruntime {host.python}")
            return ["python3", self._lodging.copy(Path(python_runner.__file__), "python_runner.py")]
        if name is None:
            raise EnvironmentProblem(
                f"{address.short} is {host.system or 'no Unix'} on "
                f"{host.machine or 'an unknown processor'} with the loaders "
                f"{', '.join(host.loaders) or 'of none that is known'}; the runner is written for "
                f"64-bit Linux and Android on "
                "x86-64 and arm64, elsewhere install python3 with onnxruntime and numpy there"
            )
        library = self._library(host, name)
        self._say(f"{address.short}: copying the runner")
        program = self._lodging.copy(build_runner(name, self._say), "qexport-runner", executable=True)
        if isinstance(library, Path):
            self._say(f"{address.short}: copying {library.name}, {library.stat().st_size / 1e6:.0f} MB")
            library = self._lodging.copy(library, "libonnxruntime.so")
        return [program, "--runtime", library]

    def _only_python(self, host: HostFacts, name: str | None) -> bool:
        """Whether python is the one way to run there."""
        if not host.python:
            return False
        return name is None or self._find_library(host, name) is None

    def _find_library(self, host: HostFacts, name: str) -> Path | str | None:
        address = self._address
        if address.library is not None:
            return address.library
        if address.device_library:
            return address.device_library
        here = find_library(host.machine) if name.endswith("linux-gnu") else None
        if here is not None:
            return here
        return host.runtimes[-1] if host.runtimes else None

    def _library(self, host: HostFacts, name: str) -> Path | str:
        """libonnxruntime: a file here, or a path there.

        Raises:
            MissingToolError: there is none.
        """
        found = self._find_library(host, name)
        if found is not None:
            return found
        short = self._address.short
        if name.endswith("linux-gnu"):
            raise MissingToolError(
                f"there is no libonnxruntime for {short}, neither there nor here",
                f"qexport target prepare {short}",
            )
        where = (
            "jni/arm64-v8a of the package onnxruntime-android" if "android" in name else "a build for musl"
        )
        raise EnvironmentProblem(f"{short} needs a libonnxruntime of {where}; name the file with ?ort=FILE")

    def _install_kernels(self, host: HostFacts) -> str:
        """Copy the kernel library; "" where there is none, and `_no_kernels` says why."""
        name = host.target()
        if name is None:
            self._no_kernels = f"there are no kernels for {host.system} on {host.machine}"
            return ""
        try:
            return self._lodging.copy(kernels_for(name, self._say), "libqexport_kernels.so")
        except MissingPackageError as error:
            self._no_kernels = str(error)
            return ""

    def facts(self) -> Facts:
        """What the device says of itself; the runtime's version is known when a file is open."""
        host = self._lodging.facts
        machine = {"system": f"{host.system} {host.release}".strip(), "architecture": host.machine}
        if host.model:
            machine["model"] = host.model
        return Facts(
            machine, dict(self._versions), {}, {self._native: self._no_kernels} if self._no_kernels else {}
        )

    def open(self, model: Path, *, mode: str, threads: int) -> RunnerClient:
        """Copy an .onnx file, once, and load it in a runner of its own.

        Raises:
            UsageError: there is no such mode.
            UnsupportedModelError: ONNX Runtime there refuses the file.
            EnvironmentProblem: the kernels cannot be used there, no disk space or memory is left.
            TargetLost: the connection was lost.
        """
        if mode not in (self._stock, self._native):
            raise UsageError(
                f"target {self._address.short} has the modes {self._stock}, {self._native}, got '{mode}'"
            )
        if mode == self._native and not self._kernels:
            raise EnvironmentProblem(f"{self._address.short}: {self._no_kernels}")
        key = (model, mode, threads)
        if key not in self._clients:
            self._under_test = self._under_test or model
            if mode == self._native and not has_operators(model):
                self._say(f"{mode}: {NOTHING_TO_RUN.format(model.name)}; it is the same as stock")
            command = [*self._runner, "--model", self._copy_model(model), "--threads", str(threads)]
            if mode == self._native:
                command += ["--kernels", self._kernels]
                command += ["--isa", self._address.isa] if self._address.isa else []
            # ONNX Runtime may leave files in the folder for temporary ones: they shall go with the others.
            start = f"TMPDIR={shlex.quote(self._lodging.folder)} exec {shlex.join(command)}"
            channel = self._connection.start(start)
            client = self._clients[key] = RunnerClient(channel, self._address.short)
            self._versions = {"onnxruntime": str(client.facts["onnxruntime"])}
        return self._clients[key]

    def _copy_model(self, model: Path) -> str:
        if model not in self._copied:
            digest = hashlib.sha256(str(model.absolute()).encode()).hexdigest()[:8]
            self._say(f"{self._address.short}: copying {model.name}, {model.stat().st_size / 1e6:.1f} MB")
            self._copied[model] = self._lodging.copy(model, f"{digest}.onnx")
        return self._copied[model]

    def time(
        self, jobs: Mapping[str, Job], batch: Batch, *, rounds: int, warmup: int
    ) -> Mapping[str, npt.NDArray[np.float64]]:
        """Milliseconds by the device's clock, inside the runner: transfers do not count."""
        clients = {
            name: self.open(job.model, mode=job.mode, threads=job.threads) for name, job in jobs.items()
        }
        times = {name: np.zeros(rounds, dtype=np.float64) for name in clients}
        for _ in range(warmup):
            for client in clients.values():
                client.timed(batch)
        names = list(clients)
        for index in range(rounds):
            first = index % len(names)
            for name in names[first:] + names[:first]:
                times[name][index] = clients[name].timed(batch)[1][0]
        return times

    def measures(self) -> list[Measure]:
        """Load time and peak memory of the file in each mode; clock and temperature of the device."""
        found: list[Measure] = []
        last: dict[str, Any] = {}
        for (model, mode, threads), client in self._clients.items():
            last = client.finish()
            if model != self._under_test:
                continue
            what = f"{mode}, {threads} thread{'s' * (threads > 1)}"
            by = (
                f"kernels {client.facts['kernels']}, {client.facts['isa']}"
                if "isa" in client.facts
                else "no kernels"
            )
            found.append(Measure(f"load time, {what}", float(client.facts["load_ms"]), "ms", by))
            if "peak_bytes" in last:
                found.append(
                    Measure(f"peak memory, {what}", float(last["peak_bytes"]), "bytes", "VmHWM of the runner")
                )
        self._clients.clear()
        if "highest_khz" in last:
            limit = f"of at most {last['max_khz'] / 1000:.0f} MHz" if "max_khz" in last else ""
            found.append(Measure("fastest clock after the runs", last["highest_khz"] / 1000, "MHz", limit))
        for zone, value in last.get("celsius", {}).items():
            found.append(Measure(f"temperature after the runs, {zone}", float(value), "°C"))
        return found

    def close(self) -> None:
        """End the runners and have the folder removed."""
        for client in self._clients.values():
            client.close()
        self._clients.clear()
        with contextlib.suppress(QexportError, OSError, ValueError):
            self._lodging.close()
        self._connection.close()
