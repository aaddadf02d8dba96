"""What a test does when a tool, a package or a right is missing."""

from __future__ import annotations

import os
from typing import NoReturn

import pytest


def missing(what: str) -> NoReturn:
    """Skip the test, or fail it where QEXPORT_REQUIRE_ALL is 1.

    Args:
        what: what is missing and how to get it.
    """
    if os.environ.get("QEXPORT_REQUIRE_ALL") == "1":
        pytest.fail(f"QEXPORT_REQUIRE_ALL is 1: {what}")
    pytest.skip(what)
