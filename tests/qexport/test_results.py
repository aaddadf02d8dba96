"""Tables of sweeps joined: means, spreads, variants, the papers' numbers, the page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from sweep_rows import made_row

from qexport.cli import main
from qexport.errors import DataError
from qexport.results.joined import join
from qexport.results.papers import _content, paper_drop
from qexport.results.plots import Point, front
from qexport.training.recipes import RECIPES
from qexport.training.tasks import TASKS


def _table(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_seeds_are_averaged_and_one_seed_keeps_its_interval(tmp_path: Path) -> None:
    rows = [made_row("kdlsq", "rte", value, seed=seed, drop=drop)
            for seed, value, drop in ((1, 0.60, 1.0), (2, 0.64, 3.0))]  # fmt: skip
    [group] = join([_table(tmp_path / "t", *rows, made_row("lsq", "rte", 0.5, drop=0.0))]).groups
    kdlsq, lsq = (group.cells[variant, "rte"] for variant in group.variants)
    assert kdlsq.value.mean == pytest.approx(62.0)
    assert kdlsq.value.spread == pytest.approx(2.8284, abs=1e-4)  # |64 - 60| / sqrt(2)
    assert kdlsq.drop is not None and kdlsq.drop.mean == pytest.approx(2.0)
    assert (lsq.value.low, lsq.value.high) == (pytest.approx(47.0), pytest.approx(53.0))
    assert (kdlsq.rows_equal, kdlsq.rows_compared) == (198, 200)


def test_average_is_over_the_tasks_of_whole_seeds(tmp_path: Path) -> None:
    rows = [made_row("kdlsq", task, value, seed=seed, drop=drop) for task, seed, value, drop in (
        ("rte", 1, 0.6, 1.0), ("mrpc", 1, 0.8, 3.0), ("rte", 2, 0.7, 1.0), ("mrpc", 2, 0.8, 1.0),
        ("rte", 3, 0.1, 9.0))]  # fmt: skip
    [group] = join([_table(tmp_path / "t", *rows, made_row("lsq", "rte", 0.5, drop=0.0))]).groups
    kdlsq, lsq = group.averages()
    assert kdlsq.value.mean == pytest.approx(72.5)  # means of the seeds: 70 and 75
    assert kdlsq.value.spread == pytest.approx(3.5355, abs=1e-4)
    assert kdlsq.drop is not None and kdlsq.drop.mean == pytest.approx(1.5)
    assert lsq.tasks == ("rte",)


def test_option_that_a_grid_varies_makes_variants_and_one_that_a_task_needs_does_not(tmp_path: Path) -> None:
    rows = [made_row("kdlsq", task, 0.6, lr=lr, epochs=epochs)
            for task, lr, epochs in (("rte", 1e-4, 3), ("rte", 2e-4, 3), ("cola", 2e-4, 9))]  # fmt: skip
    [group] = join([_table(tmp_path / "t", *rows)]).groups
    assert [one.label for one in group.variants] == ["kdlsq 2-2-8, lr 0.0001", "kdlsq 2-2-8, lr 0.0002"]
    assert len(group.averages()[1].tasks) == 2


def test_settings_that_differ_from_seed_to_seed_are_not_averaged(tmp_path: Path) -> None:
    rows = [
        made_row("kdlsq", "rte", 0.6, seed=seed, lr=lr, drop=1.0) for seed, lr in ((43, 1e-4), (44, 5e-4))
    ]
    [group] = join([_table(tmp_path / "t", *rows)]).groups
    assert [one.label for one in group.variants] == ["kdlsq 2-2-8, lr 0.0001", "kdlsq 2-2-8, lr 0.0005"]
    assert all(cell.value.spread is None for cell in group.cells.values())


def test_teacher_may_follow_the_seed_and_makes_variants_within_one(tmp_path: Path) -> None:
    rows = [{**made_row("kdlsq", "rte", 0.6, seed=seed, drop=1.0), "teacher": f"teacher {seed}"}
            for seed in (43, 44)]  # fmt: skip
    [group] = join([_table(tmp_path / "t", *rows)]).groups
    assert [one.label for one in group.variants] == ["kdlsq 2-2-8"]
    other = {**rows[0], "key": "0" * 12, "teacher": "a folder"}
    [group] = join([_table(tmp_path / "t", *rows, other)]).groups
    assert len(group.variants) == 3


def test_later_groups_leave_out_tasks_of_which_only_the_teacher_is_there(tmp_path: Path) -> None:
    both = ("results", "rates")
    rows = [made_row("fp32", task, 0.6, bits="32-32-32", groups=both) for task in ("rte", "cola")]
    table = _table(tmp_path / "t", *rows, made_row("lsq", "cola", 0.5, drop=1.0, groups=("rates",)))
    assert [(group.name, group.tasks) for group in join([table]).groups] == [
        ("results", ("rte", "cola")),
        ("rates", ("cola",)),
    ]


def test_drop_against_a_teacher_that_was_trained_anew_is_said(tmp_path: Path) -> None:
    teacher = made_row("fp32", "rte", 0.62, bits="32-32-32")
    rows = [
        {**made_row("kdlsq", "rte", 0.60, seed=seed, drop=1.0), "teacher": teacher["key"],
         "teacher_metrics": {"accuracy": then}}
        for seed, then in ((1, 0.62), (2, 0.59))
    ]  # fmt: skip
    joined = join([_table(tmp_path / "t", teacher, *rows)])
    data, *others = joined.facts(joined.groups[0], "rte")
    assert data.startswith("validation, 100 rows")
    assert others == [
        "kdlsq 2-2-8, seed 2, learned from a teacher that has been trained anew since: its drop is against "
        "59.00, the table's teacher has 62.00"
    ]


def test_newest_finished_row_counts_where_tables_share_a_run(tmp_path: Path) -> None:
    old, new = (made_row("kdlsq", "rte", value) for value in (0.5, 0.6))
    new["created"] = "2026-02-01T00:00:00+00:00"
    failed = {**made_row("kdlsq", "rte", 0.7), "status": "failed", "created": "2026-03-01", "stage": "train",
              "error": "no space"}  # fmt: skip
    joined = join([_table(tmp_path / "a", new, failed), _table(tmp_path / "b", old)])
    assert [row["metrics"]["accuracy"]["value"] for row in joined.rows] == [0.6]
    assert joined.failed == ()


def test_table_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t").write_text('{"a": 1}\n')
    with pytest.raises(DataError, match="line 1 is not a row of a sweep"):
        join([tmp_path / "t"])
    (tmp_path / "t").write_text("\n{\n")
    with pytest.raises(DataError, match="line 2 is not JSON"):
        join([tmp_path / "t"])


def test_paper_drop_is_that_of_the_printed_table() -> None:
    kdlsq = paper_drop("kdlsq", "2-2-8", "rte")
    assert kdlsq is not None
    assert kdlsq.points == pytest.approx(71.119 - 67.509)
    assert "arXiv 2101.05938; Table 2" in kdlsq.source and kdlsq.backbone == "BERT-base"
    ternary = paper_drop("ternarybert", "2-2-8", "cola")
    assert ternary is not None and "without augmentation" in ternary.source
    assert paper_drop("ghostbert", "32-32-32", "rte") is None


def test_papers_name_known_methods_tasks_and_sources() -> None:
    content = _content()
    for entry in content["entries"]:
        assert entry["method"] in {*RECIPES, "tinybert"}
        assert entry["source"] in content["sources"] and entry["table"]
        for task, cell in entry["cells"].items():
            assert task in {*TASKS, "squad", "squad_v2"}
            assert all(0 <= cell[side] <= 100 for side in ("teacher", "student"))


def test_front_has_what_nothing_cheaper_equals() -> None:
    points = [Point("a", "", 5, 80), Point("b", "", 5, 81), Point("c", "", 9, 81), Point("d", "", 20, 82)]
    assert [point.label for point in front(points)] == ["b", "d"]


def test_report_writes_a_page_with_plots_and_the_same_tables_in_markdown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = []
    for task, metric in (("rte", "accuracy"), ("cola", "matthews")):
        rows.append(
            made_row("fp32", task, 0.66, bits="32-32-32", metric=metric, megabytes=90.9, milliseconds=60)
        )
        rows.append(made_row("kdlsq", task, 0.65, drop=1.0, metric=metric, milliseconds=45))
    failed = {**made_row("lsq", "rte", 0.0), "status": "failed", "stage": "train", "error": "no <space>"}
    _table(tmp_path / "t.jsonl", *rows, failed)
    assert main(["report", "t.jsonl", "-o", "out", "--title", "Mine"]) == 0
    page = (tmp_path / "out" / "report.html").read_text()
    text = (tmp_path / "out" / "report.md").read_text()
    assert page.count("<svg") == 6  # size and latency: average, two tasks
    assert "no &lt;space&gt;" in page and "://" not in page
    line = "| kdlsq 2-2-8 | 42 | 10 | 65.00 [62.00, 68.00] | 1.00 [0.00, 2.00] | 3.61 [1] | 99 of 100 |"
    assert f"{line} 1.0e-01 | 5.00 | 45.00 |" in text
    assert "qexport report t.jsonl -o out" in text and "in train: no <space>" in text
