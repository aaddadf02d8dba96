"""Targets outside this process: a stand-in place with a clock of its own, which can die at any step."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jsonschema
import numpy as np
import pytest
from rich.console import Console

from qexport.errors import (
    EnvironmentProblem,
    Interrupted,
    MissingToolError,
    TargetLost,
    UnsupportedModelError,
)
from qexport.serving import targets
from qexport.serving.matrix import checks
from qexport.serving.report import Report, json_schema
from qexport.serving.session import Session
from qexport.serving.targets import ALL, Facts, Job, Measure, choose_targets
from qexport.serving.verify import VerifyConfig, verify

MakeFolder = Callable[..., Path]


class Device:
    """A target and its place in one; `dies` names the step that loses it: "start", "run 3"."""

    error: BaseException | None = None
    opened = False
    refuses = ""
    """A mode, or the folder of a file, that it cannot load."""

    name = "device"
    modes = ("device", "device-two", "device-gpu")

    def __init__(self, dies: str = "", *, absent: bool = False) -> None:
        self.dies, self.absent, self.closed, self.runs = dies, absent, 0, 0

    def row_limit(self, mode: str) -> int | None:
        return None

    def clock(self, mode: str) -> str:
        return "own"

    def library(self) -> None:
        return None

    def check(self) -> None:
        if self.absent:
            raise MissingToolError("no device", "plug it in")

    def start(self, say: Any) -> Device:
        self._step("start")
        return self

    def facts(self) -> Facts:
        return Facts(
            {"cpu": "toy"},
            {"device runtime": "1.0"} if self.opened else {},
            {"device": 1, "device-two": 2},
            {"device-gpu": "no GPU"},
        )

    def _step(self, name: str) -> None:
        if name == self.dies:
            if self.error is not None:
                raise self.error
            raise TargetLost(f"the device was unplugged at {name}")

    def open(self, model: Path, *, mode: str, threads: int) -> Any:
        self._step("open")
        if model.parent.name == self.refuses or mode == self.refuses:
            raise UnsupportedModelError(f"{mode} cannot load {model.name}")
        self.opened = True
        session = Session(model)

        def run(batch: Any) -> Any:
            self.runs += 1
            self._step(f"run {self.runs}")
            return session.run(batch)

        return SimpleNamespace(run=run)

    def time(self, jobs: Mapping[str, Job], batch: Any, *, rounds: int, warmup: int) -> Any:
        self._step("time")
        assert jobs["device"].threads == 1 and ("device-two" not in jobs or jobs["device-two"].threads == 2)
        return {name: np.full(rounds, 1.0 + index) for index, name in enumerate(jobs)}

    def measures(self) -> list[Measure]:
        return [Measure("instructions per inference", 51189839.0, "instructions", "counted")]

    def close(self) -> None:
        self.closed += 1


def run(
    monkeypatch: pytest.MonkeyPatch,
    device: Device,
    folder: Path,
    toy: SimpleNamespace,
    *asked: str,
    **more: Any,
) -> Report:
    """A verification of 40 rows with the stand-in among the targets."""
    monkeypatch.setattr(targets, "_BUILT_IN", {**targets._BUILT_IN, "device": "toy"})
    real = targets.get_target
    monkeypatch.setattr(targets, "get_target", lambda name: device if name == "device" else real(name))
    config = VerifyConfig(
        model=folder, targets=asked, processes=0, lengths=(8,), iterations=3, warmup=0, **more
    )
    return verify(config, toy.make_rows(40))


def test_another_machine_has_a_column_a_clock_and_facts_of_its_own(
    monkeypatch: pytest.MonkeyPatch, make_folder: MakeFolder, toy: SimpleNamespace
) -> None:
    device, folder = Device(), make_folder()
    report = run(
        monkeypatch,
        device,
        folder,
        toy,
        "stock",
        "device",
        baseline=make_folder("fp32", noise=0.1),
        int8=False,
    )
    assert (report.status, device.closed) == ("measured", 1)
    assert [column.engine for column in report.matrix] == [
        "stock",
        "stock-unoptimized",
        "device",
        "device-two",
    ]
    column = report.matrix[2]
    assert (column.rows, column.same, column.bit_identical, column.clock) == (40, 40, True, "device")
    assert (column.latency_ms, column.threads, column.against) == (1.0, 1, "stock")
    cells = {cell.engine: cell for cell in report.latency}
    assert [cells[name].clock for name in ("stock", "fp32", "device", "device-two", "fp32-device")] == [
        "host", "host", "device", "device", "device",
    ]  # fmt: skip
    assert [ratio.against for ratio in cells["stock"].ratios] == ["fp32"]
    assert {ratio.against: ratio.median for ratio in cells["device"].ratios} == {
        "device-two": 2.0, "fp32-device": 3.0,
    }  # fmt: skip
    ratio = report.ratio_to_ours(cells["device-two"])
    assert ratio is not None and ratio.median == 2.0
    result = report.targets[1]
    assert (result.machine, result.versions) == ({"cpu": "toy"}, {"device runtime": "1.0"})
    assert result.reason == "device-gpu was left out: no GPU"
    jsonschema.validate(json.loads(report.to_json()), json_schema())
    page, out = report.to_html(), io.StringIO()
    report.print(Console(file=out, width=200))
    for text in (
        "device runtime 1.0",
        "Latency by length on device",
        "cpu: toy",
        "no GPU",
        "51,189,839 instructions",
    ):
        assert text in page
    assert "51,189,839 instructions" in out.getvalue() and "1, device" in out.getvalue()
    report.raise_for_gates()
    told = [checks(report, [dataclasses.replace(column, bit_identical=False, same=same)])["exactness"]
            for same in (40, 39, 38)]  # fmt: skip
    assert told == [["same predictions"], ["1 row differs"], ["2 rows differ"]]


@pytest.mark.parametrize("dies", ["start", "open", "run 1", "run 7", "time"])
def test_a_target_that_is_lost_loses_no_other(
    dies: str, monkeypatch: pytest.MonkeyPatch, make_folder: MakeFolder, toy: SimpleNamespace
) -> None:
    device = Device(dies)
    report = run(monkeypatch, device, make_folder(), toy, "stock", "device", "reference")
    assert (report.status, device.closed) == ("incomplete", 0 if dies == "start" else 1)
    assert [target.status for target in report.targets] == ["ran", "failed", "ran"]
    assert report.targets[1].reason == f"the device was unplugged at {dies}"
    assert {item.engine for item in report.accuracy} >= {"stock"}
    assert any(item.engine == "reference" for item in report.parity)
    assert ("device" in {item.engine for item in report.accuracy}) == (dies in ("run 7", "time"))
    with pytest.raises(
        EnvironmentProblem, match=f"target device: the device was unplugged at {dies}"
    ) as caught:
        report.raise_for_gates()
    assert caught.value.exit_code == 4
    jsonschema.validate(json.loads(report.to_json()), json_schema())
    assert "A target did not run" in report.to_html()


@pytest.mark.parametrize("refuses", ["device-two", "fp32"])
def test_what_cannot_be_loaded_takes_nothing_else_with_it(
    refuses: str, monkeypatch: pytest.MonkeyPatch, make_folder: MakeFolder, toy: SimpleNamespace
) -> None:
    device = Device()
    device.refuses = refuses
    fp32 = make_folder("fp32", noise=0.1)
    report = run(monkeypatch, device, make_folder(), toy, "stock", "device", baseline=fp32, int8=False)
    timed = {cell.engine for cell in report.latency if cell.clock == "device"}
    assert timed == {"device", "device-two", "fp32-device"} - {refuses, f"{refuses}-device"}
    assert "device" in {item.engine for item in report.accuracy} and report.targets[1].measures
    if refuses == "fp32":
        assert report.status == "measured"
        assert "no FP32 baseline on target device: device cannot load model.onnx" in report.notes
    else:
        assert (report.status, report.targets[1].status) == ("incomplete", "failed")
        assert report.targets[1].reason == "device-two cannot load model.onnx"


@pytest.mark.parametrize("dies", ["run 2", "time"])
def test_ctrl_c_writes_what_was_finished(
    dies: str, monkeypatch: pytest.MonkeyPatch, make_folder: MakeFolder, toy: SimpleNamespace
) -> None:
    device = Device(dies)
    device.error = KeyboardInterrupt()
    fp32 = make_folder("fp32", noise=0.1)
    report = run(
        monkeypatch, device, make_folder(), toy, "stock", "device", "reference", baseline=fp32, int8=False,
        command="qexport verify onnx", mobile_check=True, max_latency_ms=9.0,
    )  # fmt: skip
    assert (report.status, device.closed, report.mobile) == ("interrupted", 1, None)
    states = [(one.status, one.exit_code) for one in report.targets]
    last = ("failed", 130) if dies == "run 2" else ("ran", 0)
    assert states == [("ran", 0), ("failed", 130), last]
    assert ("fp32" in {engine.name for engine in report.engines}) == (dies == "time")
    with pytest.raises(
        Interrupted, match=r"^interrupted; the report holds .*; run again: qexport verify onnx$"
    ):
        report.raise_for_gates()
    jsonschema.validate(json.loads(report.to_json()), json_schema())
    assert "Stopped by Ctrl-C" in report.to_html()
    device.dies, device.runs = "run 1", 0
    with pytest.raises(KeyboardInterrupt):  # nothing was finished
        run(monkeypatch, device, make_folder("again"), toy, "device", "stock")


def test_a_target_of_few_rows_can_take_the_place_of_the_first(
    monkeypatch: pytest.MonkeyPatch, make_folder: MakeFolder, toy: SimpleNamespace
) -> None:
    report = run(monkeypatch, Device("run 2"), make_folder(), toy, "device", "reference", latency=False)
    assert report.main_engine == "reference" and report.invariance is not None
    assert report.invariance.rows == 8


def test_the_next_target_is_judged_when_the_first_is_lost(
    monkeypatch: pytest.MonkeyPatch, make_folder: MakeFolder, toy: SimpleNamespace
) -> None:
    report = run(monkeypatch, Device("run 2"), make_folder(), toy, "device", "stock", max_size_mb=9.0)
    assert report.main_engine == report.engines[0].name == "stock"
    assert "device did not run, so the results are judged on stock" in report.notes
    assert [gate.status for gate in report.gates] == ["passed"] and report.status == "incomplete"
    with pytest.raises(EnvironmentProblem, match="unplugged at run 2"):
        run(monkeypatch, Device("run 2"), make_folder("again"), toy, "device")


def test_what_is_missing_fails_only_what_was_asked_for_by_name(
    monkeypatch: pytest.MonkeyPatch, make_folder: MakeFolder, toy: SimpleNamespace
) -> None:
    folder = make_folder()
    report = run(monkeypatch, Device(absent=True), folder, toy, "stock", "device", latency=False)
    assert [(one.target, one.status, one.fix) for one in report.targets][1] == (
        "device",
        "failed",
        "plug it in",
    )
    assert report.matrix[-1].engine == "device" and report.matrix[-1].rows == 0
    with pytest.raises(EnvironmentProblem, match="target device: no device; run: plug it in"):
        report.raise_for_gates()
    choice = choose_targets([ALL], folder / "model.onnx")
    left = {one.name: one.asked for one in choice.unusable}
    assert left["device"] is False and "stock" in {target.name for target in choice.targets}
