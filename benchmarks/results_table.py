"""Markdown tables of docs/results.md, read from finished runs and their verification reports.

    python benchmarks/results_table.py TEACHER_FOLDER STUDENT_ONNX_FOLDER [STUDENT_ONNX_FOLDER ...]

A student's ONNX folder holds report/report.json (by qexport verify) and qexport.json (by qexport to-onnx).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def read(path: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return values


def main_value(report: dict[str, Any], engine: str) -> str:
    for entry in report["accuracy"]:
        if entry["engine"] == engine:
            value = entry["metrics"][0]
            return f"{100 * value['value']:.2f} [{100 * value['low']:.2f}, {100 * value['high']:.2f}]"
    return "-"


def drop(report: dict[str, Any]) -> str:
    for entry in report["drops"]:
        if entry["engine"] == report["main_engine"] and entry["against"] == "teacher":
            return f"{entry['points']:.2f} [{entry['low']:.2f}, {entry['high']:.2f}]"
    return "-"


def parity(report: dict[str, Any], key: str) -> float:
    for entry in report["parity"]:
        if {entry["engine"], entry["against"]} == {report["main_engine"], "student"}:
            value: float = entry[key]
            return value
    return float("nan")


def row(*cells: object) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


def megabytes(value: int | None, digits: int = 0) -> str:
    return "-" if value is None else f"{value / 1e6:.{digits}f}"


def accuracy_table(teacher: Path, students: list[Path]) -> Iterator[str]:
    names = ("PyTorch", "ONNX, stock ONNX Runtime", "drop against the teacher, points")
    yield row("model", "W-E-A", "activation scale", "steps", *names, "same answer as PyTorch",
              "largest logit difference", "file, MB")  # fmt: skip
    yield row(*["---"] * 10)
    first = read(students[0] / "report" / "report.json")
    size = next((engine["file_bytes"] for engine in first["engines"] if engine["name"] == "fp32"), None)
    steps = read(teacher / "qexport_train.json")["steps"]
    scores = (main_value(first, name) for name in ("teacher", "fp32"))
    yield row("fp32 teacher", "32-32-32", "-", steps, *scores, "-", "-", "-", megabytes(size, 2))
    for folder in students:
        report = read(folder / "report" / "report.json")
        exported = read(folder / "qexport.json")
        steps = read(Path(exported["source"]["path"]) / "qexport_train.json")["steps"]
        scale = exported["quantization"]["activations"]
        model = report["model"]
        scores = (main_value(report, name) for name in ("student", report["main_engine"]))
        agreement, largest = parity(report, "agreement"), parity(report, "max_abs")
        yield row(model["method"], model["bits"], scale, steps, *scores, drop(report),
                  f"{100 * agreement:.2f} %", f"{largest:.1e}",
                  megabytes(model["file_bytes"], 2))  # fmt: skip


def latency_table(students: list[Path]) -> Iterator[str]:
    yield row("model", "engine", "tokens", "threads", "p50, ms", "p90", "p99", "times as fast as fp32 [95 %]")
    yield row(*["---"] * 8)
    for folder in students:
        report = read(folder / "report" / "report.json")
        for cell in report["latency"]:
            ratio = next((ratio for ratio in cell["ratios"] if ratio["against"] == "fp32"), None)
            times = f"{ratio['median']:.2f} [{ratio['low']:.2f}, {ratio['high']:.2f}]" if ratio else "-"
            quantiles = (f"{cell[name]:.2f}" for name in ("p50_ms", "p90_ms", "p99_ms"))
            yield row(
                report["model"]["method"], cell["engine"], cell["length"], cell["threads"], *quantiles, times
            )


def process_table(students: list[Path]) -> Iterator[str]:
    yield row(
        "model", "engine", "load, ms", "load, CPU ms", "first run, ms", "peak memory, MB", "of it the model"
    )
    yield row(*["---"] * 7)
    for folder in students:
        report = read(folder / "report" / "report.json")
        for process in report["processes"]:
            times = (f"{process[name]:.0f}" for name in ("load_ms", "load_cpu_ms", "first_run_ms"))
            memory = (megabytes(process[name]) for name in ("peak_bytes", "model_bytes"))
            yield row(report["model"]["method"], process["engine"], *times, *memory)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("teacher", type=Path)
    parser.add_argument("students", type=Path, nargs="+")
    options = parser.parse_args()
    for table in (accuracy_table(options.teacher, options.students), latency_table(options.students),
                  process_table(options.students)):  # fmt: skip
        print("\n".join(table) + "\n")


if __name__ == "__main__":
    main()
