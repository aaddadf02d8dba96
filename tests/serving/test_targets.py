from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from qexport.errors import UnknownNameError, UnsupportedModelError, UsageError
from qexport.serving import targets
from qexport.serving.targets import get_target, target_names

MakeFolder = Callable[..., Path]

BATCH = {"input_ids": np.array([[2, 5, 3], [2, 3, 0]]), "attention_mask": np.array([[1, 1, 1], [1, 1, 0]])}


def test_every_target_gives_the_same_logits(make_folder: MakeFolder) -> None:
    folder = make_folder()
    logits = {}
    for name in target_names():
        target = get_target(name)
        target.check()
        assert target.name == name and target.versions()
        for mode in target.modes:
            logits[mode] = target.open(folder, mode=mode, threads=1).run(BATCH)["logits"]
    assert set(logits) == {"stock", "stock-unoptimized", "reference"}
    for value in logits.values():
        np.testing.assert_allclose(value, logits["stock"], atol=1e-5)


def test_slow_modes_have_a_row_limit() -> None:
    stock, reference = get_target("stock"), get_target("reference")
    assert [stock.row_limit(mode) for mode in stock.modes] == [None, 64]
    assert reference.row_limit("reference") == 8


def test_an_unknown_target_suggests_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="unknown target 'refrence'; did you mean 'reference'"):
        get_target("refrence")


def test_an_entry_point_adds_a_target_but_cannot_replace_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    points = [
        EntryPoint("mine", "qexport.serving.targets.stock:TARGET", "qexport.targets"),
        EntryPoint("stock", "nowhere:TARGET", "qexport.targets"),
        EntryPoint("broken", "qexport.serving.targets.stock:ABSENT", "qexport.targets"),
    ]
    monkeypatch.setattr(targets, "entry_points", lambda group: points if group == "qexport.targets" else [])
    assert target_names() == ("broken", "mine", "reference", "stock")
    assert get_target("mine").name == get_target("stock").name == "stock"
    with pytest.raises(UsageError, match=r"target 'broken' .* does not name a qexport target"):
        get_target("broken")


def test_the_reference_refuses_damaged_and_foreign_files(tmp_path: Path, make_folder: MakeFolder) -> None:
    reference = get_target("reference")
    file = make_folder() / "model.onnx"
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(UnsupportedModelError, match="cannot load"):
        reference.open(file, mode="reference", threads=1)
    x = helper.make_tensor_value_info("pixels", TensorProto.FLOAT, [1, 3])
    y = helper.make_tensor_value_info("boxes", TensorProto.FLOAT, [1, 3])
    graph = helper.make_graph([helper.make_node("Relu", ["pixels"], ["boxes"])], "detector", [x], [y])
    path = tmp_path / "detector.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), path)
    with pytest.raises(UnsupportedModelError, match="not a text classifier"):
        reference.open(path, mode="reference", threads=1)


def test_a_mode_that_a_target_lacks_is_refused(make_folder: MakeFolder) -> None:
    with pytest.raises(UsageError, match="has the modes stock, stock-unoptimized, got 'fast'"):
        get_target("stock").open(make_folder(), mode="fast", threads=1)
