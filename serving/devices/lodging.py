"""A temporary folder on a device, and what the device says of itself.

One command there makes the folder, waits, and removes it when its input ends. Its input ends when we close
it, when we are interrupted or killed, and when the connection is lost: in each case the device cleans up by
itself.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from pathlib import Path

from qexport.errors import DiskFullError, EnvironmentProblem, TargetLost
from qexport.serving.devices.connection import Connection, is_full
from qexport.serving.runner.build import RUNNERS

__all__ = ["HostFacts", "Lodging"]

_MARK = "qexport: "
_NO_FOLDER = 90
_RUNTIMES = (
    "/usr/lib/libonnxruntime.so* /usr/lib/*/libonnxruntime.so* /usr/local/lib/libonnxruntime.so* "
    "/opt/*/lib/libonnxruntime.so*"
)

_SCRIPT = """\
trap '' HUP INT TERM PIPE
umask 077
base={base}
if [ -z "$base" ]; then
  if [ -d /data/local/tmp ]; then base=/data/local/tmp; else base=${{TMPDIR:-/tmp}}; fi
fi
d=$(mktemp -d "$base/qexport.XXXXXX") || exit {no_folder}
printf "{mark}folder %s\\n" "$d"
echo "{mark}system $(uname -s) $(uname -m) $(uname -r)"
for f in {loaders}; do if [ -e "$f" ]; then echo "{mark}loader $f"; fi; done
for f in {runtimes}; do if [ -f "$f" ]; then echo "{mark}runtime $f"; fi; done
if command -v getprop >/dev/null 2>&1; then
  echo "{mark}model $(getprop ro.product.model), Android $(getprop ro.build.version.release)"
fi
if command -v python3 >/dev/null 2>&1; then
  python3 -c {python} 2>/dev/null
fi
echo "{mark}ready"
cat >/dev/null
rm -rf "$d" && exit 0
sleep 1
rm -rf "$d"
"""
"""The second rm: a copy that was cut off may make its file while the first one empties the folder."""

_PYTHON = (
    "import glob, os, numpy, onnxruntime as o\n"
    f"print('{_MARK}python ' + o.__version__)\n"
    f"for f in glob.glob(os.path.dirname(o.__file__) + '/capi/libonnxruntime.so.*'): "
    f"print('{_MARK}runtime ' + f)\n"
)


@dataclass(slots=True)
class HostFacts:
    """What a device says of itself."""

    system: str = ""
    """ "Linux", "Darwin"."""
    machine: str = ""
    """As `uname -m` spells it."""
    release: str = ""
    """Of the kernel."""
    model: str = ""
    """Product and Android version."""
    loaders: list[str] = field(default_factory=list)
    """The loaders of programs that are there."""
    runtimes: list[str] = field(default_factory=list)
    """libonnxruntime files in known places."""
    python: str = ""
    """Version of onnxruntime in its python3; "" for none."""

    def target(self) -> str | None:
        """Which of `RUNNERS` runs there; None for none."""
        if self.system != "Linux":
            return None
        found = [
            name
            for name, one in RUNNERS.items()
            if one.loader in self.loaders and one.machine == self.machine
        ]
        android = [name for name in found if name.endswith("android")]
        return next(iter(android or found), None)


class Lodging:
    """The folder, from now until `close`.

    Args:
        connection: to the device.
        folder: where to make it; "" for the system's own place.
    Raises:
        EnvironmentProblem: the device cannot be reached, or the folder cannot be made.
        DiskFullError: the device has no space for it.
    """

    def __init__(self, connection: Connection, folder: str = "") -> None:
        self._connection = connection
        loaders = " ".join(dict.fromkeys(one.loader for one in RUNNERS.values()))
        script = _SCRIPT.format(
            base=shlex.quote(folder), no_folder=_NO_FOLDER, mark=_MARK, loaders=loaders, runtimes=_RUNTIMES,
            python=shlex.quote(_PYTHON),
        )  # fmt: skip
        self.folder = ""
        """Its path there."""
        self.facts = HostFacts()
        self._channel = connection.start(script)
        try:
            self._read(folder)
        except BaseException:
            self._channel.kill()
            raise

    def _read(self, asked: str) -> None:
        facts = self.facts
        while True:
            try:
                raw = self._channel.stdout.readline()
            except OSError:
                raw = b""
            if not raw:
                raise self._refused(asked)
            line = raw.decode("utf-8", "replace").strip("\r\n")
            if not line.startswith(_MARK):
                continue  # a greeting of the login shell
            what, _, value = line.removeprefix(_MARK).partition(" ")
            if what == "folder":
                self.folder = value
            elif what == "system":
                facts.system, facts.machine, facts.release = (*value.split(" ", 2), "", "")[:3]
            elif what == "loader":
                facts.loaders.append(value)
            elif what == "runtime":
                facts.runtimes.append(value)
            elif what == "python":
                facts.python = value
            elif what == "model":
                facts.model = value
            elif what == "ready":
                return

    def _refused(self, asked: str) -> Exception:
        ended = self._channel.wait(10.0)
        if ended.code != _NO_FOLDER:
            return self._connection.unreachable(ended)
        said = ended.errors.strip().rpartition("\n")[2]
        where = f"{self._connection.name}: no temporary folder can be made in {asked or 'the usual place'}"
        if is_full(said):
            return DiskFullError(
                f"{where}, no space left there; free some space or name another folder in the address"
            )
        return EnvironmentProblem(
            f"{where} ({said or 'no reason given'}); name another folder in the address"
        )

    def copy(self, local: Path, name: str, *, executable: bool = False) -> str:
        """Copy a file into the folder; its path there. See `Connection.copy` for what it raises."""
        remote = f"{self.folder}/{name}"
        self._connection.copy(local, remote, executable=executable)
        return remote

    def close(self) -> None:
        """Let the device remove the folder, and wait until it has.

        Raises:
            TargetLost: the connection had gone before; the device removes it then when it notices.
        """
        ended = self._channel.wait(20.0)
        if ended.code != 0:
            raise TargetLost(
                f"the connection to {self._connection.name} was lost before {self.folder} was removed"
            )
