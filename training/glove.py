"""Word vectors of GloVe, and the words that are nearest to a word."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import numpy.typing as npt

from qexport.errors import DataError

__all__ = ["WordVectors"]

_WORDS = 100_000  # as in TinyBERT's released code


class WordVectors:
    """The first 100,000 words of a GloVe file: a word and its numbers on each line, spaces between them."""

    def __init__(self, path: Path) -> None:
        """Read them.

        Raises:
            DataError: no such file, or a line that is no word with as many numbers as the first.
        """
        self._index: dict[str, int] = {}
        rows: list[npt.NDArray[np.float32]] = []
        digest = hashlib.sha256()
        try:
            with path.open(encoding="utf-8") as file:
                for number, line in enumerate(file, 1):
                    if number > _WORDS:
                        break
                    digest.update(line.encode())
                    parts = line.rstrip("\n").split(" ")
                    ends = len(parts) - len(rows[0]) if rows else 1  # a word may have blanks
                    word = " ".join(parts[: max(ends, 1)])
                    try:
                        row = np.array(parts[max(ends, 1) :], dtype=np.float32)
                    except ValueError:
                        row = np.zeros(0, dtype=np.float32)
                    if not len(row) or (rows and len(row) != len(rows[0])):
                        raise DataError(
                            f"{path}, line {number}: must be a word and its numbers, spaces between them, as "
                            "in GloVe's text files; correct --glove"
                        )
                    if word not in self._index:
                        self._index[word] = len(rows)
                        rows.append(row)
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"word vectors {path} cannot be read: {error}; correct --glove") from error
        if not rows:
            raise DataError(f"word vectors {path} are empty; correct --glove")
        self._words = list(self._index)
        vectors = np.stack(rows)
        length = np.linalg.norm(vectors, axis=1, keepdims=True)
        self._vectors = vectors / np.where(length > 0, length, 1)
        self._found: dict[str, tuple[str, ...]] = {}
        self.digest = digest.hexdigest()
        """sha256 of the lines that were read."""

    def nearest(self, word: str, count: int) -> tuple[str, ...]:
        """The `count` words with the largest cosine to `word`, without it; none for an unknown word."""
        index = self._index.get(word)
        if index is None:
            return ()
        if word not in self._found:
            cosine = self._vectors @ self._vectors[index]
            cosine[index] = -np.inf
            order = np.argsort(-cosine, kind="stable")[:count]
            self._found[word] = tuple(self._words[other] for other in order if other != index)
        return self._found[word]
