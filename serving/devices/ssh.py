"""Devices over ssh, with the ssh of this system: its configuration, agent and known hosts hold here, too."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import tempfile
from pathlib import Path

from qexport.errors import EnvironmentProblem, MissingToolError, QexportError
from qexport.serving.devices.address import Address
from qexport.serving.devices.connection import copy_failure
from qexport.serving.runner.channel import Ended, ProcessChannel

__all__ = ["SshConnection", "check_ssh"]

_OPTIONS = (
    "BatchMode=yes", "ConnectTimeout=10", "ServerAliveInterval=5", "ServerAliveCountMax=3", "RequestTTY=no",
    "ForwardAgent=no", "ForwardX11=no", "ClearAllForwardings=yes", "LogLevel=ERROR",
)  # fmt: skip
_CHUNK = 1 << 18


def check_ssh() -> None:
    """Find the program.

    Raises:
        MissingToolError: there is none.
    """
    if shutil.which("ssh") is None:
        raise MissingToolError("a target ssh:// needs the program ssh", "apt-get install openssh-client")


class SshConnection:
    """One host. The first command carries the connection, the others go through it.

    $QEXPORT_SSH_CONFIG names another configuration file than the user's own.

    Args:
        address: of kind ssh.
    """

    def __init__(self, address: Address) -> None:
        self.name = address.short
        self._host = address.host
        # The name of a socket may have some hundred characters, and ssh adds a few of its own.
        self._folder = tempfile.mkdtemp(
            prefix="qexport-ssh-", dir="/tmp" if len(tempfile.gettempdir()) > 60 else None
        )
        self._options = [word for option in _OPTIONS for word in ("-o", option)]
        config = os.environ.get("QEXPORT_SSH_CONFIG")
        if config:
            self._options += ["-F", config]
        if address.port is not None:
            self._options += ["-p", str(address.port)]
        self._options += ["-o", f"ControlPath={self._folder}/s"]
        self._first = True

    def start(self, command: str) -> ProcessChannel:
        """Start a command of sh there."""
        master, folders = ("yes", [self._folder]) if self._first else ("no", [])
        self._first = False
        return ProcessChannel(
            [
                "ssh",
                *self._options,
                "-o",
                f"ControlMaster={master}",
                self._host,
                "--",
                f"exec sh -c {shlex.quote(command)}",
            ],
            folders=folders,
        )

    def copy(self, local: Path, remote: str, *, executable: bool = False) -> None:
        """Copy a file through `cat`, which every host has."""
        path = shlex.quote(remote)
        mode = f" && chmod 700 {path}" if executable else ""
        channel = self.start(f"cat > {path} && wc -c < {path}{mode}")
        broken = False
        try:
            with local.open("rb") as file:
                while part := file.read(_CHUNK):
                    channel.stdin.write(part)
            channel.stdin.close()
            told = channel.stdout.read()
        except OSError:  # the other side has stopped reading: its message says why
            broken, told = True, b""
        except BaseException:
            channel.kill()
            raise
        ended = channel.wait(30.0)
        counted = told.split()[-1:]  # a login shell may have said something before
        if broken or ended.code or counted != [str(local.stat().st_size).encode()]:
            raise copy_failure(
                self.name, local, remote, ended.errors.strip().rpartition("\n")[2],
                lost=ended.code is None or ended.code in (255, -9) or ended.code == 0,
            )  # fmt: skip

    def unreachable(self, ended: Ended) -> QexportError:
        """What ssh said."""
        lines = [line.strip() for line in ended.errors.splitlines() if line.strip()]
        said = lines[-1].rstrip(".") if lines else f"ssh ended with code {ended.code}"
        if ended.code == 255:
            return EnvironmentProblem(
                f"{self.name} cannot be reached ({said}); try: ssh -o BatchMode=yes {self._host} true"
            )
        return EnvironmentProblem(
            f"{self.name} does not run our commands ({said}); its login shell must be a plain sh"
        )

    def close(self) -> None:
        """Remove the folder of the connection's socket."""
        with contextlib.suppress(OSError):
            shutil.rmtree(self._folder)
