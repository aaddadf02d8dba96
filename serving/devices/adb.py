"""Android devices over adb: the wire protocol of the adb server, spoken directly.

Sources: SERVICES.TXT, OVERVIEW.TXT and SYNC.TXT of adb, and shell_protocol.h for `shell,v2`. The server is
the one that `adb start-server` starts; $ANDROID_ADB_SERVER_ADDRESS and $ANDROID_ADB_SERVER_PORT name
another one.
"""

from __future__ import annotations

import contextlib
import io
import os
import socket
import struct
import time
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

from qexport.errors import EnvironmentProblem, MissingToolError, QexportError, TargetLost
from qexport.serving.devices.address import Address
from qexport.serving.devices.connection import copy_failure
from qexport.serving.runner.channel import Ended

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["AdbChannel", "AdbConnection", "check_adb"]

_STDIN, _STDOUT, _STDERR, _EXIT, _CLOSE_STDIN = 0, 1, 2, 3, 4
_CHUNK = 64 * 1024
"""Most bytes of one DATA packet of the sync service."""

_TIMEOUT = 15.0
"""Seconds to wait for an answer of the server itself."""


def _server() -> tuple[str, int]:
    host = os.environ.get("ANDROID_ADB_SERVER_ADDRESS", "127.0.0.1")
    port = os.environ.get("ANDROID_ADB_SERVER_PORT", "5037")
    if not port.isdecimal():
        raise EnvironmentProblem(f"ANDROID_ADB_SERVER_PORT must be a number, got '{port}'; unset it")
    return host, int(port)


def check_adb() -> None:
    """Look whether a server answers.

    Raises:
        MissingToolError: none does.
    """
    _connect().close()


def _connect() -> socket.socket:
    host, port = _server()
    try:
        found = socket.create_connection((host, port), _TIMEOUT)
    except OSError as error:
        raise MissingToolError(
            f"a target adb:// needs a running adb server, and none answers on {host} port {port} "
            f"({error.strerror})",
            "adb start-server",
        ) from error
    found.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return found


def _receive(link: socket.socket, n_bytes: int) -> bytes:
    """Exactly that many bytes.

    Raises:
        EOFError: the connection ends first.
    """
    parts = []
    while n_bytes:
        part = link.recv(min(n_bytes, 1 << 20))
        if not part:
            raise EOFError("the connection was closed")
        parts.append(part)
        n_bytes -= len(part)
    return b"".join(parts)


class _Refused(Exception):
    """The server said FAIL, and why."""


def _ask(link: socket.socket, service: str) -> None:
    """Send a request of the server and take its OKAY."""
    encoded = service.encode()
    link.sendall(f"{len(encoded):04x}".encode() + encoded)
    answer = _receive(link, 4)
    if answer == b"FAIL":
        raise _Refused(_receive(link, int(_receive(link, 4), 16)).decode("utf-8", "replace"))
    if answer != b"OKAY":
        raise _Refused(f"it answers {answer!r}, which no adb server does")


class AdbChannel:
    """A command there, as a stream of packets: kind, length, bytes.

    Args:
        link: the connection, after the OKAY of `shell,v2`.
    """

    def __init__(self, link: socket.socket) -> None:
        self._link = link
        self._errors = bytearray()
        self._output = bytearray()
        self._code: int | None = None
        self._ended = False
        self.stdin = cast(BinaryIO, io.BufferedWriter(_Stdin(self), 1 << 18))
        self.stdout = cast(BinaryIO, io.BufferedReader(_Stdout(self), 1 << 18))

    def send(self, kind: int, data: bytes) -> None:
        """One packet."""
        self._link.sendall(struct.pack("<BI", kind, len(data)) + data)

    def more(self) -> bool:
        """Take the next packet; False at the end."""
        if self._ended:
            return False
        try:
            kind, length = struct.unpack("<BI", _receive(self._link, 5))
            data = _receive(self._link, length)
        except (EOFError, OSError):
            self._ended = True
            return False
        if kind == _STDOUT:
            self._output += data
        elif kind == _STDERR:
            self._errors += data
        elif kind == _EXIT:
            self._code, self._ended = data[0], True
        return True

    def take(self, most: int) -> bytes:
        """Bytes of its output; b"" at the end."""
        while not self._output and self.more():
            pass
        found = bytes(self._output[:most])
        del self._output[:most]
        return found

    def wait(self, timeout: float) -> Ended:
        """Close its input and read until it ends."""
        with contextlib.suppress(OSError, ValueError):
            self.stdin.close()
        end = time.monotonic() + timeout
        while not self._ended and (left := end - time.monotonic()) > 0:
            self._link.settimeout(left)
            self.more()
        self.kill()
        return Ended(self._code, self._errors.decode("utf-8", "replace"))

    def kill(self) -> None:
        """Close the connection; adb's daemon then hangs up on the command."""
        self._ended = True
        with contextlib.suppress(OSError):
            self._link.shutdown(socket.SHUT_RDWR)
        self._link.close()


class _Stdin(io.RawIOBase):
    def __init__(self, channel: AdbChannel) -> None:
        self._channel = channel

    def writable(self) -> bool:
        return True

    def write(self, data: Buffer, /) -> int:
        sent = bytes(data)[:_CHUNK]
        self._channel.send(_STDIN, sent)
        return len(sent)

    def close(self) -> None:
        if not self.closed:
            with contextlib.suppress(OSError):
                self._channel.send(_CLOSE_STDIN, b"")
        super().close()


class _Stdout(io.RawIOBase):
    def __init__(self, channel: AdbChannel) -> None:
        self._channel = channel

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Buffer, /) -> int:
        view = memoryview(buffer)
        found = self._channel.take(len(view))
        view[: len(found)] = found
        return len(found)


class AdbConnection:
    """One device of the adb server.

    Args:
        address: of kind adb; an empty serial number means the only device there is.
    """

    def __init__(self, address: Address) -> None:
        self.name = address.short
        self._transport = f"host:transport:{address.host}" if address.host else "host:transport-any"
        self._prefix = f"host-serial:{address.host}" if address.host else "host"
        self._features: frozenset[str] | None = None

    def _open(self, service: str) -> socket.socket:
        """A connection to a service of the device.

        Raises:
            TargetLost: the server or the device has gone.
            EnvironmentProblem: the server refuses.
        """
        link = _connect()
        try:
            _ask(link, self._transport)
            _ask(link, service)
        except _Refused as error:
            link.close()
            raise EnvironmentProblem(
                f"{self.name} cannot be reached ({error}); look at: adb devices -l"
            ) from error
        except (EOFError, OSError) as error:
            link.close()
            raise TargetLost(
                f"the connection to {self.name} was lost ({error}); connect it and run again"
            ) from error
        link.settimeout(None)
        return link

    def _check_features(self) -> None:
        """Insist on shell,v2, which has exit codes and separate streams: Android 7 and newer."""
        if self._features is not None:
            return
        with contextlib.closing(_connect()) as link:
            try:
                _ask(link, f"{self._prefix}:features")
                text = _receive(link, int(_receive(link, 4), 16)).decode()
            except (_Refused, EOFError, OSError, ValueError) as error:
                raise EnvironmentProblem(
                    f"{self.name} cannot be reached ({error}); look at: adb devices -l"
                ) from error
        self._features = frozenset(text.split(","))
        if "shell_v2" not in self._features:
            raise EnvironmentProblem(f"{self.name} is older than Android 7, whose adb this needs")

    def start(self, command: str) -> AdbChannel:
        """Start a command of the device's shell."""
        self._check_features()
        return AdbChannel(self._open(f"shell,v2,raw:{command}"))

    def copy(self, local: Path, remote: str, *, executable: bool = False) -> None:
        """Copy a file through the sync service."""
        target = f"{remote},{0o100700 if executable else 0o100600}".encode()
        with contextlib.closing(self._open("sync:")) as link, local.open("rb") as file:
            try:
                link.sendall(b"SEND" + struct.pack("<I", len(target)) + target)
                while part := file.read(_CHUNK):
                    link.sendall(b"DATA" + struct.pack("<I", len(part)) + part)
                link.sendall(b"DONE" + struct.pack("<I", int(time.time())))
            except OSError:
                pass  # it may have said why before it hung up
            try:
                answer, length = struct.unpack("<4sI", _receive(link, 8))
                said = _receive(link, length).decode("utf-8", "replace") if answer == b"FAIL" else ""
                if answer != b"OKAY":
                    raise copy_failure(self.name, local, remote, said, lost=False)
                link.sendall(b"QUIT" + struct.pack("<I", 0))
            except (EOFError, OSError) as error:
                raise copy_failure(self.name, local, remote, "", lost=True) from error

    def unreachable(self, ended: Ended) -> QexportError:
        """The device hung up, or its shell refused."""
        said = ended.errors.strip().rpartition("\n")[2]
        if ended.code is None:
            return TargetLost(f"the connection to {self.name} was lost; connect it and run again")
        return EnvironmentProblem(f"{self.name} does not run our commands ({said or f'code {ended.code}'})")

    def close(self) -> None:
        """Nothing is held."""
