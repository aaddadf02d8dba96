"""Joined: rows of one or more tables by group, task and variant, with means and spreads over seeds."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qexport.errors import DataError
from qexport.results.papers import PaperDrop, paper_drop
from qexport.sweep.run import WITHOUT_EFFECT
from qexport.sweep.table import Row, read_rows

__all__ = ["Average", "Cell", "Group", "Joined", "Number", "Variant", "join"]

_SAME_TEACHER = 1e-4
"""A metric of one model differs by less between two evaluations."""


@dataclass(frozen=True, slots=True)
class Number:
    """A mean over seeds; with one seed its 95 % interval on the rows, where there is one."""

    mean: float
    spread: float | None
    """Standard deviation over the seeds (n - 1); None for one seed."""
    low: float | None
    high: float | None

    @classmethod
    def of(cls, values: Sequence[float], interval: tuple[float, float] | None = None) -> Number:
        """The mean of `values`; `interval` counts for a single one."""
        if len(values) > 1:
            return cls(statistics.mean(values), statistics.stdev(values), None, None)
        low, high = interval or (None, None)
        return cls(values[0], None, low, high)


@dataclass(frozen=True, slots=True)
class Variant:
    """A method at some bits, with the options that tell it from another such variant of its group."""

    method: str
    bits: str
    options: tuple[str, ...]

    @property
    def label(self) -> str:
        """For people: "kdlsq 2-2-8, lr 0.0005"."""
        name = self.method if self.bits == "32-32-32" else f"{self.method} {self.bits}"
        return ", ".join([name, *self.options])


@dataclass(frozen=True, slots=True)
class Cell:
    """One variant on one task, over its seeds."""

    rows: tuple[Row, ...]
    metric: str
    value: Number
    """Percent."""
    drop: Number | None
    """Points lost against the teacher on the same rows; above 0 is worse."""
    paper: PaperDrop | None
    rows_equal: int
    """Evaluation rows on which the file answers as the PyTorch student, all seeds together."""
    rows_compared: int
    largest_difference: float | None
    file_bytes: int
    """The largest of the seeds' files."""
    latency: Mapping[str, float]
    """"128 tokens, stock" and so on -> median milliseconds, where the rows have them."""

    @property
    def steps(self) -> str:
        """Optimiser steps, a range where seeds differ."""
        found = sorted({int(row["steps"]) for row in self.rows})
        return f"{found[0]}" if len(found) == 1 else f"{found[0]}-{found[-1]}"


@dataclass(frozen=True, slots=True)
class Average:
    """One variant over the tasks of its group."""

    variant: Variant
    tasks: tuple[str, ...]
    """Those that it has rows of; only full ones compare with each other."""
    value: Number
    """Mean of the main metrics, percent; the spread is that of the means of single seeds."""
    drop: Number | None
    paper: float | None
    """Mean of the papers' drops, where there is one for every task."""
    file_bytes: int
    latency: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Group:
    """The rows of one grid name."""

    name: str
    tasks: tuple[str, ...]
    variants: tuple[Variant, ...]
    cells: Mapping[tuple[Variant, str], Cell]

    def averages(self) -> list[Average]:
        """Every variant over the tasks that it has."""
        return [self._average(variant) for variant in self.variants]

    def _average(self, variant: Variant) -> Average:
        cells = {task: self.cells[variant, task] for task in self.tasks if (variant, task) in self.cells}
        by_seed: dict[int, dict[str, Row]] = {}
        for task, cell in cells.items():
            for row in cell.rows:
                by_seed.setdefault(row["seed"], {})[task] = row
        whole = [rows for rows in by_seed.values() if len(rows) == len(cells)]
        values = [statistics.mean(_percent(row) for row in rows.values()) for rows in whole]
        drops = [
            statistics.mean(row["drop"]["points"] for row in rows.values())
            for rows in whole
            if all(row["drop"] for row in rows.values())
        ]
        papers = [cell.paper.points for cell in cells.values() if cell.paper is not None]
        lengths = set.intersection(*(set(cell.latency) for cell in cells.values()))
        return Average(
            variant=variant,
            tasks=tuple(cells),
            value=Number.of(values or [statistics.mean(cell.value.mean for cell in cells.values())]),
            drop=Number.of(drops) if drops else None,
            paper=statistics.mean(papers) if papers and len(papers) == len(cells) else None,
            file_bytes=max(cell.file_bytes for cell in cells.values()),
            latency={
                length: statistics.mean(cell.latency[length] for cell in cells.values()) for length in lengths
            },
        )


@dataclass(frozen=True, slots=True)
class Joined:
    """Everything that a page shows."""

    groups: tuple[Group, ...]
    failed: tuple[Row, ...]
    rows: tuple[Row, ...]
    """Finished rows, each run once."""

    def metric(self, task: str) -> str:
        """Main metric of a task."""
        return next(str(row["main_metric"]) for row in self.rows if row["task"] == task)

    def facts(self, group: Group, task: str) -> list[str]:
        """What a task's table needs said: the data, one line for each that differs, and other teachers."""
        lines, others = [], []
        for row in (row for (_, name), cell in group.cells.items() if name == task for row in cell.rows):
            data = row["data"]
            lines.append(
                f"{data['split']}, {data['rows']} rows; {data['source']}; fingerprint "
                f"{data['fingerprint'][:12]}"
            )
            others += self._other_teacher(row)
        return [*dict.fromkeys(lines), *others]

    def _other_teacher(self, row: Row) -> list[str]:
        """Says so where a row learned from another teacher than the one whose row is shown now."""
        metric = row["main_metric"]
        then = row["teacher_metrics"].get(metric)
        shown = next((one["pytorch"][metric] for one in self.rows if one["key"] == row["teacher"]), None)
        if then is None or shown is None or abs(then - shown) < _SAME_TEACHER:
            return []
        label = Variant(row["method"], row["bits"], ()).label
        return [
            f"{label}, seed {row['seed']}, learned from a teacher that has been trained anew since: its drop "
            f"is against {100 * then:.2f}, the table's teacher has {100 * shown:.2f}"
        ]

    def machines(self) -> list[str]:
        """Machines and versions, one line for each that differs."""
        lines = []
        for row in self.rows:
            machine, versions = row["machine"], row["versions"]
            count = machine.get("threads", "?")
            device = machine.get("gpu") or f"{count} CPU thread{'s' * (count != 1)}"
            device += f" in {machine['processes']} processes" if machine.get("processes", 1) > 1 else ""
            shown = ("qexport", "torch", "transformers", "onnxruntime", "python")
            packages = ", ".join(f"{name} {versions[name]}" for name in shown if name in versions)
            lines.append(f"{machine['cpu']}, {machine['cores']} cores, trained on {device}; {packages}")
        return list(dict.fromkeys(lines))


def join(tables: Sequence[Path]) -> Joined:
    """Read tables and join them; of a run in several the newest finished row counts.

    Raises:
        DataError: a file that is no table, or no rows at all.
    """
    newest: dict[str, dict[str, Any]] = {}
    for table in tables:
        for row in read_rows(table):
            old = newest.get(row["key"])
            if old is None or _rank(row) >= _rank(old):
                newest[row["key"]] = row
    if not newest:
        raise DataError(f"{', '.join(map(str, tables))}: no rows yet; run qexport sweep first")
    done = [row for row in newest.values() if row["status"] == "done"]
    names = list(dict.fromkeys(name for row in done for name in row["groups"]))
    parts = [(name, _of_group(name, done, first=name == names[0])) for name in names]
    groups = tuple(_group(name, rows) for name, rows in parts if rows)
    failed = tuple(row for row in newest.values() if row["status"] != "done")
    return Joined(groups, failed, tuple(done))


def _of_group(name: str, done: Sequence[Row], *, first: bool) -> list[Row]:
    """Rows of a group; in all but the first a task whose teacher alone is there tells nothing new."""
    rows = [row for row in done if name in row["groups"]]
    taught = {row["task"] for row in rows if row["teacher"] is not None}
    return [row for row in rows if first or row["task"] in taught or len(row["groups"]) == 1]


def _rank(row: Row) -> tuple[bool, str]:
    return row["status"] == "done", row["created"]


def _group(name: str, rows: Sequence[Row]) -> Group:
    varying = {key: _varying(key, rows) for key in {(row["method"], row["bits"]) for row in rows}}
    sorted_rows: dict[tuple[Variant, str], list[Row]] = {}
    for row in rows:
        names = varying[row["method"], row["bits"]]
        options = tuple(f"{option} {_settings(row).get(option, 'default')}" for option in names)
        variant = Variant(row["method"], row["bits"], options)
        sorted_rows.setdefault((variant, row["task"]), []).append(row)
    return Group(
        name=name,
        tasks=tuple(dict.fromkeys(row["task"] for row in rows)),
        variants=tuple(dict.fromkeys(variant for variant, _ in sorted_rows)),
        cells={(variant, task): _cell(found) for (variant, task), found in sorted_rows.items()},
    )


def _settings(row: Row) -> dict[str, Any]:
    return {**row["options"], "teacher": row["teacher"]}


def _varying(key: tuple[str, str], rows: Sequence[Row]) -> list[str]:
    """Options that have two values on one task: what a grid varied, not what a task needs.

    A teacher counts only where one seed has two of them, since it may be one for each seed.
    """
    same = [row for row in rows if (row["method"], row["bits"]) == key]
    names = sorted({name for row in same for name in _settings(row)} - WITHOUT_EFFECT)
    found = []
    for name in names:
        seen: dict[tuple[str, int | None], set[Any]] = {}
        for row in same:
            seed = row["seed"] if name == "teacher" else None
            seen.setdefault((row["task"], seed), set()).add(_settings(row).get(name))
        if any(len(values) > 1 for values in seen.values()):
            found.append(name)
    return found


def _percent(row: Row) -> float:
    return 100.0 * float(row["metrics"][row["main_metric"]]["value"])


def _cell(rows: Sequence[Row]) -> Cell:
    first = rows[0]
    main = first["metrics"][first["main_metric"]]
    interval = (100 * main["low"], 100 * main["high"]) if main["low"] is not None else None
    drops = [row["drop"] for row in rows if row["drop"]]
    compared = [row["agreement"] for row in rows if row["agreement"]]
    latencies = [row["latency"]["median_ms"] for row in rows if row.get("latency")]
    return Cell(
        rows=tuple(rows),
        metric=first["main_metric"],
        value=Number.of([_percent(row) for row in rows], interval),
        drop=Number.of([drop["points"] for drop in drops], (drops[0]["low"], drops[0]["high"]))
        if drops
        else None,
        paper=paper_drop(first["method"], first["bits"], first["task"]),
        rows_equal=sum(one["rows_equal"] for one in compared),
        rows_compared=sum(one["rows"] for one in compared),
        largest_difference=max((one["largest_logit_difference"] for one in compared), default=None),
        file_bytes=max(int(row["file_bytes"]) for row in rows),
        latency={
            length: statistics.mean(one[length] for one in latencies)
            for length in (set.intersection(*map(set, latencies)) if latencies else ())
        },
    )
