"""Target openvino: the inlined file on another engine."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from required import missing
from small_batch import BATCH

from qexport.errors import MissingToolError, UnsupportedModelError
from qexport.serving.session import Session
from qexport.serving.targets import get_target


def test_without_the_package_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qexport.serving.targets.openvino.find_spec", lambda name: None)
    with pytest.raises(MissingToolError, match=r'run: pip install "qexport\[bench\]"'):
        get_target("openvino").check()


def test_openvino_gives_the_logits_of_onnxruntime(ternary_folder: Path, tmp_path: Path) -> None:
    if find_spec("openvino") is None:
        missing("openvino is not installed: pip install -e '.[bench]'")
    file = ternary_folder / "model.onnx"
    place = get_target("openvino").start(lambda line: None)
    runner = place.open(file, mode="openvino", threads=1)
    np.testing.assert_allclose(runner.run(BATCH)["logits"], Session(file).run(BATCH)["logits"], atol=2e-2)
    assert "openvino" in place.facts().versions
    (tmp_path / "model.onnx").write_bytes(file.read_bytes()[:2000])
    with pytest.raises(UnsupportedModelError, match="is no ONNX file"):
        place.open(tmp_path / "model.onnx", mode="openvino", threads=1)
