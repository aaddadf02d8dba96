"""The folder of what the next run need not fetch, build or compute again."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["cache_folder"]


def cache_folder() -> Path:
    """$QEXPORT_CACHE, else ~/.cache/qexport; a `~` at its beginning is the home folder."""
    named = os.environ.get("QEXPORT_CACHE")
    return Path(named).expanduser() if named else Path.home() / ".cache" / "qexport"
