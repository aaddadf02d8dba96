"""Targets `ssh://user@host` and `adb://serial`: another machine, with its own clock."""

from __future__ import annotations

from typing import Any

from qexport.errors import EnvironmentProblem
from qexport.serving.devices.adb import AdbConnection, check_adb
from qexport.serving.devices.address import Address, parse_address
from qexport.serving.devices.connection import Connection
from qexport.serving.devices.lodging import Lodging
from qexport.serving.devices.place import DevicePlace
from qexport.serving.devices.ssh import SshConnection, check_ssh
from qexport.serving.runner.build import build_runner, kernels_for
from qexport.serving.runner.runtime import fetch_library
from qexport.serving.targets.protocol import Clock, Say

__all__ = ["DeviceTarget", "from_address"]


def from_address(text: str) -> DeviceTarget:
    """The target of an address.

    Raises:
        UsageError: it is no address of a device.
    """
    return DeviceTarget(parse_address(text))


class DeviceTarget:
    """One device.

    Args:
        address: where it is.
    """

    def __init__(self, address: Address) -> None:
        self.address = address
        self.name = address.text
        self.modes = (f"{address.short} stock", f"{address.short} native")

    def row_limit(self, mode: str) -> int | None:
        """All rows."""
        return None

    def clock(self, mode: str) -> Clock:
        """The device's own."""
        return "own"

    def library(self) -> None:
        """Nothing in this process."""

    def check(self) -> None:
        """The program that reaches the device is there; whether it answers shows when it is started.

        Raises:
            MissingToolError: there is no ssh, or no adb server runs.
        """
        if self.address.kind == "ssh":
            check_ssh()
        else:
            check_adb()

    def _connect(self) -> Connection:
        return SshConnection(self.address) if self.address.kind == "ssh" else AdbConnection(self.address)

    def prepare(self, say: Say) -> dict[str, Any]:
        """Ask the device what it is, and fetch and compile here what goes there.

        Raises:
            EnvironmentProblem: it cannot be reached, is of no known kind, or something cannot be fetched.
        """
        self.check()
        connection = self._connect()
        try:
            lodging = Lodging(connection, self.address.folder)
            lodging.close()
        finally:
            connection.close()
        host = lodging.facts
        name = host.target()
        if name is None:
            if host.python:
                return {"python": f"onnxruntime {host.python}"}
            raise EnvironmentProblem(
                f"{self.address.short} is {host.system} on {host.machine}, which the runner is not "
                f"written for; "
                "install python3 with onnxruntime and numpy there"
            )
        ready = {
            "machine": name,
            "runner": str(build_runner(name, say)),
            "kernels": str(kernels_for(name, say)),
        }
        if self.address.library is None and not self.address.device_library and name.endswith("linux-gnu"):
            ready["onnxruntime"] = str(fetch_library(host.machine, say))
        return ready

    def start(self, say: Say) -> DevicePlace:
        """Copy runner and libraries there; see `DevicePlace` for what it raises."""
        self.check()
        return DevicePlace(self.address, self._connect(), self.modes, say)
