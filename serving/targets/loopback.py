"""A web server on 127.0.0.1 for one verification: our page, onnxruntime-web, and the files under test.

Every reply carries the headers that make a page cross-origin isolated, without which a browser gives it no
shared memory and so no threads. Paths begin with a random word, so that other pages in a browser of this
machine cannot guess them.
"""

from __future__ import annotations

import gzip
import mimetypes
import secrets
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote

__all__ = ["Loopback"]

_TYPES = {".mjs": "text/javascript", ".wasm": "application/wasm", ".onnx": "application/octet-stream"}
_ISOLATION = {
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_COMPRESSED = (".mjs", ".wasm", ".html")


class Loopback:
    """Serves files until it is closed.

    Args:
        folders: first part of the path -> folder whose files it serves; "" for the root.
        compress: send programs (not models) with gzip, as a content network does.
    """

    def __init__(self, folders: Mapping[str, Path], *, compress: bool = False) -> None:
        self._folders = {name: folder.resolve() for name, folder in folders.items()}
        self._files: dict[str, Path] = {}
        self._word = secrets.token_urlsafe(12)
        self._compress = compress
        self._packed: dict[Path, bytes] = {}
        self.sent: dict[str, int] = {}
        """Path -> bytes of the body last sent."""
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        """Address of the root, with a slash at its end."""
        return f"http://127.0.0.1:{self._server.server_address[1]}/{self._word}/"

    def add(self, path: Path) -> str:
        """Serve one more file; gives its path below `url`, quoted."""
        for name, known in self._files.items():
            if known == path.resolve():
                return name
        name = f"files/{len(self._files)}/{quote(path.name)}"
        self._files[name] = path.resolve()
        return name

    def find(self, path: str) -> Path | None:
        """The file behind a request's path; None for anything that is not served."""
        word, _, rest = path.partition("?")[0].lstrip("/").partition("/")
        if not secrets.compare_digest(word.encode(), self._word.encode()):
            return None
        if rest in self._files:
            return self._files[rest]
        first, _, inside = rest.partition("/")
        root = self._folders.get(first) if inside else None
        if root is None:
            root, inside = self._folders.get(""), rest
        if root is None:
            return None
        file = (root / (inside or "index.html")).resolve()
        return file if file.is_file() and file.is_relative_to(root) else None

    def body(self, file: Path) -> tuple[bytes, bool]:
        """What is sent of a file, and whether it is packed."""
        if not self._compress or file.suffix not in _COMPRESSED:
            return file.read_bytes(), False
        if file not in self._packed:
            self._packed[file] = gzip.compress(file.read_bytes(), 6)
        return self._packed[file], True

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        served = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                file = served.find(self.path)
                if file is None:
                    self.send_error(404)
                    return
                body, packed = served.body(file)
                served.sent[file.name] = len(body)
                self.send_response(200)
                kind = _TYPES.get(file.suffix) or mimetypes.guess_type(file.name)[0]
                self.send_header("Content-Type", kind or "application/octet-stream")
                self.send_header("Content-Length", str(len(body)))
                self.send_header("Cache-Control", "no-store")
                if packed:
                    self.send_header("Content-Encoding", "gzip")
                for name, value in _ISOLATION.items():
                    self.send_header(name, value)
                self.end_headers()
                try:
                    self.wfile.write(body)
                except OSError:  # the browser was ended
                    self.close_connection = True

            def log_message(self, format: str, *args: object) -> None:
                """Quiet."""

        return Handler

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(timeout=10)
