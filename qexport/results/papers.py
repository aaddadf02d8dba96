"""Papers: the numbers that papers report for their own models, each with its source and table."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

__all__ = ["PaperDrop", "paper_drop"]


@dataclass(frozen=True, slots=True)
class PaperDrop:
    """What a paper lost against its own float model on one task."""

    points: float
    """Above 0: worse than the float model."""
    metric: str
    """The paper's metric."""
    backbone: str
    source: str
    """Title, table and what must be known of it."""


@functools.cache
def _content() -> Mapping[str, Any]:
    text = resources.files("qexport.results").joinpath("papers.json").read_text(encoding="utf-8")
    values: dict[str, Any] = json.loads(text)
    return values


def paper_drop(method: str, bits: str, task: str) -> PaperDrop | None:
    """The first entry of papers.json that has this method at these bits on this task; BERT-base comes first.

    Of TernaryBERT the runs without data augmentation come before the paper's own.
    """
    content = _content()
    for entry in content["entries"]:
        if (entry["method"], entry["bits"]) != (method, bits) or task not in entry["cells"]:
            continue
        cell = entry["cells"][task]
        parts = [content["sources"][entry["source"]], entry["table"], entry["backbone"], entry["note"]]
        return PaperDrop(
            points=round(cell["teacher"] - cell["student"], 3), metric=cell["metric"],
            backbone=entry["backbone"], source="; ".join(part for part in parts if part),
        )  # fmt: skip
    return None
