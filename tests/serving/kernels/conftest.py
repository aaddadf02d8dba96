"""The kernel library of this machine, and its test functions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import kernel_build
import pytest
from kernel_hooks import Hooks


@pytest.fixture(scope="session")
def library() -> Path:
    """The library as it ships, for this machine."""
    return kernel_build.host_library()


@pytest.fixture(scope="session")
def opened(library: Path) -> Hooks:
    return Hooks(library)


@pytest.fixture
def hooks(opened: Hooks) -> Iterator[Hooks]:
    """Test functions; the best instruction set is chosen again afterwards."""
    yield opened
    opened.set_isa(None)


@pytest.fixture(scope="session")
def emulated() -> Path:
    """A library with every instruction set of x86, those that this processor lacks in plain C++."""
    return kernel_build.emulated_library()


@pytest.fixture(scope="session", params=["library", "emulated"])
def each(request: pytest.FixtureRequest) -> Hooks:
    """Test functions of both libraries, one after the other."""
    return Hooks(request.getfixturevalue(request.param))
