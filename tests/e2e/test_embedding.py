"""Sentence embeddings from a float encoder to vectors of the exported file, through the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_tags import save_encoder, write_pairs

import qexport
from qexport.cli import main

TEXTS = ["the film was good", "", "so very dull a plot", "the film was good"]


@pytest.fixture(scope="module")
def trail(tmp_path_factory: pytest.TempPathFactory, run: Callable[..., None]) -> Path:
    """A float encoder, a student of it and its export."""
    root = tmp_path_factory.mktemp("embedding")
    train, dev = write_pairs(root / "train.tsv", 64, seed=1), write_pairs(root / "dev.tsv", 40, seed=2)
    encoder = save_encoder(root / "encoder")
    run("train", "--task", "embedding", "--data", train, "--eval", dev, "--method", "ternarybert",
        "--teacher", encoder, "-o", root / "student", "--max-steps", 24, "--eval-steps", 24,
        "--logging-steps", 8, "--batch-size", 16, "--lr", 2e-3, "--threads", 1)  # fmt: skip
    run("to-onnx", root / "student", root / "onnx")
    return root


def test_student_learned_its_teacher_and_loads_as_an_encoder(trail: Path) -> None:
    from transformers import AutoModel

    report = json.loads((trail / "student" / "qexport_train.json").read_text())
    assert report["losses"]["label"] == 0
    assert report["metrics"]["validation/spearman"] > 0.3
    losses = [line["loss_logits"] for line in report["history"] if "loss_logits" in line]
    assert type(qexport.load(trail / "student")).__name__ == "BertModel"
    assert AutoModel.from_pretrained(trail / "student").config.hidden_size == 20
    assert losses[-1] < 0.2
    modules = json.loads((trail / "student" / "modules.json").read_text())
    assert [module["type"].rpartition(".")[2] for module in modules] == [
        "Transformer",
        "Pooling",
        "Normalize",
    ]


def test_verify_ranks_pairs_and_compares_neighbours(
    trail: Path, tmp_path: Path, verified: Callable[..., dict[str, Any]]
) -> None:
    report = verified(
        trail / "onnx", trail / "dev.tsv", "--targets", "stock", "--layers", "--baseline", "none"
    )
    assert report["layers"]["first"] is None
    (data,) = report["data"]
    assert (data["kind"], data["item"], data["main_metric"]) == ("embedding", "sentence", "spearman")
    parity = {(item["engine"], item["against"]): item for item in report["parity"]}
    student, teacher = parity["stock", "student"], parity["stock", "teacher"]
    assert student["agreement"] == 1.0
    measures = {measure["name"]: measure["value"] for measure in student["measures"]}
    assert measures["cosine"] > 0.9999
    assert measures["neighbours_top1"] > 0.95
    assert {"cosine", "neighbours_top1", "neighbours_top10"} == {m["name"] for m in teacher["measures"]}
    assert teacher["measures"][0]["value"] < measures["cosine"]
    page = (tmp_path / "report.html").read_text()
    assert "neighbours_top10" in page


def test_vectors_have_length_1_and_do_not_depend_on_the_batch(trail: Path) -> None:
    model = qexport.load_onnx(trail / "onnx")
    vectors = model.embed(TEXTS)
    assert vectors.shape == (4, 20)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-6)
    assert np.array_equal(vectors[0], vectors[3])
    alone = np.concatenate([qexport.load_onnx(trail / "onnx", kernels="off").embed([one]) for one in TEXTS])
    np.testing.assert_allclose(vectors, alone, atol=1e-4)
    with pytest.raises(qexport.errors.UsageError, match="write \\[text\\]"):
        model.embed("the film")


def test_predict_writes_vectors_as_json_or_npy(
    trail: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", str(trail / "onnx"), "the film", "a plot"]) == 0
    rows = json.loads(capsys.readouterr().out)
    file = tmp_path / "vectors.npy"
    assert main(["predict", str(trail / "onnx"), "the film", "a plot", "--output", str(file)]) == 0
    np.testing.assert_array_equal(np.load(file), np.array([row["embedding"] for row in rows], np.float32))


def test_method_that_learns_from_labels_is_refused(
    trail: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "train",
        "--task",
        "embedding",
        "--data",
        str(trail / "train.tsv"),
        "--eval",
        str(trail / "dev.tsv"),
        "-o",
        str(tmp_path / "out"),
        "--teacher",
        str(trail / "encoder"),
    ]
    assert main([*words, "--method", "lsq"]) == 2
    assert "learns from labels and task embedding has none" in capsys.readouterr().err
    assert main([*words, "--method", "ternarybert", "--label-weight", "1"]) == 2
    assert "leave --label-weight 1 out" in capsys.readouterr().err
