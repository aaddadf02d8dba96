"""A stand-in adb server with one device, this machine: host, transport, shell v2 and sync.

It listens on loopback only. `adb` itself can talk to it: ANDROID_ADB_SERVER_PORT=PORT adb -s SERIAL shell ls.
"""

from __future__ import annotations

import contextlib
import os
import socket
import socketserver
import struct
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

VERSION = 41
"""Of the protocol between adb and its server."""


class AdbServer(socketserver.ThreadingTCPServer):
    """The server; `unplug` cuts every connection and takes the device away."""

    daemon_threads = True
    allow_reuse_address = True
    block_on_close = False

    def __init__(self, serial: str = "stand-in") -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.serial: str | None = serial
        self.features = "shell_v2,cmd,stat_v2"
        self.pushed: list[str] = []
        self.breaks_after: int | None = None
        """Unplug after so many bytes of one file; None for never."""
        self.full = False
        """Every file meets a full disk."""
        self.links: set[socket.socket] = set()
        self.processes: list[subprocess.Popen[bytes]] = []

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self.server_address[1])

    def unplug(self) -> None:
        """No device, and every connection to it is cut; what ran there loses its input."""
        self.serial = None
        for link in list(self.links):
            with contextlib.suppress(OSError):
                link.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def adb_server() -> Iterator[AdbServer]:
    """A running one."""
    with AdbServer() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.unplug()
            server.shutdown()
            thread.join()
            for process in server.processes:
                process.wait(10)


class _Gone(Exception):
    """The other side hung up."""


class _Handler(socketserver.BaseRequestHandler):
    server: AdbServer
    request: socket.socket

    def handle(self) -> None:
        self.server.links.add(self.request)
        with contextlib.suppress(_Gone, OSError):
            while self._request(self._text()):
                pass
        self.server.links.discard(self.request)

    def _take(self, n_bytes: int) -> bytes:
        parts = b""
        while len(parts) < n_bytes:
            part = self.request.recv(n_bytes - len(parts))
            if not part:
                raise _Gone
            parts += part
        return parts

    def _text(self) -> str:
        return self._take(int(self._take(4), 16)).decode()

    def _okay(self, text: str | None = None) -> None:
        more = b"" if text is None else f"{len(text):04x}{text}".encode()
        self.request.sendall(b"OKAY" + more)

    def _fail(self, text: str) -> bool:
        self.request.sendall(b"FAIL" + f"{len(text):04x}{text}".encode())
        return False

    def _request(self, service: str) -> bool:
        """Answer one; True where the connection goes on."""
        serial = self.server.serial
        if service == "host:version":
            self._okay(f"{VERSION:04x}")
            return False
        if service.startswith(("host:transport", "host:tport", "host-serial:", "host:features")):
            asked = service.partition(":")[2].partition(":")[2] if "transport:" in service else serial
            if service.startswith("host-serial:"):
                asked = service.split(":")[1]
            if service.startswith("host:tport:serial:"):
                asked = service.removeprefix("host:tport:serial:")
            if serial is None:
                return self._fail("no devices/emulators found")
            if asked != serial:
                return self._fail(f"device '{asked}' not found")
            if service.endswith("features"):
                self._okay(self.server.features)
                return False
            self._okay()
            if service.startswith("host:tport"):
                self.request.sendall(struct.pack("<Q", 1))
            return True
        if service.startswith("shell,v2"):
            self._okay()
            self._shell(service.partition(":")[2])
        elif service == "sync:":
            self._okay()
            self._sync()
        else:
            self._fail(f"unknown service {service}")
        return False

    def _packet(self, kind: int, data: bytes) -> None:
        self.request.sendall(struct.pack("<BI", kind, len(data)) + data)

    def _shell(self, command: str) -> None:
        """One command: packets of stdin in, of stdout and stderr out, then its exit code."""
        process = subprocess.Popen(
            ["sh", "-c", command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        self.server.processes.append(process)
        assert process.stdin and process.stdout and process.stderr
        stdin = process.stdin

        def feed() -> None:
            with contextlib.suppress(_Gone, OSError, ValueError):
                while True:
                    kind, length = struct.unpack("<BI", self._take(5))
                    data = self._take(length)
                    if kind == 0:
                        stdin.write(data)
                        stdin.flush()
                    elif kind == 4:
                        break
            with contextlib.suppress(OSError, ValueError):
                stdin.close()

        def forward(descriptor: int, kind: int) -> None:
            with contextlib.suppress(OSError):
                while data := os.read(descriptor, 1 << 16):
                    self._packet(kind, data)

        feeder = threading.Thread(target=feed, daemon=True)
        errors = threading.Thread(target=forward, args=(process.stderr.fileno(), 2), daemon=True)
        feeder.start()
        errors.start()
        forward(process.stdout.fileno(), 1)
        errors.join()
        code = process.wait()
        process.stdout.close()
        process.stderr.close()
        with contextlib.suppress(OSError):
            self._packet(3, bytes([code & 0xFF]))

    def _sync(self) -> None:
        while True:
            what, length = struct.unpack("<4sI", self._take(8))
            if what == b"QUIT":
                return
            if what == b"STA2" or what == b"LST2":  # what adb asks before a push: there is no such file
                self._take(length)
                self.request.sendall(what + struct.pack("<IQQIIIIQqqq", 2, *[0] * 10))
                continue
            assert what == b"SEND", what
            path, _, mode = self._take(length).decode().rpartition(",")
            self.server.pushed.append(path)
            self._receive(Path(path), int(mode))

    def _receive(self, path: Path, mode: int) -> None:
        total = 0
        with path.open("wb") as file:
            while True:
                what, length = struct.unpack("<4sI", self._take(8))
                if what == b"DONE":
                    break
                assert what == b"DATA" and length <= 64 * 1024
                file.write(self._take(length))
                total += length
                if self.server.breaks_after is not None and total > self.server.breaks_after:
                    self.server.unplug()
        if self.server.full:
            text = b"couldn't write file: No space left on device"
            self.request.sendall(b"FAIL" + struct.pack("<I", len(text)) + text)
            return
        path.chmod(mode & 0o777)
        self.request.sendall(b"OKAY" + struct.pack("<I", 0))
