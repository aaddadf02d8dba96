"""SHA-256 of files and of a model's weights."""

from __future__ import annotations

import hashlib
from pathlib import Path

__all__ = ["file_sha256", "weights_sha256"]


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def weights_sha256(folder: Path) -> str:
    """SHA-256 over the weight files of a model folder, by name order."""
    digest = hashlib.sha256()
    for path in sorted((*folder.glob("*.safetensors"), *folder.glob("pytorch_model*.bin"))):
        digest.update(f"{path.name}\0{file_sha256(path)}\0".encode())
    return digest.hexdigest()
