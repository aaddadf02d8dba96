"""Row: what is kept of one run, read from the folders that its three commands wrote."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from qexport.sweep.run import Run, RunFolder, shell_line
from qexport.sweep.table import FORMAT, Row

__all__ = ["done_row", "failed_row", "judged"]

OUT = "$OUT"
"""Stands for the sweep's output folder in the commands of a row."""


def _base(folder: RunFolder, status: str) -> dict[str, Any]:
    run = folder.run
    public = RunFolder(run, Path(OUT), folder.verify)
    teacher = run.teacher.key if isinstance(run.teacher, Run) else run.teacher
    return {
        "format_version": FORMAT,
        "key": run.key,
        "status": status,
        "name": run.name,
        "groups": list(run.groups),
        "task": run.task,
        "method": run.method,
        "bits": run.bits,
        "seed": run.seed,
        "options": dict(run.options),
        "teacher": teacher,
        "commands": [
            shell_line(words)
            for words in (public.train_words(), public.export_words(), public.verify_words())
        ],
        "verify": dict(folder.verify),
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def judged(row: Row, verify: Mapping[str, Any]) -> bool:
    """Whether the row is of these options of `verify:`; one without the field is of the default ones."""
    return dict(row.get("verify", {})) == dict(verify)


def failed_row(folder: RunFolder, stage: str, sentence: str) -> dict[str, Any]:
    """The row of a run that did not end well.

    Args:
        folder: of the run.
        stage: "train", "to-onnx" or "verify".
        sentence: what went wrong; the output folder in it becomes $OUT.
    """
    root = str(folder.root)
    text = sentence if root == "." else sentence.replace(root, OUT)
    return {**_base(folder, "failed"), "stage": stage, "error": text}


def done_row(
    folder: RunFolder, *, seconds: Mapping[str, float], resumed: int, launcher: str, jobs: int
) -> dict[str, Any]:
    """The row of a finished run.

    Args:
        folder: of the run, with model, onnx and report in it.
        seconds: wall clock of each command, all attempts together.
        resumed: how often the training went on from a checkpoint.
        launcher: words that started the training, empty for one process.
        jobs: runs at a time, which `seconds` depend on.
    """
    train = _read(folder.model / "qexport_train.json")
    report = _read(folder.report / "report.json")
    data, main = report["data"][0], report["main_engine"]
    scores = {
        entry["engine"]: {value["metric"]: value for value in entry["metrics"]}
        for entry in report["accuracy"]
        if entry["split"] == data["split"]
    }

    def about(entries: list[dict[str, Any]], against: str) -> dict[str, Any]:
        """The first entry of the main engine against another one."""
        found = [entry for entry in entries if (entry["engine"], entry["against"]) == (main, against)]
        return found[0] if found else {}

    metric = data["main_metric"]
    same, drop = about(report["parity"], "student"), about(report["drops"], "teacher")
    return {
        **_base(folder, "done"),
        "main_metric": metric,
        "metrics": {
            name: {"value": value["value"], "low": value["low"], "high": value["high"]}
            for name, value in scores[main].items()
        },
        "pytorch": {name: value["value"] for name, value in scores.get("student", {}).items()},
        "teacher_metrics": {name: value["value"] for name, value in scores.get("teacher", {}).items()},
        "drop": {name: drop[name] for name in ("metric", "points", "low", "high", "method")}
        if drop
        else None,
        "agreement": {
            "rows_equal": same["rows"] - same["disagreements"],
            "rows": same["rows"],
            "largest_logit_difference": same["max_abs"],
        }
        if same
        else None,
        "gates": [
            {name: gate[name] for name in ("name", "limit", "value", "status")} for gate in report["gates"]
        ],
        "engine": main,
        "file_bytes": report["model"]["file_bytes"],
        "sha256": report["model"]["sha256"],
        "data": {
            "source": _source(train),
            "fingerprint": train["data"]["fingerprint"],
            "train_rows": train["data"]["train_rows"],
            "split": data["split"],
            "rows": data["rows"],
            "eval_source": data["source"],
            "eval_fingerprint": data["fingerprint"],
        },
        "steps": _steps(train),
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
        "resumed": resumed,
        "launcher": launcher,
        "jobs": jobs,
        "machine": {
            **train.get("machine", {}),
            **{
                name: report["environment"][name]
                for name in ("cpu", "architecture", "flags", "cores", "system")
            },
        },
        "versions": {**report["environment"]["versions"], "python": report["environment"]["python"]},
    }


def _source(train: Mapping[str, Any]) -> str:
    """Where the rows came from, and how many of them were used."""
    arguments, data = train.get("arguments", {}), train["data"]
    text = f"{data['source']}; {data['train_rows']} training rows"
    if arguments.get("train_samples"):
        text += f", at most {arguments['train_samples']} drawn with seed {train['seed']}"
    if data.get("augmentation"):
        parts = ", ".join(f"{name} {value}" for name, value in data["augmentation"].items())
        text += f", augmented: {parts}"
    if arguments.get("eval_samples"):
        text += f"; at most {arguments['eval_samples']} evaluation rows drawn with seed {train['seed']}"
    return text


def _steps(train: Mapping[str, Any]) -> int:
    """Optimiser steps, of all stages together."""
    stages = train.get("stages")
    return sum(int(stage["steps"]) for stage in stages) if stages else int(train["steps"])


def _read(path: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return values
