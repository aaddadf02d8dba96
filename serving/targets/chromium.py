"""A headless Chromium of its own, driven by the DevTools protocol over a small WebSocket client."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qexport.errors import EnvironmentProblem, MissingToolError, TargetLost, UnsupportedModelError
from qexport.serving.complaints import Complaints
from qexport.serving.guard import Guard

__all__ = ["Chromium", "WebSocket", "find_chromium"]

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync",
    "--no-first-run", "--no-default-browser-check", "--disable-component-update", "--disable-default-apps",
    "--disable-extensions", "--disable-dev-shm-usage", "--disable-breakpad", "--metrics-recording-only",
    "--disable-background-timer-throttling", "--disable-renderer-backgrounding", "--mute-audio",
    "--remote-debugging-port=0",
)  # fmt: skip
_START_SECONDS = 60.0
_TEXT, _CLOSE, _PING, _PONG = 1, 8, 9, 10


def find_chromium() -> str:
    """Path of Chromium or Chrome; QEXPORT_CHROMIUM names one.

    Raises:
        MissingToolError: there is none.
    """
    named = os.environ.get("QEXPORT_CHROMIUM")
    found = shutil.which(named) if named else next(filter(None, map(shutil.which, _NAMES)), None)
    if found is None:
        where = f"QEXPORT_CHROMIUM is {named}" if named else "none of its names is on the PATH"
        raise MissingToolError(f"Chromium is needed and was not found ({where})", "apt-get install chromium")
    return found


class WebSocket:
    """The client side of RFC 6455, text messages only, to a server on this machine.

    Args:
        url: ws://127.0.0.1:PORT/PATH.
    Raises:
        OSError: it does not accept.
    """

    def __init__(self, url: str) -> None:
        host, _, path = url.removeprefix("ws://").partition("/")
        name, _, port = host.partition(":")
        self._socket = socket.create_connection((name, int(port)), timeout=30)
        key = base64.b64encode(secrets.token_bytes(16)).decode()
        request = (
            f"GET /{path} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        self._socket.sendall(request.encode())
        self._buffer = b""
        while b"\r\n\r\n" not in self._buffer:
            self._fill()
        head, _, self._buffer = self._buffer.partition(b"\r\n\r\n")
        if b" 101 " not in head.split(b"\r\n")[0]:
            raise ConnectionError("the browser refused the DevTools connection")

    def _fill(self) -> None:
        data = self._socket.recv(1 << 20)
        if not data:
            raise ConnectionError("the browser closed the DevTools connection")
        self._buffer += data

    def _take(self, count: int) -> bytes:
        while len(self._buffer) < count:
            self._fill()
        taken, self._buffer = self._buffer[:count], self._buffer[count:]
        return taken

    def send(self, text: str) -> None:
        """Send one text message, masked as a client must."""
        self._frame(_TEXT, text.encode())

    def _frame(self, kind: int, data: bytes) -> None:
        size = len(data)
        length = (
            bytes([0x80 | size]) if size < 126
            else b"\xfe" + struct.pack("!H", size) if size < 1 << 16
            else b"\xff" + struct.pack("!Q", size)
        )  # fmt: skip
        # A mask of zeros is a valid mask; the connection never leaves this machine.
        self._socket.sendall(bytes([0x80 | kind]) + length + b"\0\0\0\0" + data)

    def receive(self, timeout: float) -> str:
        """The next text message.

        Raises:
            TimeoutError: none came.
            ConnectionError: the other side is gone.
        """
        self._socket.settimeout(timeout)
        message = b""
        while True:
            first, second = self._take(2)
            size = second & 127
            if size == 126:
                (size,) = struct.unpack("!H", self._take(2))
            elif size == 127:
                (size,) = struct.unpack("!Q", self._take(8))
            data = self._take(size)
            kind = first & 15
            if kind == _CLOSE:
                raise ConnectionError("the browser closed the DevTools connection")
            if kind == _PING:
                self._frame(_PONG, data)
            elif kind in (0, _TEXT):
                message += data
                if first & 0x80:
                    return message.decode("utf-8")

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()


class Chromium:
    """One browser process with a profile of its own and one page; both go when this process is killed.

    Args:
        path: the program.
        flags: further flags.
    Raises:
        EnvironmentProblem: it does not start; what it said last is in the message.
    """

    def __init__(self, path: str, flags: tuple[str, ...] = ()) -> None:
        self.path = path
        # It is $TMPDIR too: Chromium leaves sockets there, whose names may have some hundred characters.
        self._profile = tempfile.TemporaryDirectory(
            prefix="qexport-chromium-", ignore_cleanup_errors=True,
            dir="/tmp" if os.name == "posix" and len(tempfile.gettempdir()) > 40 else None,
        )  # fmt: skip
        self._guard = Guard(self._profile.name)
        self._complaints = Complaints()
        self._socket: WebSocket | None = None
        self._count = 0
        self._session: str | None = None
        command = [path, *_FLAGS, *flags, f"--user-data-dir={self._profile.name}", "about:blank"]
        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=self._complaints.file, stderr=self._complaints.file,
                start_new_session=os.name == "posix", env={**os.environ, "TMPDIR": self._profile.name},
            )  # fmt: skip
        except OSError as error:
            self._clean()
            raise EnvironmentProblem(f"{path} does not start ({error}); install Chromium again") from error
        self._guard.watch(self._process.pid)
        try:
            self._socket = WebSocket(self._endpoint())
            self.version: str = self.browser("Browser.getVersion")["product"].rpartition("/")[2]
            pages = self.browser("Target.getTargets")["targetInfos"]
            page = next(one["targetId"] for one in pages if one["type"] == "page")
            attached = self.browser("Target.attachToTarget", targetId=page, flatten=True)
            self._session = attached["sessionId"]
            for domain in ("Page", "Runtime", "Inspector", "Network"):
                self.page(f"{domain}.enable")
        except (OSError, TargetLost, StopIteration) as error:
            said = self._said()
            self.close()
            raise EnvironmentProblem(
                f"{path} does not start ({said or error}); install Chromium again"
            ) from error
        except BaseException:  # Ctrl-C does not reach a browser in a session of its own
            self.close()
            raise

    def _endpoint(self) -> str:
        """Address of the DevTools server, from the file that Chromium writes when it listens."""
        file, end = Path(self._profile.name) / "DevToolsActivePort", time.monotonic() + _START_SECONDS
        while time.monotonic() < end:
            if self._process.poll() is not None:
                raise TargetLost(f"it ended with code {self._process.returncode}")
            with contextlib.suppress(OSError, ValueError):
                port, path = file.read_text(encoding="utf-8").split("\n")[:2]
                return f"ws://127.0.0.1:{int(port)}{path}"
            time.sleep(0.05)
        raise TargetLost(f"it did not open its DevTools port within {_START_SECONDS:.0f} s")

    def _said(self) -> str:
        lines = self._complaints.text().splitlines()
        return next((line.strip()[:200] for line in reversed(lines) if "rror" in line or "FATAL" in line), "")

    def browser(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command to the browser."""
        return self._call(method, parameters, None, 60.0)

    def page(self, method: str, *, timeout: float = 60.0, **parameters: Any) -> dict[str, Any]:
        """One command to the page.

        Raises:
            TargetLost: the browser or the page is gone, or there was no answer in time.
        """
        return self._call(method, parameters, self._session, timeout)

    def _call(
        self, method: str, parameters: Mapping[str, Any], session: str | None, timeout: float
    ) -> dict[str, Any]:
        assert self._socket is not None
        self._count += 1
        message: dict[str, Any] = {"id": self._count, "method": method, "params": parameters}
        if session is not None:
            message["sessionId"] = session
        end = time.monotonic() + timeout
        try:
            self._socket.send(json.dumps(message))
            while True:
                found = json.loads(self._socket.receive(max(0.01, end - time.monotonic())))
                if found.get("method") in ("Inspector.targetCrashed", "Target.targetCrashed"):
                    raise TargetLost("the page crashed in Chromium, often for lack of memory")
                if found.get("method") == "Inspector.detached":
                    raise TargetLost("the page was closed in Chromium")
                if found.get("id") == self._count:
                    break
        except TimeoutError:
            raise TargetLost(f"Chromium did not answer within {timeout:.0f} s") from None
        except OSError:
            raise TargetLost(self._how_it_ended()) from None
        if "error" in found:
            raise TargetLost(f"Chromium refused {method}: {found['error'].get('message')}")
        result: dict[str, Any] = found["result"]
        return result

    def _how_it_ended(self) -> str:
        try:
            code = self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            return "Chromium closed its connection while it was used"
        how = f"was ended by signal {-code}" if code < 0 else f"ended with code {code}"
        return f"Chromium {how} while it was used"

    def evaluate(self, expression: str, *, timeout: float = 60.0) -> Any:
        """Value of a JavaScript expression in the page; a promise is awaited.

        Raises:
            UnsupportedModelError: it threw; the message is what it said.
            TargetLost: see `page`.
        """
        found = self.page(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True, timeout=timeout
        )
        if "exceptionDetails" in found:
            details = found["exceptionDetails"]
            said = details.get("exception", {}).get("description") or details.get("text", "")
            raise UnsupportedModelError(" ".join(str(said).split("\n    at ")[0].split())[:300])
        return found["result"].get("value")

    def wait_for(self, expression: str, *, timeout: float = 60.0) -> None:
        """Wait until an expression is true in the page."""
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            with contextlib.suppress(UnsupportedModelError):
                if self.evaluate(f"Boolean({expression})"):
                    return
            time.sleep(0.05)
        raise TargetLost(f"the page in Chromium was not ready within {timeout:.0f} s")

    def open(self, url: str) -> None:
        """Show a page."""
        self.page("Page.navigate", url=url)

    def close(self) -> None:
        """End the browser with its children, and remove its profile."""
        if self._socket is not None:
            self._socket.close()
        with contextlib.suppress(OSError):
            if os.name == "posix":  # its own group, so that no helper process outlives a browser that died
                os.killpg(self._process.pid, signal.SIGKILL)
            elif self._process.poll() is None:
                self._process.kill()
        self._process.wait()
        self._clean()

    def _clean(self) -> None:
        self._guard.release()
        self._complaints.close()
        self._profile.cleanup()
