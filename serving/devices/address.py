"""Addresses of devices: ssh://user@host:port/folder?ort=FILE, adb://SERIAL?ort=FILE."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlsplit

from qexport.errors import UsageError

__all__ = ["Address", "parse_address"]

_OPTIONS = {
    "ort": "a libonnxruntime on this machine, to copy there",
    "device-ort": "a libonnxruntime that is there already",
    "runner": "c or python",
    "isa": "an instruction set of the kernels",
}
"""What may follow the question mark."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where a device is, and how it is to be used."""

    text: str
    """As the user wrote it."""
    kind: str
    """ "ssh" or "adb"."""
    host: str
    """user@host, or the serial number; "" for the only device of adb."""
    port: int | None
    """Of ssh; None for the usual one."""
    folder: str
    """Where temporary files go there; "" for the system's own place."""
    library: Path | None
    """libonnxruntime on this machine."""
    device_library: str
    """Path of libonnxruntime there; "" to look for one."""
    runner: str
    """ "c", "python", or "" for the one that fits."""
    isa: str
    """Instruction set of the kernels; "" for the best."""

    @property
    def short(self) -> str:
        """The address without folder and options: "ssh://user@host:port"."""
        port = "" if self.port is None else f":{self.port}"
        return f"{self.kind}://{self.host}{port}"


def parse_address(text: str) -> Address:
    """Read an address.

    Raises:
        UsageError: it is no address of a device, or has an unknown option.
    """
    try:
        parts = urlsplit(text)
        port = parts.port if parts.scheme == "ssh" else None
    except ValueError as error:
        raise UsageError(
            f"'{text}' is no address ({error}); write ssh://user@host:port or adb://SERIAL"
        ) from error
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    for name in options:
        if name not in _OPTIONS:
            known = ", ".join(f"{key} ({what})" for key, what in _OPTIONS.items())
            raise UsageError(f"'{text}' has the unknown option '{name}'; known: {known}")
    if parts.scheme == "ssh":
        user = f"{unquote(parts.username)}@" if parts.username else ""
        name = parts.hostname or ""
        where = parts.netloc.lower().rfind(
            name
        )  # as it is written: names in ssh's configuration have capitals
        host = user + parts.netloc[where : where + len(name)]
        if not parts.hostname or parts.password is not None or host.startswith("-"):
            raise UsageError(f"'{text}' must be ssh://user@host, with a key that needs no password")
    else:
        host = parts.netloc
    if options.get("runner", "c") not in ("c", "python"):
        raise UsageError(f"'{text}': runner is c or python, got '{options['runner']}'")
    library = Path(options["ort"]).expanduser() if options.get("ort") else None
    if library is not None and not library.is_file():
        raise UsageError(f"'{text}': there is no file {library}; ort is a libonnxruntime on this machine")
    return Address(
        text, parts.scheme, host, port, "" if parts.path == "/" else unquote(parts.path), library,
        options.get("device-ort", ""), options.get("runner", ""), options.get("isa", ""),
    )  # fmt: skip
