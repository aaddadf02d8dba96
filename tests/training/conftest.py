"""Fixtures of the training tests."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_models import write_reviews


@pytest.fixture
def reviews(tmp_path: Path) -> tuple[Path, Path]:
    """A training and an evaluation file that a tiny model can learn."""
    return write_reviews(tmp_path / "train.csv", 256, 1), write_reviews(tmp_path / "eval.csv", 64, 2)


@pytest.fixture(autouse=True)
def _one_thread_and_own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.setenv("QEXPORT_CACHE", str(tmp_path / "cache"))
