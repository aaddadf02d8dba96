"""Files of an exported folder: which one is the model, and the JSON beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from qexport.errors import UnsupportedModelError

__all__ = ["model_file", "read_json"]


def model_file(folder_or_file: str | Path) -> Path:
    """The ONNX file that a path names: itself, or `model.onnx` inside the folder.

    Raises:
        UnsupportedModelError: the path does not exist, or the folder has no model.onnx.
    """
    path = Path(folder_or_file)
    if path.is_dir():
        inside = path / "model.onnx"
        if not inside.is_file():
            raise UnsupportedModelError(
                f"{path} has no model.onnx; give a folder written by qexport to-onnx, or an .onnx file"
            )
        return inside
    if not path.is_file():
        raise UnsupportedModelError(f"{path} does not exist; give a folder written by qexport to-onnx")
    return path


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in `path`, {} when there is no such file.

    Raises:
        UnsupportedModelError: the file is not JSON, or not an object.
    """
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UnsupportedModelError(f"{path} is not valid JSON ({error}); export the model again") from error
    if not isinstance(content, dict):
        raise UnsupportedModelError(f"{path} must hold a JSON object, got {type(content).__name__}")
    return content
