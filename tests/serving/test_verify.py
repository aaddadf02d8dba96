from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper
from rich.console import Console

from qexport.errors import (
    EnvironmentProblem,
    GateFailed,
    ShapeError,
    UnknownNameError,
    UnsupportedModelError,
    UsageError,
)
from qexport.serving.evaluate import evaluate
from qexport.serving.probe import Probe
from qexport.serving.report import Report
from qexport.serving.session import Session
from qexport.serving.verify import LayerReference, VerifyConfig, verify

MakeFolder = Callable[..., Path]


def quick(model: Path, **changes: Any) -> VerifyConfig:
    """A configuration that measures no time and starts no process unless asked to."""
    return VerifyConfig(**{"model": model, "latency": False, "processes": 0, **changes})


def labelled(folder: Path, rows: Any, *, right: float = 1.0, seed: int = 0) -> Any:
    """The rows with labels that the model in `folder` gets right at the given rate."""
    logits, _ = evaluate(Session(folder), rows)
    correct = np.random.default_rng(seed).random(len(logits)) < right
    return dataclasses.replace(rows, labels=np.where(correct, logits.argmax(-1), 1 - logits.argmax(-1)))


def test_everything_is_measured_and_named(make_folder: MakeFolder, toy: SimpleNamespace) -> None:
    folder, fp32 = make_folder("low"), make_folder("fp32", noise=0.02)
    rows = labelled(folder, toy.make_rows(40, shuffled=True), right=0.9)
    logits, _ = evaluate(Session(folder), rows)
    lines: list[str] = []
    report = verify(
        VerifyConfig(
            model=folder, baseline=fp32, targets=("stock", "reference"), lengths=(8, 16), threads=(1, 2),
            iterations=3, warmup=1, processes=1, max_drop=50.0, min_agreement=90.0, max_latency_ms=500.0,
            max_size_mb=1.0, command="qexport verify low",
        ),
        rows, {"student": logits, "teacher": logits + np.float32(0.01)}, report=lines.append,
    )  # fmt: skip
    assert [engine.name for engine in report.engines] == [
        "stock", "fp32", "int8", "student", "teacher", "stock-unoptimized", "reference",
    ]  # fmt: skip
    assert report.engine("stock").label == "ternarybert 2-2-8"
    assert report.status == "passed" and [gate.name for gate in report.gates] == [
        "max-drop", "min-agreement", "max-latency-ms", "max-size-mb",
    ]  # fmt: skip
    report.raise_for_gates()
    compared = {(item.engine, item.against): item for item in report.parity}
    assert report.parity[0].against == "student"
    assert compared["stock", "student"].agreement == 1.0 and compared["stock", "student"].max_abs == 0.0
    assert compared["reference", "stock"].rows == 8 and compared["reference", "stock"].max_abs < 1e-4
    assert compared["stock", "fp32"].max_abs > 0
    assert {cell.engine for cell in report.latency} == {"stock", "int8", "fp32"}
    assert {(cell.length, cell.threads) for cell in report.latency} == {(8, 1), (16, 1), (8, 2), (16, 2)}
    assert [process.engine for process in report.processes] == ["stock", "fp32", "int8"]
    assert any("reference ran 8 of 40 rows" in note for note in report.notes)
    accuracy = {item.engine: item.metrics[0].value for item in report.accuracy}
    assert (
        accuracy["stock"]
        == accuracy["student"]
        == pytest.approx(float((logits.argmax(-1) == rows.labels).mean()))
    )
    assert "reference" not in accuracy  # eight rows are no metric
    assert lines and report.invariance is not None and report.invariance.rows == 16


@pytest.mark.usefixtures("fake")
def test_native_is_the_headline_beside_stock(
    marked: Path, make_folder: MakeFolder, toy: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    probed: list[dict[str, Any]] = []

    def measured(path: Path, **options: Any) -> Probe:
        probed.append({"file": path.parent.name, **options})
        return Probe(1.0, 1.0, 1.0, 2_000_000, 1_000_000, options["length"], options["threads"])

    monkeypatch.setattr("qexport.serving.timing.probe", measured)
    fp32 = make_folder("fp32", noise=0.02)
    rows = labelled(marked, toy.make_rows(40), right=0.9)
    logits, _ = evaluate(Session(marked), rows)
    report = verify(
        VerifyConfig(model=marked, baseline=fp32, lengths=(8,), iterations=2, warmup=0, processes=1),
        rows, {"student": logits, "teacher": logits},
    )  # fmt: skip
    assert [engine.name for engine in report.engines] == [
        "native", "stock", "fp32", "int8", "student", "teacher", "stock-unoptimized",
    ]  # fmt: skip
    first, second = report.engines[:2]
    assert (first.label, first.isa, first.library) == ("ternarybert 2-2-8, native avx2", "avx2", "0.1.0")
    assert (first.model_label, first.short_label) == ("ternarybert 2-2-8", "native avx2")
    assert report.engine("fp32").model_label == report.engine("fp32").short_label == "FP32"
    assert (second.label, second.isa, second.library) == ("ternarybert 2-2-8, stock", None, None)
    assert first.file_bytes == second.file_bytes == report.model.file_bytes
    assert report.main_engine == "native" and report.environment.versions["qexport kernels"] == "0.1.0"
    compared = [(item.engine, item.against) for item in report.parity]
    assert compared.index(("native", "student")) == 0 and ("native", "stock") in compared
    assert ("stock", "native") not in compared and len(set(compared)) == len(compared)
    assert [item.engine for item in report.parity[:4]] == ["native"] * 4
    beside = next(item for item in report.parity if (item.engine, item.against) == ("native", "stock"))
    assert (beside.rows, beside.disagreements, beside.bit_identical) == (40, 0, True)
    assert {cell.engine for cell in report.latency} == {"native", "stock", "int8", "fp32"}
    assert {ratio.against for ratio in report.latency[0].ratios} == {"stock", "int8", "fp32"}
    assert {(drop.engine, drop.against) for drop in report.drops} >= {
        ("native", "teacher"),
        ("stock", "teacher"),
    }
    held = (Path("libqexport_kernels.so"), "avx2")
    assert [(call["library"], call["isa"]) for call in probed] == [held, *[(None, None)] * 3]
    assert [process.engine for process in report.processes] == ["native", "stock", "fp32", "int8"]
    assert "on avx2 kernels" in report.headline and "as fast as stock ONNX Runtime" in report.headline
    assert [row.engine.name for row in report.summary()][:2] == ["native", "stock"]
    assert report.summary()[1].drop is not None


@pytest.mark.usefixtures("fake")
def test_instruction_sets_are_compared_with_each_other_and_with_stock(
    marked: Path, toy: SimpleNamespace
) -> None:
    report = verify(quick(marked, targets=("native-avx2", "native-scalar", "stock")), toy.make_rows(10))
    assert [engine.label for engine in report.engines][:3] == [
        f"ternarybert 2-2-8, {name}" for name in ("native-avx2", "native-scalar", "stock")
    ]
    compared = {(item.engine, item.against) for item in report.parity}
    assert compared >= {
        ("native-avx2", "stock"), ("native-scalar", "stock"), ("native-scalar", "native-avx2"),
    }  # fmt: skip


@pytest.mark.usefixtures("no_library")
def test_without_a_library_the_report_says_so(marked: Path, toy: SimpleNamespace) -> None:
    report = verify(quick(marked), toy.make_rows(10))
    assert report.main_engine == "stock" and report.engines[0].label == "ternarybert 2-2-8"
    assert any(note.startswith("native: no kernel library for this machine") for note in report.notes)
    out = io.StringIO()
    report.print(Console(file=out, width=160))
    for text in (out.getvalue(), report.to_html(), report.to_json()):
        assert "native: no kernel library for this machine" in text
    lines: list[str] = []
    with pytest.raises(EnvironmentProblem, match="no kernel library"):
        verify(quick(marked, targets=("native",)), toy.make_rows(10), report=lines.append)
    assert lines == []


def test_a_worse_model_fails_the_drop_gate_with_exit_code_3(
    make_folder: MakeFolder, toy: SimpleNamespace
) -> None:
    good, bad = make_folder("good"), make_folder("bad", noise=3.0)
    rows = labelled(good, toy.make_rows(200))
    report = verify(quick(bad, baseline=good, int8=False, max_drop=1.0), rows)
    (gate,) = report.gates
    assert report.status == "failed" and gate.status == "failed" and report.failed_gates == [gate]
    assert gate.low is not None and gate.low > 1.0
    with pytest.raises(
        GateFailed, match=r"--max-drop 1 failed: accuracy on validation, paired with fp32"
    ) as caught:
        report.raise_for_gates()
    assert caught.value.exit_code == 3


def test_equal_models_cannot_be_told_apart_on_few_rows(make_folder: MakeFolder, toy: SimpleNamespace) -> None:
    folder, twin = make_folder("one"), make_folder("two")
    few = verify(quick(folder, baseline=twin, int8=False, max_drop=1.0), labelled(folder, toy.make_rows(40)))
    assert (few.status, few.gates[0].status) == ("undecided", "undecided")
    assert few.gates[0].rows_needed is not None and few.gates[0].rows_needed > 40
    with pytest.raises(GateFailed, match="undecided"):
        few.raise_for_gates()
    many = verify(
        quick(folder, baseline=twin, int8=False, max_drop=1.0), labelled(folder, toy.make_rows(600, batch=64))
    )
    assert many.status == "passed"


def test_a_gate_without_its_number_fails(make_folder: MakeFolder, toy: SimpleNamespace) -> None:
    config = quick(make_folder(), max_drop=1.0, min_agreement=99.0, max_latency_ms=5.0)
    report = verify(config, toy.make_rows(10))
    assert [gate.status for gate in report.gates] == ["missing", "missing", "missing"]
    assert report.status == "failed"


def test_no_gate_means_measured(make_folder: MakeFolder, toy: SimpleNamespace) -> None:
    report = verify(quick(make_folder()), toy.make_rows(10))
    assert report.status == "measured" and report.failed_gates == []
    report.raise_for_gates()


def test_the_drop_is_counted_from_the_teacher_before_the_baseline(
    make_folder: MakeFolder, toy: SimpleNamespace
) -> None:
    folder = make_folder()
    rows = labelled(folder, toy.make_rows(40))
    wrong = -evaluate(Session(folder), rows)[0]
    report = verify(quick(folder, baseline=folder, int8=False, max_drop=1.0), rows, {"teacher": wrong})
    (gate,) = report.gates
    assert gate.value == pytest.approx(-100.0) and "paired with teacher" in gate.detail
    assert report.drop_reference == "teacher"


def test_another_metric_than_accuracy_uses_the_interval_that_came_with_the_rows(
    make_folder: MakeFolder, toy: SimpleNamespace
) -> None:
    seen: list[str] = []

    def drop(metric: str, first: Any, second: Any, labels: Any) -> SimpleNamespace:
        seen.append(metric)
        return SimpleNamespace(drop=0.01, low=-0.01, high=0.03)

    rows = toy.make_rows(
        10,
        main_metric="f1",
        metrics=lambda logits, labels: {"f1": 0.5},
        interval=lambda *_: (0.1, 0.9),
        paired_drop=drop,
    )
    folder = make_folder()
    report = verify(quick(folder, max_drop=5.0), rows, {"teacher": np.zeros((10, 2), np.float32)})
    assert set(seen) == {"f1"}
    assert (report.drops[0].points, report.drops[0].low, report.drops[0].high) == (1.0, -1.0, 3.0)
    assert report.gates[0].status == "passed"


def test_each_split_is_judged(make_folder: MakeFolder, toy: SimpleNamespace) -> None:
    folder = make_folder()
    splits = [toy.make_rows(20, split="matched"), toy.make_rows(30, split="mismatched", seed=5)]
    logits = [evaluate(Session(folder), rows)[0] for rows in splits]
    given = [{"student": logits[0]}, {"student": -logits[1]}]
    report = verify(quick(folder, min_agreement=99.0), splits, given)
    assert [rows.split for rows in report.data] == ["matched", "mismatched"]
    assert [gate.status for gate in report.gates] == ["passed", "failed"]
    assert [item.rows for item in report.accuracy if item.engine == "stock"] == [20, 30]


def test_layers_come_into_the_report(make_folder: MakeFolder, toy: SimpleNamespace) -> None:
    folder = make_folder()
    batch = {"input_ids": np.array([[2, 5, 3]])}
    value = Session(folder, extra_outputs=["norm_0"]).run(batch)["norm_0"]
    layers = LayerReference(batch, {"embeddings.LayerNorm": value + np.float32(0.5)})
    report = verify(quick(folder, layer_tolerance=0.1), toy.make_rows(10), layers=layers)
    assert report.layers is not None and report.layers.first == "embeddings.LayerNorm"


def test_a_row_depends_on_its_neighbours_when_the_graph_mixes_rows(
    make_folder: MakeFolder, toy: SimpleNamespace
) -> None:
    folder = make_folder()
    model = onnx.load(folder / "model.onnx")
    model.graph.node[-1].output[0] = "own"
    model.graph.node.append(helper.make_node("ReduceMean", ["own"], ["middle"], keepdims=1))
    model.graph.node.append(helper.make_node("Add", ["own", "middle"], ["logits"]))
    onnx.save(model, folder / "model.onnx")
    mixed = verify(quick(folder), toy.make_rows(16)).invariance
    apart = verify(quick(make_folder("apart")), toy.make_rows(16)).invariance
    assert mixed is not None and apart is not None
    assert mixed.max_abs > 0.1 and not mixed.identical
    assert apart.max_abs < 1e-4


def test_lengths_without_positions_are_left_out(make_folder: MakeFolder, toy: SimpleNamespace) -> None:
    config = quick(make_folder(), latency=True, lengths=(32, 128), iterations=2, warmup=0)
    report = verify(config, toy.make_rows(10))
    assert {cell.length for cell in report.latency} == {32}
    assert any("above 64 tokens" in note for note in report.notes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"min_agreement": 0.999}, "in percent.*got 0.999; write 99.9"),
        ({"min_agreement": 100.5}, "at most 100"),
        ({"max_latency_ms": 0.0}, "--max-latency-ms must be above 0"),
        ({"max_size_mb": -1.0}, "--max-size-mb must be above 0"),
        ({"max_drop": float("nan")}, "--max-drop must be a number"),
        ({"targets": ()}, "at least one --target"),
        ({"iterations": 0}, "--iterations must be at least 1"),
        ({"lengths": (0,)}, "--lengths must be at least 1"),
        ({"threads": ()}, "--threads must be at least 1"),
        ({"latency_length": 77}, "77 tokens"),
    ],
)  # fmt: skip
def test_a_bound_that_cannot_be_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        VerifyConfig(model=Path("m"), **changes)
    assert caught.value.exit_code == 2


def test_references_of_other_rows_or_labels_are_refused(
    make_folder: MakeFolder, toy: SimpleNamespace
) -> None:
    config, rows = quick(make_folder()), toy.make_rows(10)
    with pytest.raises(ShapeError, match=r"logits of student must be \[10, ...\]"):
        verify(config, rows, {"student": np.zeros((9, 2), np.float32)})
    with pytest.raises(ShapeError, match="student has 3 labels but stock has 2"):
        verify(config, rows, {"student": np.zeros((10, 3), np.float32)})
    with pytest.raises(UsageError, match="one set of references per split, got 2 for 1"):
        verify(config, rows, [{}, {}])


def test_a_model_baseline_or_target_that_cannot_be_is_named_before_work(
    make_folder: MakeFolder, toy: SimpleNamespace, tmp_path: Path
) -> None:
    lines: list[str] = []
    rows = toy.make_rows(10)
    with pytest.raises(UnknownNameError, match="unknown target 'stok'; did you mean 'stock'"):
        verify(quick(make_folder(), targets=("stok",)), rows, report=lines.append)
    with pytest.raises(UnsupportedModelError, match="does not exist"):
        verify(quick(tmp_path / "absent"), rows, report=lines.append)
    with pytest.raises(UnsupportedModelError, match="does not exist"):
        verify(quick(make_folder("m"), baseline=tmp_path / "absent"), rows, report=lines.append)
    assert lines == []


def test_foreign_and_truncated_files_are_refused_with_exit_code_5(
    make_folder: MakeFolder, toy: SimpleNamespace
) -> None:
    truncated = make_folder("truncated") / "model.onnx"
    truncated.write_bytes(truncated.read_bytes()[:500])
    foreign = make_folder("foreign") / "model.onnx"
    model = onnx.load(foreign)
    model.graph.output[0].name = model.graph.node[-1].output[0] = "boxes"
    onnx.save(model, foreign)
    for file, message in (
        (truncated, "not a complete ONNX file"),
        (foreign, "not an encoder.*boxes"),
    ):
        with pytest.raises(UnsupportedModelError, match=message) as caught:
            verify(quick(file), toy.make_rows(10))
        assert caught.value.exit_code == 5 and "\n" not in str(caught.value)


def test_what_only_a_baseline_or_a_process_lacks_becomes_a_note(
    make_folder: MakeFolder, toy: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_int8(*_: Any) -> None:
        raise UnsupportedModelError("cannot quantise")

    def no_process(*_: Any, **__: Any) -> None:
        raise EnvironmentProblem("no more processes")

    monkeypatch.setattr("qexport.serving.baselines.dynamic_int8", no_int8)
    monkeypatch.setattr("qexport.serving.timing.probe", no_process)
    folder = make_folder()
    report = verify(quick(folder, baseline=folder, processes=1), toy.make_rows(10))
    assert report.processes == [] and [engine.name for engine in report.engines][:2] == ["stock", "fp32"]
    assert any("cannot quantise" in note for note in report.notes)
    assert any("no more processes" in note for note in report.notes)


def test_a_report_is_the_same_object_in_json(make_folder: MakeFolder, toy: SimpleNamespace) -> None:
    report = verify(quick(make_folder()), toy.make_rows(10))
    assert isinstance(report, Report)
    plain = report.to_dict()
    assert plain["model"]["sha256"] == report.model.sha256
    assert plain["config"]["targets"] == ["auto"] and isinstance(plain["config"]["model"], str)
