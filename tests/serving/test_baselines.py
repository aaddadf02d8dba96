from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest

from qexport.errors import UnsupportedModelError
from qexport.serving import baselines
from qexport.serving.baselines import dynamic_int8
from qexport.serving.machine import has_vnni
from qexport.serving.session import Session


@pytest.mark.parametrize("vnni", [False, True])
def test_int8_is_smaller_and_close(
    tmp_path: Path, toy: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, vnni: bool
) -> None:
    monkeypatch.setattr(baselines, "has_vnni", lambda: vnni)
    folder = toy.write_folder(tmp_path / "fp32", toy.classifier(hidden=256))
    level = logging.getLogger().level
    file, how = dynamic_int8(folder / "model.onnx", tmp_path / "int8")
    assert ("int8 per column" if vnni else "uint8 per matrix") in how
    assert logging.getLogger().level == level
    assert "MatMulInteger" in {node.op_type for node in onnx.load(file).graph.node}
    assert file.stat().st_size < 0.6 * (folder / "model.onnx").stat().st_size
    batch = {"input_ids": np.array([[2, 5, 3]])}
    exact, rounded = Session(folder).logits(batch), Session(file).logits(batch)
    if vnni and not has_vnni():
        return  # signed weights saturate here, which is why dynamic_int8 does not choose them
    assert 0 < np.abs(exact - rounded).max() < 0.05 * np.abs(exact).max()


def test_a_file_that_cannot_be_quantised_is_named(tmp_path: Path) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"nothing")
    with pytest.raises(UnsupportedModelError, match=r"cannot quantise .*broken\.onnx"):
        dynamic_int8(broken, tmp_path / "int8")
