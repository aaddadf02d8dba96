"""Reading shared libraries: the one that is installed, and damaged ones."""

from __future__ import annotations

import platform
import sys
from pathlib import Path

import pytest
from required import missing

from qexport.serving.kernels import library_path
from qexport.serving.kernels.binary import read_binary


@pytest.fixture(scope="module")
def installed() -> bytes:
    path = library_path()
    if path is None:
        missing("this installation has no kernel library; install again without QEXPORT_NO_KERNELS")
    return path.read_bytes()


def test_installed_library_needs_nothing_and_gives_only_its_functions(installed: bytes) -> None:
    found = read_binary(installed)
    assert found.machine == {"AMD64": "x86_64", "arm64": "aarch64"}.get(
        platform.machine(), platform.machine()
    )
    assert len(installed) < 300_000
    if sys.platform == "linux":
        assert found.format == "elf"
        assert found.needed == found.imports == ()
    assert "RegisterCustomOps" in found.exports
    assert all(name.startswith("qexport_") for name in set(found.exports) - {"RegisterCustomOps"})


@pytest.mark.skipif(sys.platform != "linux", reason="reads the interpreter's own ELF files")
def test_elf_that_needs_others_says_which() -> None:
    import _ctypes

    found = read_binary(Path(_ctypes.__file__).read_bytes())
    assert found.format == "elf"
    assert any(name.startswith("libc.") for name in found.needed)
    assert "PyInit__ctypes" in found.exports
    assert "PyInit__ctypes" not in found.imports and "dlsym" in found.imports


@pytest.mark.parametrize("data", [b"", b"\x7fELF\x01\x01" + bytes(100), b"!<arch>\n", b"MZ" + bytes(200)])
def test_other_files_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="not a 64-bit"):
        read_binary(data)


def test_truncated_library_is_refused_or_read(installed: bytes) -> None:
    with pytest.raises(ValueError, match="damaged"):
        read_binary(installed[: len(installed) // 2])
    for size in range(0, len(installed), len(installed) // 97):
        try:
            read_binary(installed[:size])
        except ValueError:
            continue
