"""onnxruntime-extensions, for files that tokenise by themselves (`to-onnx --with-tokenizer`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qexport.errors import MissingPackageError
from qexport.serving.native import names_domain

__all__ = ["TEXT_INPUT", "register_extensions"]

TEXT_INPUT = "text"
"""The one input of such a file: string [1], or [2] for a pair."""

_DOMAIN = b"ai.onnx.contrib"


def register_extensions(options: Any, model: Path) -> None:
    """Register the package's operators where the file names one of them.

    Args:
        options: an `onnxruntime.SessionOptions`.
        model: the .onnx file that the session will open.
    Raises:
        MissingPackageError: the file needs the package, and it is not installed.
    """
    if not names_domain(model, _DOMAIN):
        return
    try:
        from onnxruntime_extensions import get_library_path
    except ImportError as error:
        raise MissingPackageError(
            f"{model} tokenises text by an operator of onnxruntime-extensions; install it with: pip install "
            '"qexport[tokenizer]", or use model.onnx'
        ) from error
    options.register_custom_ops_library(get_library_path())
