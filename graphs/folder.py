"""The folder that `to-onnx` writes: model.onnx, config.json, tokenizer, ort_config.json, qexport.json.

It loads with optimum's ORTModelForSequenceClassification and with transformers' pipeline. No torch in here.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qexport.digests import file_sha256
from qexport.errors import UnsupportedModelError
from qexport.training.data import TOKENIZER_FILES

__all__ = [
    "FORMAT_VERSION",
    "MANIFEST",
    "MODEL_FILE",
    "copy_tokenizer",
    "read_json",
    "read_manifest",
    "write_config",
    "write_manifest",
    "write_ort_config",
]

FORMAT_VERSION = 1
"""Of qexport.json; a reader refuses a newer one."""

MODEL_FILE = "model.onnx"
"""The graph and its weights, one file."""

MANIFEST = "qexport.json"
"""What the folder holds and where it came from."""

_FAST_CLASS = "PreTrainedTokenizerFast"  # every transformers from 4 on knows it; TokenizersBackend is of 5


def write_config(source: Path, target: Path) -> None:
    """Copy config.json without what only PyTorch needs; `quantization_config` would stop other loaders.

    Raises:
        UnsupportedModelError: config.json is not JSON.
    """
    values = read_json(source / "config.json")
    for key in ("quantization_config", "_name_or_path", "_attn_implementation", "dtype", "torch_dtype"):
        values.pop(key, None)
    _write_json(target / "config.json", values)


def copy_tokenizer(source: Path, target: Path) -> list[str]:
    """Copy the tokenizer's files; the names that were there.

    Raises:
        UnsupportedModelError: no tokenizer.json, or tokenizer_config.json is not JSON.
    """
    if not (source / "tokenizer.json").is_file():
        raise UnsupportedModelError(
            f"{source}: no tokenizer.json in this folder; load its tokenizer with transformers.AutoTokenizer "
            "and call save_pretrained on the folder"
        )
    found = [name for name in TOKENIZER_FILES if (source / name).is_file()]
    for name in found:
        shutil.copyfile(source / name, target / name)
    if "tokenizer_config.json" in found:
        values = read_json(target / "tokenizer_config.json")
        if values.get("tokenizer_class") == "TokenizersBackend":
            values["tokenizer_class"] = _FAST_CLASS
            _write_json(target / "tokenizer_config.json", values)
    return found


def write_ort_config(target: Path, *, opset: int, description: Mapping[str, Any]) -> None:
    """ort_config.json, as optimum's ORTConfig reads it; what it has no field for stands under "qexport".

    Args:
        target: folder.
        opset: of ai.onnx.
        description: method, bits and quantization (None for a float model).
    """
    quantization = description["quantization"]
    fields: dict[str, Any] = {}
    if quantization:
        fields = {
            "is_static": quantization["activations"] == "static",
            "format": "QOperator",
            "mode": "IntegerOps",
            "activations_dtype": "QUInt8",
            "activations_symmetric": quantization.get("asymmetric", "none") == "none",
            "weights_dtype": "QInt8",
            "weights_symmetric": True,
            "per_channel": quantization["granularity"] == "row",
            "operators_to_quantize": ["MatMul", "Gather", "Attention"],
        }
    values: dict[str, Any] = {
        "one_external_file": True,
        "opset": opset,
        "optimization": {},
        "quantization": fields,
        "use_external_data_format": False,
        "qexport": {key: description[key] for key in ("method", "bits", "quantization")},
    }
    _write_json(target / "ort_config.json", values)


def write_manifest(target: Path, values: Mapping[str, Any]) -> None:
    """qexport.json: `values`, the format version, and the SHA-256 of every other file of the folder."""
    files = {
        path.name: {"sha256": file_sha256(path), "bytes": path.stat().st_size}
        for path in sorted(target.iterdir())
        if path.is_file() and path.name != MANIFEST
    }
    _write_json(target / MANIFEST, {"format_version": FORMAT_VERSION, **values, "files": files})


def read_manifest(folder: Path) -> dict[str, Any]:
    """What `write_manifest` wrote.

    Raises:
        UnsupportedModelError: no such file, not JSON, or of a newer qexport.
    """
    values = read_json(folder / MANIFEST)
    version = values.get("format_version")
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise UnsupportedModelError(
            f"{folder / MANIFEST}: format_version must be {FORMAT_VERSION} or lower, got {version!r}; "
            "upgrade with pip install -U qexport"
        )
    return values


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        UnsupportedModelError: no such file, or it holds something else.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UnsupportedModelError(
            f"{path.parent}: no {path.name} in this folder; give a folder written by qexport"
        ) from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UnsupportedModelError(f"{path}: not valid JSON ({error}); the file is damaged") from error
    if not isinstance(values, dict):
        raise UnsupportedModelError(f"{path}: must hold a JSON object, got {type(values).__name__}")
    return values


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
