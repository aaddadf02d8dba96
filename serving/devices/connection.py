"""A connection to a device: commands with their streams, and files copied there."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Protocol

from qexport.errors import DiskFullError, EnvironmentProblem, QexportError, TargetLost
from qexport.serving.runner.channel import Channel, Ended

__all__ = ["Connection", "copy_failure", "is_full"]


class Connection(Protocol):
    """What `ssh` and `adb` have in common."""

    @property
    def name(self) -> str:
        """Short address, for messages."""

    def start(self, command: str) -> Channel:
        """Start a command of the shell there.

        Raises:
            EnvironmentProblem: the device cannot be reached.
        """

    def copy(self, local: Path, remote: str, *, executable: bool = False) -> None:
        """Copy a file there.

        Raises:
            DiskFullError: no space left there.
            TargetLost: the connection was lost meanwhile.
            EnvironmentProblem: the file cannot be written for another reason.
        """

    def unreachable(self, ended: Ended) -> QexportError:
        """Why a command that ended at once was not run: no such host, no key, no such device."""

    def close(self) -> None:
        """Give up what the connection holds here; raises nothing."""


def is_full(text: str) -> bool:
    """Whether a message of a device says that its disk is full."""
    lowered = text.lower()
    return (
        "no space left" in lowered or "disk quota exceeded" in lowered or f"errno {errno.ENOSPC}" in lowered
    )


def copy_failure(where: str, local: Path, remote: str, said: str, *, lost: bool) -> QexportError:
    """One sentence for a copy that failed.

    Args:
        where: the device.
        local: what was copied.
        remote: to which path.
        said: what the device complained about.
        lost: whether the connection ended.
    """
    if is_full(said):
        return DiskFullError(
            f"no space left on {where} while copying {local.name} to {remote}; free some space there or name "
            "another folder in the address"
        )
    if lost:
        return TargetLost(
            f"the connection to {where} was lost while {local.name} was copied; connect it and run again"
        )
    return EnvironmentProblem(
        f"{where}: {local.name} cannot be written to {remote} ({said or 'no reason given'})"
    )
