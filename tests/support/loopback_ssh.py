"""An sshd on loopback, as the user of the tests, with keys made for it."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from required import missing

SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")


@dataclass
class Server:
    """A running sshd."""

    folder: Path
    port: int
    process: subprocess.Popen[bytes]

    @property
    def config(self) -> Path:
        """The client's configuration: key and known hosts."""
        return self.folder / "ssh_config"

    @property
    def address(self) -> str:
        """ssh://...; temporary files go into `home`."""
        return f"ssh://127.0.0.1:{self.port}{self.home}"

    @property
    def home(self) -> Path:
        """Where temporary files go."""
        return self.folder / "home"

    def left_behind(self, seconds: float = 10.0) -> list[str]:
        """What is still in `home`, once nothing more goes away."""
        end = time.monotonic() + seconds
        while (names := sorted(os.listdir(self.home))) and time.monotonic() < end:
            time.sleep(0.05)
        return names

    def drop(self) -> None:
        """Cut every connection: the processes of sshd that serve them are killed, the listener stays."""
        for pid in children(self.process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def children(pid: int) -> list[int]:
    """Processes that `pid` started."""
    path = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(word) for word in path.read_text().split()]


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
    return port


@contextlib.contextmanager
def ssh_server(folder: Path, *, force_command: str = "", path: str = "") -> Iterator[Server]:
    """An sshd that lets the user of this process in.

    Args:
        folder: for keys, configuration and log.
        force_command: what it runs in place of every command; "" for the command itself.
        path: PATH of the commands, in place of `force_command`; "" for the usual one.
    """
    if SSHD is None or shutil.which("ssh") is None:
        missing("no sshd; apt-get install openssh-server")
    if sys.platform != "linux":
        missing("the tests of ssh are written for Linux")
    for name in ("host", "user"):
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)]
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    (folder / "home").mkdir()
    if path:  # a login shell may set it again, so it is set behind that
        (folder / "shell").write_text(
            f'#!/bin/sh\nPATH={path}\nexport PATH\nexec sh -c "$SSH_ORIGINAL_COMMAND"\n'
        )
        (folder / "shell").chmod(0o755)
        force_command = str(folder / "shell")
    port = free_port()
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {(folder / 'host.pub').read_text()}")
    (folder / "ssh_config").write_text(
        f"Host *\n  IdentityFile {folder}/user\n  UserKnownHostsFile {folder}/known_hosts\n  "
        f"IdentitiesOnly yes\n"
    )
    options = [
        f"Port {port}", "ListenAddress 127.0.0.1", f"HostKey {folder}/host", f"PidFile {folder}/pid",
        f"AuthorizedKeysFile {folder}/user.pub", "StrictModes no", "UsePAM no", "PasswordAuthentication no",
        "KbdInteractiveAuthentication no", "PermitRootLogin yes", "MaxStartups 100", "MaxSessions 100",
        *([f"ForceCommand {force_command}"] if force_command else []),
    ]  # fmt: skip
    (folder / "sshd_config").write_text("\n".join(options) + "\n")
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)
    log = (folder / "log").open("wb")
    process = subprocess.Popen(
        [SSHD, "-D", "-e", "-f", str(folder / "sshd_config")], stdin=subprocess.DEVNULL, stderr=log
    )
    try:
        _wait_for(port, process, folder / "log")
        yield Server(folder, port, process)
    finally:
        for pid in children(process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        process.terminate()
        process.wait()
        log.close()


def _wait_for(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(200):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1.0):
            return
        if process.poll() is not None:
            break
        time.sleep(0.05)
    raise RuntimeError(f"sshd does not start: {log.read_text()}")
