from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from small_batch import BATCH

from qexport.errors import EnvironmentProblem, UnknownNameError, UnsupportedModelError, UsageError
from qexport.serving import targets
from qexport.serving.devices.address import parse_address
from qexport.serving.targets import choose_targets, get_target, target_names

if TYPE_CHECKING:
    from conftest import FakeKernels

MakeFolder = Callable[..., Path]


@pytest.mark.usefixtures("fake")
def test_every_target_gives_the_same_logits(marked: Path) -> None:
    folder = marked
    logits = {}
    for name in ("native", "stock", "reference"):
        target = get_target(name)
        target.check()
        place = target.start(lambda line: None)
        assert target.name == name and place.facts().versions and not place.facts().machine
        for mode in target.modes:
            logits[mode] = place.open(folder, mode=mode, threads=1).run(BATCH)["logits"]
        place.close()
    assert set(logits) == {"native", "stock", "stock-unoptimized", "reference"}
    for value in logits.values():
        np.testing.assert_allclose(value, logits["stock"], atol=1e-5)


def test_slow_modes_have_a_row_limit() -> None:
    stock, reference = get_target("stock"), get_target("reference")
    assert [stock.row_limit(mode) for mode in stock.modes] == [None, 64]
    assert reference.row_limit("reference") == 8
    assert [stock.clock(mode) for mode in stock.modes] == ["host", "none"]
    assert reference.clock("reference") == "none"
    native = get_target("native")
    assert native.row_limit("native") is None and native.clock("native") == "host"


def test_an_unknown_target_suggests_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="unknown target 'refrence'; did you mean 'reference'"):
        get_target("refrence")
    with pytest.raises(UnknownNameError, match="unknown target 'native-axv2'; did you mean 'native-avx2'"):
        get_target("native-axv2")


def test_an_entry_point_adds_a_target_but_cannot_replace_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    points = [
        EntryPoint("mine", "qexport.serving.targets.stock:TARGET", "qexport.targets"),
        EntryPoint("stock", "nowhere:TARGET", "qexport.targets"),
        EntryPoint("broken", "qexport.serving.targets.stock:ABSENT", "qexport.targets"),
    ]
    monkeypatch.setattr(targets, "entry_points", lambda group: points if group == "qexport.targets" else [])
    assert {"broken", "mine", "native", "reference", "stock"} <= set(target_names())
    assert get_target("mine").name == get_target("stock").name == "stock"
    with pytest.raises(UsageError, match=r"target 'broken' .* does not name a qexport target"):
        get_target("broken")


def test_two_targets_that_would_share_a_column_are_refused(make_folder: MakeFolder) -> None:
    file = make_folder() / "model.onnx"
    with pytest.raises(
        UsageError, match=r"ssh://pi\?isa=neon and .* are both 'ssh://pi stock' in the report"
    ):
        choose_targets(["stock", "ssh://pi?isa=neon", "ssh://pi?isa=dotprod"], file)


def test_an_address_keeps_its_capitals_and_adb_may_name_no_device() -> None:
    assert parse_address("ssh://me@MyPi:22/My%20Folder").host == "me@MyPi"
    assert get_target("adb://").name == "adb://"
    with pytest.raises(UsageError, match="must be ssh://user@host"):
        get_target("ssh://")


def test_the_reference_refuses_damaged_and_foreign_files(tmp_path: Path, make_folder: MakeFolder) -> None:
    reference = get_target("reference").start(lambda line: None)
    file = make_folder() / "model.onnx"
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(UnsupportedModelError, match="cannot load"):
        reference.open(file, mode="reference", threads=1)
    x = helper.make_tensor_value_info("pixels", TensorProto.FLOAT, [1, 3])
    y = helper.make_tensor_value_info("boxes", TensorProto.FLOAT, [1, 3])
    graph = helper.make_graph([helper.make_node("Relu", ["pixels"], ["boxes"])], "detector", [x], [y])
    path = tmp_path / "detector.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), path)
    with pytest.raises(UnsupportedModelError, match="not an encoder"):
        reference.open(path, mode="reference", threads=1)


def test_a_mode_that_a_target_lacks_is_refused(make_folder: MakeFolder) -> None:
    with pytest.raises(UsageError, match="has the modes stock, stock-unoptimized, got 'fast'"):
        get_target("stock").start(print).open(make_folder(), mode="fast", threads=1)
    with pytest.raises(UsageError, match="has the mode native, got 'fast'"):
        get_target("native").start(print).open(make_folder("again"), mode="fast", threads=1)


def names(*asked: str, file: Path) -> tuple[list[str], list[str]]:
    choice = choose_targets(asked, file)
    return [target.name for target in choice.targets], choice.notes


@pytest.mark.usefixtures("fake")
def test_auto_is_native_and_stock_where_the_library_fits(marked: Path) -> None:
    file = marked / "model.onnx"
    assert names("auto", file=file) == (["native", "stock"], [])
    assert names("auto", "reference", "stock", file=file) == (["native", "stock", "reference"], [])
    assert names("stock", "auto", file=file) == (["stock", "native"], [])
    assert names("native-scalar", file=file) == (["native-scalar"], [])


@pytest.mark.usefixtures("no_library")
def test_without_a_library_auto_is_stock_with_a_note_and_native_by_name_fails(marked: Path) -> None:
    file = marked / "model.onnx"
    chosen, notes = names("auto", file=file)
    assert chosen == ["stock"]
    assert notes == [
        "native: no kernel library for this machine (no kernel library in this install; reinstall qexport); "
        "the file ran on stock ONNX Runtime"
    ]
    assert names("stock", "reference", file=file) == (["stock", "reference"], [])
    for target in ("native", "native-avx2"):
        with pytest.raises(EnvironmentProblem, match="no kernel library") as caught:
            choose_targets([target], file)
        assert caught.value.exit_code == 4


@pytest.mark.usefixtures("fake")
def test_a_file_without_our_operators_has_nothing_for_native(make_folder: MakeFolder) -> None:
    file = make_folder() / "model.onnx"
    chosen, notes = names("auto", file=file)
    assert chosen == ["stock"] and "model.onnx has no operator of ai.qexport" in notes[0]
    with pytest.raises(UnsupportedModelError, match=r"target native: .*no operator.*use target stock"):
        choose_targets(["native"], file)


def test_an_instruction_set_that_cannot_be_is_refused_even_by_auto(
    marked: Path, fake: FakeKernels, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QEXPORT_ISA", "avx3")
    with pytest.raises(UnknownNameError, match="'avx3'"):
        choose_targets(["auto"], marked / "model.onnx")
    assert fake.chosen == "avx2"
