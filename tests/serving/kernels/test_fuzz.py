"""Damaged files with the kernels registered: an error of ONNX Runtime, never a crash."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import kernel_build
import numpy as np
import pytest
from kernel_models import feeds, write_examples
from tiny_students import save_student

FUZZ = Path(kernel_build.__file__).with_name("kernel_fuzz.py")
HANGS = 120
"""Seconds in which a process must say something."""

STUDENTS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert-2-2-8": ("bert", {}),
    "bert-1-1-8": ("bert", {"bits": "1-1-8", "weight_quantizer": "bwn"}),
    "roberta-tensor": ("roberta", {"activations": "dynamic-tensor", "granularity": "matrix"}),
    "distilbert-q8bert": ("distilbert", {"bits": "8-8-8", "activations": "static", "granularity": "matrix",
                                         "quantize_probabilities": False, "quantize_values": False}),
    "electra-weight-only": ("electra", {"bits": "4-5-32"}),
}  # fmt: skip


def fuzz(
    library: Path, folder: Path, seed: int, count: int, environment: dict[str, str] | None = None
) -> list[dict[str, Any]]:
    """Outcomes of `count` cases; a crash or a hang is the outcome of its case, and the rest goes on."""
    outcomes: list[dict[str, Any]] = []
    while len(outcomes) < count:
        first = len(outcomes)
        command = [
            sys.executable,
            str(FUZZ),
            str(library),
            str(folder),
            *map(str, (seed, first, count - first)),
        ]
        with tempfile.TemporaryFile("w+", errors="replace") as complaints:
            process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=complaints, text=True, errors="replace",
                env={**os.environ, **(environment or {})},
            )  # fmt: skip
            assert process.stdout is not None
            watch = threading.Timer(HANGS, process.kill)
            watch.start()
            for line in process.stdout:
                watch.cancel()
                watch = threading.Timer(HANGS, process.kill)
                watch.start()
                if line.startswith('{"case"') and '"stage"' in line:
                    outcomes.append(json.loads(line))
            code = process.wait()
            watch.cancel()
            complaints.seek(0)
            said = complaints.read()[-3000:]
        if code:
            outcomes.append(
                {"case": len(outcomes), "stage": "crash", "error": str(code), "text": said, "words": ""}
            )
            assert sum(item["stage"] == "crash" for item in outcomes) <= 20, said
    return outcomes


def texts() -> re.Pattern[str]:
    """What the kernels themselves complain of."""
    sources = "".join(path.read_text("utf-8") for path in (kernel_build.KERNELS / "ops").glob("*.cpp"))
    found = {text.strip() for text in re.findall(r'"([^"\n]{12,})"', sources) if " " in text.strip()}
    assert len(found) > 20
    return re.compile("|".join(map(re.escape, sorted(found))))


def check(outcomes: list[dict[str, Any]]) -> None:
    """No crash, only errors of ONNX Runtime, and the node's name wherever a kernel complains."""
    own = texts()
    wrong = []
    for item in outcomes:
        foreign = (
            item["error"] and not item["error"].startswith("onnxruntime.") and "Unicode" not in item["error"]
        )
        nameless = own.search(item["text"]) and not re.search(
            r"while running \S+ node\. Name:'", item["text"]
        )
        if item["stage"] == "crash" or foreign or nameless:
            wrong.append(f"case {item['case']}, {item['words']}: {item['error']} {item['text']}")
    assert not wrong, "\n".join(wrong)
    stages = Counter(item["stage"] for item in outcomes)
    assert min(stages[stage] for stage in ("load", "run", "done")) > len(outcomes) / 20, stages
    assert sum(bool(own.search(item["text"])) for item in outcomes) > len(outcomes) / 20


@pytest.fixture
def examples(tmp_path: Path) -> Path:
    """A model of each operator."""
    write_examples(tmp_path)
    return tmp_path


def test_damaged_operators_are_refused(library: Path, examples: Path) -> None:
    check(fuzz(library, examples, 20260101, 250))


def test_damaged_encoder_is_refused(library: Path, ternary_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "ternary.onnx").write_bytes((ternary_folder / "model.onnx").read_bytes())
    np.savez(tmp_path / "ternary.npz", **feeds(3)[2])
    check(fuzz(library, tmp_path, 20260102, 100))


@pytest.mark.slow
def test_ten_thousand_damaged_files_are_refused(library: Path, examples: Path, tmp_path: Path) -> None:
    from qexport.graphs.config import ExportConfig
    from qexport.graphs.export import to_onnx

    check(fuzz(library, examples, 1, 7000))
    encoders = tmp_path / "encoders"
    encoders.mkdir()
    for name, (model_type, quantization) in STUDENTS.items():
        source = save_student(tmp_path / name, model_type, **quantization)
        folder = to_onnx(ExportConfig(model=source, output=tmp_path / f"{name}-onnx")).output
        (encoders / f"{name}.onnx").write_bytes((folder / "model.onnx").read_bytes())
        np.savez(encoders / f"{name}.npz", **feeds(3)[2])
    check(fuzz(library, encoders, 2, 4000))
