"""The build backend: scikit-build-core, plus the package ziglang where no C++ compiler will do.

QEXPORT_NO_KERNELS=1 installs without the kernel library; nothing is compiled then.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

from host_compiler import find_compiler  # beside CMake's files: pyproject.toml, backend-path
from scikit_build_core import build as _skbuild

_Settings = dict[str, "list[str] | str"] | None

build_sdist = _skbuild.build_sdist
get_requires_for_build_sdist = _skbuild.get_requires_for_build_sdist
prepare_metadata_for_build_wheel = _skbuild.prepare_metadata_for_build_wheel
prepare_metadata_for_build_editable = _skbuild.prepare_metadata_for_build_editable


def _without_kernels() -> bool:
    """What QEXPORT_NO_KERNELS says, read as scikit-build-core reads it for the override in pyproject.toml."""
    value = os.environ.get("QEXPORT_NO_KERNELS", "").lower()
    return value not in {"", "n", "no", "off", "false", "f"} and not (value.isdigit() and int(value) == 0)


def _compiler() -> list[str]:
    """The package to compile with where there is no compiler: the version that pyproject.toml names."""
    if _without_kernels() or "CMAKE_CXX_COMPILER" in os.environ.get("CMAKE_ARGS", "") or find_compiler():
        return []
    project = Path(__file__).with_name("pyproject.toml").read_text(encoding="utf-8")
    return re.findall(r'"(ziglang==[^"]+)"', project)[:1]


def get_requires_for_build_wheel(config_settings: _Settings = None) -> list[str]:
    return _skbuild.get_requires_for_build_wheel(config_settings) + _compiler()


def get_requires_for_build_editable(config_settings: _Settings = None) -> list[str]:
    return _skbuild.get_requires_for_build_editable(config_settings) + _compiler()


def _built(build: Callable[..., str], *arguments: object) -> str:
    try:
        return build(*arguments)
    except BaseException:
        if not _without_kernels():
            print(
                "qexport: the kernel library was not built, see above; QEXPORT_NO_KERNELS=1 installs without "
                "it, everything then runs on stock ONNX Runtime",
                file=sys.stderr,
            )
        raise


def build_wheel(directory: str, config_settings: _Settings = None, metadata: str | None = None) -> str:
    return _built(_skbuild.build_wheel, directory, config_settings, metadata)


def build_editable(directory: str, config_settings: _Settings = None, metadata: str | None = None) -> str:
    return _built(_skbuild.build_editable, directory, config_settings, metadata)
