"""A sweep whose verify: block was changed after runs were done; the commands are stand-ins here."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from sweep_commands import Commands

from qexport.errors import Interrupted, SweepFailed
from qexport.sweep import work
from qexport.sweep.process import CommandFailed
from qexport.sweep.runner import SweepConfig, plan, sweep
from qexport.sweep.table import Table, read_rows

SWEEP = """
output: out
verify: {}
grids:
  - {methods: [ternarybert], tasks: [rte], bits: [2-2-8], seeds: [1, 2], max_steps: 2}
"""
CONFIG = SweepConfig(file=Path("sweep.yaml"))
TABLE = Path("out/results.jsonl")
NAMES = ("rte-fp32-s42", "rte-ternarybert-2-2-8-s1", "rte-ternarybert-2-2-8-s2")
ALL = [f"verify {name}" for name in NAMES]


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Commands:
    found = Commands.installed(monkeypatch, tmp_path)
    _verify("")
    return found


def _verify(options: str) -> None:
    Path("sweep.yaml").write_text(SWEEP.replace("{}", f"{{{options}}}"))


def _gate(status: str) -> dict[str, Any]:
    return {"name": "max_drop", "limit": 1.0, "value": "10 points", "status": status}


def _states() -> list[str]:
    return [each.state for each in plan(CONFIG)]


def test_gates_added_later_are_judged_by_verify_alone_and_loosened_ones_pass(commands: Commands) -> None:
    sweep(CONFIG)
    table = Table(TABLE)
    first = read_rows(TABLE)[1]
    table.put({**first, "latency": {"median_ms": {}}, "jobs": 7})
    before = len(commands.calls)
    _verify("max_drop: 1")
    commands.gates = [_gate("failed")]
    assert _states() == ["unverified"] * 3
    with pytest.raises(SweepFailed, match="3 missed a gate"):
        sweep(CONFIG)
    assert commands.calls[before:] == ALL
    with pytest.raises(SweepFailed, match="3 missed a gate"):
        sweep(CONFIG)
    assert commands.calls[before:] == ALL
    _verify("max_drop: 20")
    commands.gates = [_gate("passed")]
    assert sweep(CONFIG).done == 3
    assert commands.calls[before:] == ALL + ALL
    rows = read_rows(TABLE)
    assert all(row["verify"] == {"max_drop": 20.0} and "--max-drop 20" in row["commands"][2] for row in rows)
    assert (rows[1]["latency"], rows[1]["jobs"]) == ({"median_ms": {}}, 7)  # its file is the same one


def test_rows_without_the_field_are_those_of_the_default_options(commands: Commands) -> None:
    sweep(CONFIG)
    rows = [{name: row[name] for name in row if name != "verify"} for row in read_rows(TABLE)]
    TABLE.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert _states() == ["done"] * 3
    _verify("min_agreement: 99")
    assert _states() == ["unverified"] * 3


@pytest.mark.parametrize("gone", ["onnx", "model"])
def test_run_whose_files_are_gone_is_named_and_not_trained_again(commands: Commands, gone: str) -> None:
    sweep(CONFIG)
    before = len(commands.calls)
    (folder,) = Path("out").glob(f"{NAMES[1]}-*")
    shutil.rmtree(folder / gone)
    _verify("min_agreement: 99")
    assert _states() == ["unverified", "unjudged", "unverified"]
    for calls in ([ALL[0], ALL[2]], []):
        with pytest.raises(SweepFailed) as error:
            sweep(CONFIG)
        assert str(error.value) == (
            "1 cannot be verified again after verify: changed, since model, export or teacher is gone "
            "(rte ternarybert 2-2-8 seed 1), see out/results.jsonl; take verify: back, or remove the rows of "
            "what cannot be verified to train it again"
        )
        assert commands.calls[before:] == calls
        before = len(commands.calls)
    _verify("")
    assert sweep(CONFIG).done == 3


def test_students_cannot_be_verified_again_without_their_teacher(commands: Commands) -> None:
    sweep(CONFIG)
    (folder,) = Path("out").glob(f"{NAMES[0]}-*")
    shutil.rmtree(folder / "model")
    _verify("min_agreement: 99")
    assert _states() == ["unjudged"] * 3


def test_failed_second_verify_leaves_the_row_and_is_tried_again(commands: Commands) -> None:
    sweep(CONFIG)
    _verify("min_agreement: 99")
    commands.fail[ALL[1]] = CommandFailed("no memory", 4)
    with pytest.raises(SweepFailed, match="1 of 3 runs failed"):
        sweep(CONFIG)
    assert [row["status"] for row in read_rows(TABLE)] == ["done"] * 3
    assert _states() == ["done", "unverified", "done"]
    before = len(commands.calls)
    assert sweep(CONFIG).done == 3
    assert commands.calls[before:] == [ALL[1]]


def test_report_of_an_interrupted_call_counts_only_for_its_own_options(
    commands: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = work.done_row
    monkeypatch.setattr(work, "done_row", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):  # killed between the report and the row
        sweep(CONFIG)
    monkeypatch.setattr(work, "done_row", made)
    before = len(commands.calls)
    _verify("max_drop: 1")
    commands.interrupt[ALL[1]] = 1
    with pytest.raises(Interrupted, match="1 of 3 runs are done"):
        sweep(CONFIG)
    assert commands.calls[before] == ALL[0]


def test_teachers_stay_until_changed_options_have_judged_every_run(commands: Commands) -> None:
    sweep(CONFIG)
    _verify("max_drop: 1")
    sweep(SweepConfig(file=CONFIG.file, only=("method=fp32",), keep="onnx"))
    assert _states() == ["done", "unverified", "unverified"]
    sweep(SweepConfig(file=CONFIG.file, keep="onnx"))
    assert _states() == ["done"] * 3
    assert not list(Path("out").glob("*/model"))
