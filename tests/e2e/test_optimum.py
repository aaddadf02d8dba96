"""The exported folder loads with optimum's ORTModel and transformers' pipeline, in an environment of its own.

optimum-onnx 0.1 needs transformers 4, qexport needs 5, so the two live apart: QEXPORT_OPTIMUM_PYTHON names a
Python that has optimum-onnx[onnxruntime] (CONTRIBUTING.md shows how to make one; .ci/run does).
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from required import missing

from qexport.serving.session import Session

if TYPE_CHECKING:
    from conftest import Trail

TEXTS = ["the film was great", "the plot is awful", "a film so very dull very very dull"]


@pytest.mark.parametrize("which", ["onnx", "teacher_onnx"])
def test_folder_loads_with_optimum_and_gives_the_same_answers(
    which: str, trail: Trail, tmp_path: Path
) -> None:
    python = os.environ.get("QEXPORT_OPTIMUM_PYTHON")
    if not python:
        missing("QEXPORT_OPTIMUM_PYTHON must name a Python with optimum-onnx, see CONTRIBUTING.md")
    folder = getattr(trail, which)
    command = [python, str(Path(__file__).with_name("optimum_runner.py")), str(folder), *TEXTS]
    clean = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=clean, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    session = Session(folder)
    np.testing.assert_allclose(found["logits"], session.logits(session.encode(TEXTS)), atol=1e-5, rtol=0)
    for ours, theirs in zip(session.predict(TEXTS), found["pipeline"], strict=True):
        assert theirs["label"] == ours.label
        assert theirs["score"] == pytest.approx(ours.probability, abs=1e-5)
