"""The files by which sentence-transformers knows that a folder holds a sentence encoder.

modules.json names three modules: the encoder in the folder itself, mean pooling, scaling to length 1. With
them `SentenceTransformer(folder)` gives the vectors that qexport gives.
"""

from __future__ import annotations

import json
from pathlib import Path

__all__ = ["SENTENCE_FILES", "stated_length", "write_sentence_files"]

_LENGTH = "sentence_bert_config.json"
SENTENCE_FILES = ("modules.json", _LENGTH, "1_Pooling", "2_Normalize")
"""What `write_sentence_files` writes."""

_MODULES = "sentence_transformers.models"


def stated_length(folder: Path) -> int | None:
    """Tokens of the longest text by sentence_bert_config.json; None where the folder does not say."""
    try:
        found = json.loads((folder / _LENGTH).read_text(encoding="utf-8"))["max_seq_length"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if isinstance(found, int) and found > 0 else None


def write_sentence_files(folder: Path, *, width: int, max_length: int) -> None:
    """Write modules.json, sentence_bert_config.json and the folders 1_Pooling and 2_Normalize.

    Args:
        folder: of the model; what is there is replaced.
        width: D of the embeddings.
        max_length: tokens of the longest text.
    """
    names = (("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize"))
    modules = [
        {"idx": index, "name": str(index), "path": path, "type": f"{_MODULES}.{name}"}
        for index, (path, name) in enumerate(names)
    ]
    pooling = {"word_embedding_dimension": width, "pooling_mode_mean_tokens": True,
               "pooling_mode_cls_token": False, "pooling_mode_max_tokens": False,
               "pooling_mode_mean_sqrt_len_tokens": False}  # fmt: skip
    for path, content in (
        ("modules.json", modules),
        (_LENGTH, {"max_seq_length": max_length, "do_lower_case": False}),
        ("1_Pooling/config.json", pooling),
        ("2_Normalize/config.json", {}),
    ):
        file = folder / path
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
