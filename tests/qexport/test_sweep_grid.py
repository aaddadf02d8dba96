"""What a sweep's YAML file asks for: order, teachers, options, keys, and what is refused where."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from qexport.errors import UsageError
from qexport.sweep.grid import Sweep, read_sweep
from qexport.sweep.run import Run, RunFolder, expanded, shell_line
from qexport.sweep.table import read_rows
from qexport.training.recipes import RECIPES
from qexport.training.recipes.base import Recipe

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def _read(tmp_path: Path, text: str) -> Sweep:
    path = tmp_path / "sweep.yaml"
    path.write_text(text)
    return read_sweep(path)


def _refused(tmp_path: Path, text: str) -> str:
    with pytest.raises(UsageError) as error:
        _read(tmp_path, text)
    return str(error.value)


GRID = """
defaults: {batch_size: 16, epochs: 3}
tasks:
  cola: {epochs: 5, methods: {kdlsq: {lr: 7e-4}}}
methods:
  kdlsq: {lr: 2e-4, dropout: 0}
grids:
  - {methods: [ternarybert, kdlsq], tasks: [MRPC, cola], bits: [2-2-8], seeds: [1, 2]}
runs:
  - {method: fp32, task: mrpc, seed: 43}
"""


def test_grid_runs_tasks_innermost_each_after_its_teacher(tmp_path: Path) -> None:
    titles = [run.title for run in _read(tmp_path, GRID).runs]
    assert titles == [
        "mrpc fp32 seed 42", "mrpc ternarybert 2-2-8 seed 1",
        "cola fp32 seed 42", "cola ternarybert 2-2-8 seed 1",
        "mrpc ternarybert 2-2-8 seed 2", "cola ternarybert 2-2-8 seed 2", "mrpc kdlsq 2-2-8 seed 1",
        "cola kdlsq 2-2-8 seed 1", "mrpc kdlsq 2-2-8 seed 2", "cola kdlsq 2-2-8 seed 2", "mrpc fp32 seed 43",
    ]  # fmt: skip


def test_options_come_from_the_nearest_place(tmp_path: Path) -> None:
    runs = {(run.task, run.method): run for run in _read(tmp_path, GRID).runs}
    assert runs["mrpc", "kdlsq"].options == {"batch_size": 16, "epochs": 3.0, "lr": 2e-4, "dropout": 0.0}
    assert runs["cola", "kdlsq"].options == {"batch_size": 16, "epochs": 5.0, "lr": 7e-4, "dropout": 0.0}
    teacher = runs["cola", "kdlsq"].teacher
    assert isinstance(teacher, Run)
    assert teacher.key == runs["cola", "fp32"].key
    assert "lr" not in teacher.options


def test_key_tells_what_comes_out_and_not_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLUE", "/one")

    def key(options: str, run: str = "") -> str:
        text = f"defaults: {{{options}}}\nruns: [{{method: ternarybert, task: mrpc{run}}}]"
        return _read(tmp_path, text).runs[-1].key

    plain = key("lr: 1e-4")
    assert key("lr: 0.0001, threads: 2, data_dir: $GLUE, eval_batch_size: 8") == plain
    others = {
        key("lr: 2e-4"),
        key("lr: 1e-4", ", seed: 1"),
        key("lr: 1e-4", ", bits: 2-2-8, teacher_seed: 1"),
    }
    assert len(others | {plain}) == 4
    assert key("lr: 1e-4", ", bits: 2-2-8, seed: 42") == plain


@pytest.mark.parametrize(
    ("run", "key"),
    [
        ("method: ternarybert, task: mrpc, bits: 2-2-8", "f7793370bf29"),
        ("method: binarybert, task: mrpc, bits: 1-1-8", "40ed42f66c14"),
        ("method: ternarybert, task: mrpc, bits: 2-2-8, as_published: true", "e70fe86e714d"),
    ],
)
def test_key_stays_from_version_to_version(tmp_path: Path, run: str, key: str) -> None:
    assert _read(tmp_path, f"runs: [{{{run}}}]").runs[-1].key == key


def test_key_is_a_new_one_where_as_published_means_another_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def keys(recipe: Recipe) -> list[str]:
        monkeypatch.setitem(RECIPES, "binarybert", recipe)
        start = "method: binarybert, task: mrpc"
        text = f"runs: [{{{start}}}, {{{start}, as_published: false}}, {{{start}, as_published: true}}]"
        return [run.key for run in _read(tmp_path, text).runs[1:]]

    now = RECIPES["binarybert"]
    assert now.published_revision == 2
    new, old = keys(now), keys(dataclasses.replace(now, published_revision=1))
    assert new[:2] == old[:2]
    assert old[2] == "21f08c84fd17" != new[2]


def test_keys_of_the_rows_of_the_repository_follow_from_their_settings() -> None:
    rows = read_rows(BENCHMARKS / "results.jsonl")
    assert len(rows) >= 10
    for row in rows:
        settings = {name: row[name] for name in ("method", "task", "bits", "seed", "options", "teacher")}
        named = f"-{row['bits']}-" in row["name"]  # bits are named where the grid asks for them
        assert named or row["bits"] == "32-32-32"
        run = Run(**settings, groups=(), quantised=named, registered=True)
        assert (run.key, run.name) == (row["key"], row["name"])


def test_list_in_a_grid_is_a_further_axis(tmp_path: Path) -> None:
    found = _read(tmp_path, "grids: [{name: rates, methods: fp32, tasks: rte, lr: [null, 2e-4], epochs: 1}]")
    assert [run.options for run in found.runs] == [{"epochs": 1.0}, {"epochs": 1.0, "lr": 2e-4}]
    assert [run.title for run in found.runs] == ["rte fp32 seed 42 lr=default", "rte fp32 seed 42 lr=2e-4"]
    assert found.runs[0].groups == ("rates",)


def test_same_run_in_two_grids_is_one_run_of_both(tmp_path: Path) -> None:
    text = "grids:\n- {methods: fp32, tasks: rte}\n- {name: other, methods: fp32, tasks: [rte, mrpc]}"
    assert [run.groups for run in _read(tmp_path, text).runs] == [("results", "other"), ("other",)]


def test_teacher_is_a_method_of_the_sweep_a_folder_or_none(tmp_path: Path) -> None:
    def runs(teacher: str) -> tuple[Run, ...]:
        return _read(tmp_path, f"runs: [{{method: q8bert, task: rte, teacher: {teacher}}}]").runs

    assert [run.method for run in runs("fp32")] == ["fp32", "q8bert"]
    assert [run.teacher for run in runs("some/folder")] == ["some/folder"]
    assert [run.teacher for run in runs("none")] == [None]


def test_commands_repeat_the_run_with_variables_in_place_of_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GLUE", "/some where")
    text = (
        "defaults: {data_dir: $GLUE, threads: 1}\nruns: [{method: kdlsq, task: rte, bits: 4-4-8, lr: 5e-4}]"
    )
    teacher, run = _read(tmp_path, text).runs
    folder = RunFolder(run, Path("$OUT"), {"min_agreement": 99.9})
    assert shell_line(folder.train_words()) == (
        f"qexport train --method kdlsq --task rte --bits 4-4-8 --seed 42 --teacher $OUT/{teacher.name}/model "
        f"--data-dir $GLUE --lr 0.0005 --threads 1 --output $OUT/{run.name}/model"
    )
    assert shell_line(folder.verify_words()) == (
        f"qexport verify $OUT/{run.name}/onnx --task rte --student $OUT/{run.name}/model "
        f"--teacher $OUT/{teacher.name}/model --baseline none --report $OUT/{run.name}/report "
        "--targets stock --no-latency --threads 1 --data-dir $GLUE --min-agreement 99.9"
    )
    assert "/some where" in expanded(folder.train_words())


@pytest.mark.parametrize(("name", "registered"), [("mine", False), ("rte", True)])
def test_own_files_are_given_with_the_task_only_where_it_is_registered(
    name: str, registered: bool, tmp_path: Path
) -> None:
    text = (
        f"tasks: {{{name}: {{train_file: a.csv, eval_file: b.csv}}}}\nruns: [{{method: fp32, task: {name}}}]"
    )
    words = RunFolder(_read(tmp_path, text).runs[0], tmp_path, {}).train_words()
    assert ("--task" in words) == registered
    assert words[words.index("--data") + 1] == "a.csv"


ONE = "runs: [{method: fp32, task: rte}]"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("runs:\n- {method: kdlsq, task: rte,\n   epoch: 3}",
         "line 3: unknown key 'epoch' in a run; did you mean 'epochs'?"),
        ("runs:\n- {method: kdlqs, task: rte}", "line 2: unknown method 'kdlqs'; did you mean 'kdlsq'?"),
        ("runs:\n- {method: kdlsq, task: rtee}", "line 2: unknown task 'rtee'; did you mean 'rte'?"),
        ("\ngrid: []", "line 2: unknown key 'grid' in a sweep; did you mean 'grids'?"),
        ("defaults: {lr: fast}\n" + ONE, "line 1: lr must be a number, got 'fast'"),
        ("runs:\n- {method: fp32, task: rte, max_steps: 1.5}", "line 2: max_steps must be a whole number"),
        ("runs:\n- {method: fp32, task: rte, seed: a}", "line 2: a seed must be a whole number, got 'a'"),
        ("runs:\n- {method: fp32, task: rte}\n- {method: binarybert, task: rte, bits: 4-4-8}",
         "line 3: rte binarybert 4-4-8"),
        ("runs:\n- {method: fp32, task: rte, lr: [1, 2]}", "line 2: lr must be one value here, got a list"),
        ("runs:\n- {method: fp32, task: rte, lr: -1}",
         "line 2: rte fp32 seed 42: --lr must be greater than 0"),
        ("defaults: {data_dir: $NO_SUCH_FOLDER}\n" + ONE, "line 1: $NO_SUCH_FOLDER is not set"),
        (ONE + "\nruns: []", "line 2: 'runs' is given twice"),
        ("keep: models\n" + ONE, "line 1: keep must be one of all, onnx, reports"),
        ("verify: {latencies: 3}\n" + ONE,
         "line 1: unknown key 'latencies' in verify; did you mean 'latency'?"),
        ("runs: [", "line 1 is not valid YAML"),
        ("defaults: {}", "there is nothing to run; write grids: or runs:"),
        ("grids:\n- {methods: fp32, tasks: rte,\n   data_dir: [a, b]}",
         "line 3: data_dir does not change what comes out, so a list of it"),
        ("grids: [{methods: fp32, tasks: rte, threads: [1, 2]}]", "line 1: threads does not change"),
        ("grids: [{methods: fp32}]", "line 1: a grid needs tasks: a list of names"),
    ],
)  # fmt: skip
def test_mistake_is_refused_with_its_line(text: str, sentence: str, tmp_path: Path) -> None:
    message = _refused(tmp_path, text)
    assert "sweep.yaml" in message
    assert sentence in message


def test_grid_of_the_repository_is_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLUE", "glue")
    monkeypatch.setenv("SQUAD", "squad")
    found = read_sweep(BENCHMARKS / "results.yaml")
    assert {"fp32", "ternarybert", "kdlsq"} <= {run.method for run in found.runs}
    root = BENCHMARKS.parent
    for page, times in (("docs/results.md", 2), ("README.md", 1)):
        said = re.findall(r"(?:holds|[Oo]f the) (\d+) runs", (root / page).read_text(encoding="utf-8"))
        assert said == [str(len(found.runs))] * times, page
