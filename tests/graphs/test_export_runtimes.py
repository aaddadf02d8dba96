"""Whole exported files on other ONNX Runtime versions, against this one.

Interpreters come from QEXPORT_ORT_PYTHONS or the cache folder, as in test_conformance.py, which also demands
that the oldest and a recent version are there when QEXPORT_REQUIRE_ALL is 1.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny_students import save_student

from qexport.graphs.config import ExportConfig
from qexport.graphs.export import to_onnx

RUNNER = Path(__file__).with_name("conformance_runner.py")
INLINES_EARLY = (1, 20)


def interpreters() -> list[Path]:
    named = os.environ.get("QEXPORT_ORT_PYTHONS", "")
    if named:
        return [Path(part) for part in named.split(os.pathsep) if part]
    cache = Path(os.environ.get("QEXPORT_CACHE") or Path.home() / ".cache" / "qexport")
    return sorted(cache.glob("ort-venvs/ort-*/bin/python"))


def feeds() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    mask = np.ones((3, 11), np.int64)
    mask[1, 4:] = 0
    mask[2] = 0
    ids = np.where(mask == 1, rng.integers(4, 20, mask.shape), 0)
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(mask)}


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory, trace_once: None) -> Path:
    """One student, exported with definitions and for the oldest runtime, with one feed each."""
    root = tmp_path_factory.mktemp("runtimes")
    source = save_student(root / "student", "bert")
    folder = root / "cases"
    folder.mkdir()
    for name, min_ort in (("functions", "1.20"), ("oldest", "1.16")):
        to_onnx(ExportConfig(model=source, output=root / name, min_ort=min_ort))
        shutil.copy(root / name / "model.onnx", folder / f"{name}.onnx")
        np.savez(folder / f"{name}.npz", **feeds())
    return folder


def run(python: Path, cases: Path, results: Path) -> tuple[tuple[int, ...], dict[str, np.ndarray]]:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [str(python), str(RUNNER), str(cases), str(results)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    summary = json.loads((results / "summary.json").read_text())
    assert not summary["errors"], summary
    found = {}
    for name in ("functions", "oldest"):
        with np.load(results / f"{name}.npz") as stored:
            found |= {f"{name}/{level}": stored[f"{level}/logits"] for level in ("off", "on")}
    return tuple(int(part) for part in summary["onnxruntime"].split(".")[:2]), found


@pytest.fixture(scope="module")
def here(cases: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    return run(Path(sys.executable), cases, tmp_path_factory.mktemp("here"))[1]


def test_inlined_file_gives_the_same_numbers(here: dict[str, np.ndarray]) -> None:
    assert all(np.isfinite(logits).all() for logits in here.values())
    np.testing.assert_allclose(here["oldest/off"], here["functions/off"], atol=1e-6)
    np.testing.assert_allclose(here["oldest/on"], here["functions/on"], rtol=0, atol=2e-6)


@pytest.mark.parametrize("python", interpreters(), ids=lambda python: python.parents[1].name)
def test_other_versions_give_the_same_numbers(
    python: Path, cases: Path, here: dict[str, np.ndarray], tmp_path: Path
) -> None:
    version, found = run(python, cases, tmp_path)
    assert version >= (1, 16)
    for name, logits in found.items():
        # LayerNorm and GELU round differently between versions, which can move an activation to the next code
        np.testing.assert_allclose(logits, here[name], rtol=0, atol=2e-6, err_msg=f"{version} {name}")
