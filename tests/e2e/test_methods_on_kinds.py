"""Methods on token classification and sentence embeddings: two steps, the file, its check against PyTorch."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_tags import save_encoder, write_conll, write_pairs

from qexport.cli import main

Run = Callable[..., None]
STEPS = ("--max-steps", "2", "--eval-steps", "2", "--batch-size", "8", "--threads", "1", "--lr", "1e-3")
SMALL = ("--layers", "1", "--hidden-size", "12", "--intermediate-size", "30", "--heads", "2")
CASES: list[tuple[str, str, tuple[str, ...]]] = [
    ("ner", "binarybert", ()),
    ("ner", "ternarybert-lat", ()),
    ("ner", "tinybert", SMALL),
    ("ner", "ghostbert", ("--bits", "2-2-8")),
    ("ner", "q8bert", ()),
    ("embedding", "binarybert", ()),
    ("embedding", "tinybert", SMALL),
    ("embedding", "ghostbert", ("--bits", "2-2-8")),
]


@pytest.fixture(scope="module")
def teachers(tmp_path_factory: pytest.TempPathFactory, run: Run) -> dict[str, tuple[str, ...]]:
    """By task: data, evaluation data, a float teacher."""
    root = tmp_path_factory.mktemp("teachers")
    encoder = save_encoder(root / "encoder")
    tagged = (write_conll(root / "train.conll", 24, seed=1), write_conll(root / "dev.conll", 12, seed=2))
    pairs = (write_pairs(root / "train.tsv", 24, seed=1), write_pairs(root / "dev.tsv", 16, seed=2))
    run("train", "--task", "ner", "--data", tagged[0], "--eval", tagged[1], "--method", "fp32",
        "--model", encoder, "-o", root / "tagger", *STEPS)  # fmt: skip
    return {
        "ner": (str(tagged[0]), str(tagged[1]), str(root / "tagger")),
        "embedding": (str(pairs[0]), str(pairs[1]), str(encoder)),
    }


@pytest.mark.slow
@pytest.mark.parametrize(("task", "method", "options"), CASES)
def test_method_trains_exports_and_agrees(
    teachers: dict[str, tuple[str, ...]], run: Run, tmp_path: Path, task: str, method: str, options: Any
) -> None:
    data, dev, teacher = teachers[task]
    words = ["train", "--task", task, "--method", method, "--data", data, "--eval", dev,
             "--model" if method == "q8bert" else "--teacher", teacher,
             "-o", str(tmp_path / "student"), *STEPS, *options]  # fmt: skip
    run(*words)
    run("to-onnx", tmp_path / "student", tmp_path / "onnx")
    run("verify", tmp_path / "onnx", "--eval", dev, "--targets", "stock", "--no-latency",
        "--baseline", "none", "--report", tmp_path)  # fmt: skip
    report = json.loads((tmp_path / "report.json").read_text())
    parity = {item["against"]: item["agreement"] for item in report["parity"] if item["engine"] == "stock"}
    assert parity["student"] == 1.0
    narrower = (task, method) == ("embedding", "tinybert")
    assert ("teacher" in parity) == (method != "q8bert" and not narrower)


@pytest.mark.parametrize("method", ["q8bert", "lsq", "fp32"])
def test_method_without_a_teacher_is_refused_for_embeddings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], method: str
) -> None:
    words = ["train", "--task", "embedding", "--method", method, "-o", str(tmp_path / "student")]
    assert main(words) == 2
    assert f"method {method} learns from labels and task embedding has none" in capsys.readouterr().err
