"""What a process writes to its standard error, kept in a file without a name for when it has to be told."""

from __future__ import annotations

import contextlib
import tempfile

__all__ = ["Complaints"]


class Complaints:
    """The file to give a process as its standard error; open until `close`."""

    def __init__(self) -> None:
        with contextlib.ExitStack() as stack:
            self.file = stack.enter_context(tempfile.TemporaryFile())
            self._opened = stack.pop_all()

    def text(self) -> str:
        """All that was written so far; what is no UTF-8 is replaced."""
        self.file.seek(0)
        return self.file.read().decode("utf-8", "replace")

    def close(self) -> None:
        """Close and forget the file."""
        self._opened.close()
