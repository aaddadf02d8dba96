"""The folder in which targets keep what they fetched and built."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["targets_cache"]


def targets_cache() -> Path:
    """$QEXPORT_CACHE/targets, else ~/.cache/qexport/targets."""
    named = os.environ.get("QEXPORT_CACHE")
    return (Path(named) if named else Path.home() / ".cache" / "qexport") / "targets"
