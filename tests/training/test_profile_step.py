"""benchmarks/profile_step.py on a tiny encoder: no part of the package, so nothing else would notice."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_models import save_model
from transformers import AutoModel

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "profile_step.py"


def test_a_step_is_timed_when_the_folder_has_no_classifier(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = save_model(tmp_path / "encoder", head=AutoModel)
    main: Callable[[list[str]], None] = runpy.run_path(str(SCRIPT))["main"]
    threads = torch.get_num_threads()
    try:
        main(["--model", str(folder), "--quantizer", "lat", "--steps", "1", "--batch-size", "2"])
    finally:
        torch.set_num_threads(threads)
    first, *shares = capsys.readouterr().out.splitlines()
    assert "2 x 14 tokens" in first
    assert sum(float(line.split("%")[0]) for line in shares) == pytest.approx(100, abs=0.5)
