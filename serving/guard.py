"""Guard: a small process that ends a child of ours, and removes its folders, when we are killed.

A process that is killed by SIGKILL cleans nothing up. So beside each child that would live on (a browser, an
emulator) a shell waits for the end of its input, whose other end only this process holds. Linux could signal
the child itself (PR_SET_PDEATHSIG), but one process only, at the end of the thread that started it, and it
would leave the folders.
"""

from __future__ import annotations

import contextlib
import os
import subprocess

__all__ = ["Guard"]

_SCRIPT = """\
trap '' HUP INT QUIT TERM
read -r child || exit 0
read -r nothing
kill -s KILL -- "-$child" 2>/dev/null
for again in 1 2 3; do
  rm -rf -- "$@" 2>/dev/null && exit 0
  sleep 1
done
"""
"""Its first line of input is the process group; then come nothing and the end, when we have gone."""


class Guard:
    """Watches from `watch` until `release`; does nothing where there is no POSIX shell.

    Args:
        folders: removed after the child was ended.
    """

    def __init__(self, *folders: str) -> None:
        self._shell: subprocess.Popen[bytes] | None = None
        if os.name != "posix":
            return
        with contextlib.suppress(OSError):
            self._shell = subprocess.Popen(
                ["/bin/sh", "-c", _SCRIPT, "qexport-guard", *folders], stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True, cwd="/",
            )  # fmt: skip

    def watch(self, leader: int) -> None:
        """Name the child: the leader of a process group of its own, all of which is ended."""
        if self._shell is not None and self._shell.stdin is not None:
            with contextlib.suppress(OSError):
                self._shell.stdin.write(b"%d\n" % leader)
                self._shell.stdin.flush()

    def release(self) -> None:
        """The child has ended and its folders are looked after; may be called twice."""
        shell, self._shell = self._shell, None
        if shell is not None:
            shell.kill()
            shell.wait()
            if shell.stdin is not None:
                with contextlib.suppress(OSError):
                    shell.stdin.close()
