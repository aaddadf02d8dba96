"""Encoded: the token ids of rows, kept for the next run, and padded batches of them; no torch."""

from __future__ import annotations

import hashlib
import io
import logging
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from qexport.atomic import atomic_write_bytes
from qexport.cache import cache_folder
from qexport.errors import DiskFullError, UsageError
from qexport.training.rows import Split

__all__ = ["Encoded", "encode_texts", "pad"]

_LOG = logging.getLogger(__name__)

Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Encoded:
    """Token ids of a split, unpadded."""

    input_ids: list[Int32]
    """int32 [length] of each row."""
    token_type_ids: list[Int32] | None
    """int32 [length] of each row; None where the tokenizer gives both texts of a pair the type 0."""
    labels: npt.NDArray[Any]
    """As in the split."""

    def __len__(self) -> int:
        return len(self.input_ids)

    def lengths(self) -> Int64:
        """Tokens of each row, int64 [n]."""
        return np.array([len(ids) for ids in self.input_ids], dtype=np.int64)


_CACHE_FORMAT = "qexport-encoded-1"
_ENCODE_ROWS = 4096


def _cache_read(path: Path, labels: npt.NDArray[Any]) -> Encoded | None:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            ends, ids = stored["ends"], stored["input_ids"]
            types = stored.get("token_type_ids")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        _LOG.warning("cached token ids %s cannot be read (%s); encoding again", path, error)
        return None
    if len(ends) != len(labels) or (len(ends) and ends[-1] != len(ids)):
        _LOG.warning("cached token ids %s do not fit the rows; encoding again", path)
        return None
    return Encoded(_cut(ids, ends), None if types is None else _cut(types, ends), labels)


def _cut(flat: Int32, ends: Int64) -> list[Int32]:
    return np.split(flat, ends[:-1]) if len(ends) else []


def _cache_write(path: Path, encoded: Encoded) -> None:
    arrays = {"ends": np.cumsum(encoded.lengths()), "input_ids": np.concatenate(encoded.input_ids)}
    if encoded.token_type_ids is not None:
        arrays["token_type_ids"] = np.concatenate(encoded.token_type_ids)
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    try:
        atomic_write_bytes(path, buffer.getvalue())
    except (DiskFullError, UsageError) as error:
        _LOG.warning("token ids are not cached: %s", error)


def encode_texts(
    split: Split, tokenizer: Tokenizer, max_length: int, cache_dir: Path | None = None
) -> Encoded:
    """Turn texts into token ids, special tokens included, longest-first truncation.

    Args:
        split: the rows.
        tokenizer: is not changed; its own truncation and padding are not used.
        max_length: tokens kept of a sentence or pair.
        cache_dir: where results are kept for the next run; default $QEXPORT_CACHE, else ~/.cache/qexport.
            A cache that cannot be written or read is a logged warning, not an error.
    Raises:
        UsageError: `max_length` leaves no room for a token beside the special ones.
    """
    special = tokenizer.num_special_tokens_to_add(split.pairs is not None)
    texts = 1 if split.pairs is None else 2
    if max_length < special + texts:
        raise UsageError(
            f"the maximum length must be at least {special + texts} tokens, {special} of them special, "
            f"got {max_length}; raise --max-length"
        )
    own = Tokenizer.from_str(tokenizer.to_str())
    own.no_padding()
    own.enable_truncation(max_length, strategy="longest_first")
    key = hashlib.sha256("\n".join((_CACHE_FORMAT, split.digest, own.to_str())).encode()).hexdigest()
    path = (cache_folder() if cache_dir is None else cache_dir) / "encoded" / f"{key}.npz"
    cached = _cache_read(path, split.labels)
    if cached is not None:
        return cached

    ids: list[Int32] = []
    types: list[Int32] | None = [] if 1 in own.encode("a", "b").type_ids else None
    for start in range(0, len(split), _ENCODE_ROWS):
        rows = slice(start, start + _ENCODE_ROWS)
        batch: list[Any] = (
            split.texts[rows]
            if split.pairs is None
            else list(zip(split.texts[rows], split.pairs[rows], strict=True))
        )
        for one in own.encode_batch(batch):
            ids.append(np.array(one.ids, dtype=np.int32))
            if types is not None:
                types.append(np.array(one.type_ids, dtype=np.int32))
    encoded = Encoded(ids, types, split.labels)
    if ids:
        _cache_write(path, encoded)
    return encoded


def pad(
    encoded: Encoded,
    indices: Sequence[int] | Int64,
    *,
    pad_id: int,
    pad_to: int | None = None,
    pad_token_type_id: int = 0,
) -> dict[str, Int64]:
    """Make a batch, padded on the right to its longest row.

    Args:
        encoded: the rows.
        indices: which rows, in order; at least one.
        pad_id: see `pad_token_id`.
        pad_to: pad to this length instead; at least that of the longest row.
    Returns:
        int64 [b, t] arrays input_ids, attention_mask and, where `encoded` has them, token_type_ids.
    Raises:
        UsageError: no indices, or `pad_to` is shorter than a row.
    """
    rows = [encoded.input_ids[index] for index in indices]
    if not rows:
        raise UsageError("a batch needs at least one row, got none; pass the indices of its rows")
    lengths = np.array([len(row) for row in rows])
    longest = int(lengths.max())
    width = longest if pad_to is None else pad_to
    if width < longest:
        raise UsageError(
            f"pad_to must be at least {longest}, the tokens of the batch's longest row, got {width}; raise it"
        )
    kept = np.arange(width) < lengths[:, None]

    def fill(parts: list[Int32], value: int) -> Int64:
        out = np.full((len(rows), width), value, dtype=np.int64)
        out[kept] = np.concatenate(parts)
        return out

    batch = {"input_ids": fill(rows, pad_id), "attention_mask": kept.astype(np.int64)}
    if encoded.token_type_ids is not None:
        types = encoded.token_type_ids
        batch["token_type_ids"] = fill([types[index] for index in indices], pad_token_type_id)
    return batch
