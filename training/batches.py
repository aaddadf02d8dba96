"""From tokenised rows to batches: data set, sampler, collator, and the logits of a model over them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, Sampler

from qexport.training.data import Encoded, pad
from qexport.training.judge import Judge
from qexport.training.kinds import Kind

__all__ = ["GROUP", "GroupByLength", "Order", "Rows", "Shuffle", "collator", "predict_logits"]

GROUP = 50
"""Batches that are sorted by length together."""


class Rows(Dataset[dict[str, Any]]):
    """Tokenised rows as transformers.Trainer reads them.

    Args:
        encoded: the rows.
        by_length: shortest first, so that evaluation batches carry little padding; else in their own order.
        judge: what is right for these rows; None for rows that are not evaluated.
    """

    def __init__(self, encoded: Encoded, *, by_length: bool = False, judge: Judge | None = None) -> None:
        self.encoded, self.judge = encoded, judge
        self.order = np.argsort(encoded.lengths(), kind="stable") if by_length else np.arange(len(encoded))

    def __len__(self) -> int:
        return len(self.order)

    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens of each row, int64 [n]."""
        return self.encoded.lengths()[self.order]

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"index": int(self.order[index]), "encoded": self.encoded}  # for the collator


class Order(Sampler[int]):
    """Training rows in an order that depends on seed and epoch only.

    So a resumed run goes on in the order in which it was stopped, and all processes agree on it.
    """

    def __init__(self, count: int, seed: int) -> None:
        self.count, self.seed, self.epoch = count, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Which pass over the rows comes next, from 0."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.count

    def generator(self) -> np.random.Generator:
        """Random numbers of this epoch, from their start."""
        return np.random.default_rng((self.seed, self.epoch))


class Shuffle(Order):
    """A permutation of the rows."""

    def __iter__(self) -> Iterator[int]:
        return iter(self.generator().permutation(self.count).tolist())


class GroupByLength(Order):
    """Batches of rows of similar length, in random order.

    A permutation of the rows is cut into runs of GROUP batches, each run is sorted by length and cut into
    batches, and the batches of all runs are shuffled: left sorted, the length of rows, and labels that go
    with it, would drift from step to step. Rows that fill no batch come last; the longest row of all comes
    first, so that a lack of memory shows in the first step.
    """

    def __init__(self, lengths: npt.NDArray[np.int64], batch: int, seed: int) -> None:
        """Order rows of `lengths` tokens, int64 [n], for optimiser steps of `batch` rows."""
        super().__init__(len(lengths), seed)
        self.lengths, self.batch = lengths, batch

    def __iter__(self) -> Iterator[int]:
        generator = self.generator()
        order = generator.permutation(self.count)
        for start in range(0, self.count, GROUP * self.batch):
            part = order[start : start + GROUP * self.batch]
            order[start : start + GROUP * self.batch] = part[np.argsort(-self.lengths[part], kind="stable")]
        filled = self.count - self.count % self.batch
        order[:filled] = generator.permutation(order[:filled].reshape(-1, self.batch)).reshape(-1)
        place = int(self.lengths[order].argmax())
        order[[0, place]] = order[[place, 0]]
        return iter(order.tolist())


def collator(pad_id: int, kind: Kind) -> Callable[[list[dict[str, Any]]], dict[str, Tensor]]:
    """What turns items of `Rows` into a batch, padded to its longest row.

    Args:
        pad_id: id of the padding token.
        kind: makes the labels.
    Returns:
        a function; its result holds int64 [B, S] input_ids, attention_mask and, where the tokenizer gives
        them, token_type_ids, and labels as `Kind.labels` gives them, such as int64 or float32 [B].
    """

    def collate(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        encoded = rows[0]["encoded"]
        indices = [row["index"] for row in rows]
        arrays = pad(encoded, indices, pad_id=pad_id)
        batch = {name: torch.from_numpy(array) for name, array in arrays.items()}
        batch["labels"] = kind.labels(encoded, indices, batch["input_ids"].shape[1])
        return batch

    return collate


@torch.no_grad()
def predict_logits(
    model: nn.Module, encoded: Encoded, *, pad_id: int, batch_size: int = 1, pad_to: int | None = None
) -> npt.NDArray[np.float32]:
    """Logits of a model in evaluation mode, float32 [n, C], rows in the order of `encoded`.

    Args:
        model: from `qexport.load`.
        encoded: tokenised rows.
        pad_id: id of the padding token.
        batch_size: rows per forward pass, in order.
        pad_to: pad to this length instead of the longest row of the batch.
    """
    model.eval()
    device = next(model.parameters()).device
    accepted = set(inspect.signature(model.forward).parameters)
    parts = []
    for start in range(0, len(encoded), batch_size):
        indices = list(range(start, min(start + batch_size, len(encoded))))
        batch = pad(encoded, indices, pad_id=pad_id, pad_to=pad_to)
        features = {
            name: torch.from_numpy(value).to(device) for name, value in batch.items() if name in accepted
        }
        parts.append(model(**features).logits.float().cpu().numpy())
    return np.concatenate(parts)
