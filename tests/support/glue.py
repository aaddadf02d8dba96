"""GLUE's own files, which may lie beside the checkout and never in it."""

from __future__ import annotations

from pathlib import Path

import pytest

GLUE = Path(__file__).parents[2].parent / "shared" / "data" / "glue"

needs_glue = pytest.mark.skipif(not GLUE.is_dir(), reason="GLUE's files are not beside the checkout")
"""Skips a test of published data, which nobody has to have, QEXPORT_REQUIRE_ALL or not."""
