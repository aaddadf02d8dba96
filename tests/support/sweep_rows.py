"""Rows of a table of results, made up."""

from __future__ import annotations

import hashlib
from typing import Any


def made_row(
    method: str, task: str, value: float, *, bits: str = "2-2-8", seed: int = 42, drop: float | None = None,
    metric: str = "accuracy", megabytes: float = 5.0, groups: tuple[str, ...] = ("results",),
    milliseconds: float | None = None, **options: Any,
) -> dict[str, Any]:  # fmt: skip
    """A finished row.

    Args:
        value: of the main metric, a fraction.
        drop: points; None for a model without a teacher.
        milliseconds: median at 128 tokens.
        options: of `train`.
    """
    text = f"{method} {task} {bits} {seed} {sorted(options.items())}"
    name = f"{task}-{method}-{bits}-s{seed}"
    found: dict[str, Any] = {"metric": metric, "points": drop, "method": "score interval (Tango 1998)"}
    if drop is not None:
        found.update(low=drop - 1, high=drop + 1)
    return {
        "format_version": 1, "key": hashlib.sha256(text.encode()).hexdigest()[:12], "status": "done",
        "name": name, "groups": list(groups), "task": task, "method": method, "bits": bits, "seed": seed,
        "options": options, "teacher": None if drop is None else "teacher",
        "commands": [f"qexport train -o $OUT/{name}/model", "qexport to-onnx", "qexport verify"],
        "created": "2026-01-01T00:00:00+00:00", "main_metric": metric,
        "metrics": {metric: {"value": value, "low": value - 0.03, "high": value + 0.03}},
        "pytorch": {metric: value}, "teacher_metrics": {},
        "drop": None if drop is None else found,
        "agreement": {"rows_equal": 99, "rows": 100, "largest_logit_difference": 0.1},
        "gates": [], "engine": "stock", "file_bytes": int(megabytes * 1e6), "sha256": "0" * 64,
        "data": {"source": "GLUE files; 9 training rows", "fingerprint": "f" * 64, "train_rows": 9,
                 "split": "validation", "rows": 100, "eval_source": "", "eval_fingerprint": ""},
        "steps": 10, "seconds": {"train": 60.0, "to-onnx": 5.0, "verify": 5.0}, "resumed": 0, "launcher": "",
        "machine": {"cpu": "a processor", "cores": 2, "threads": 1, "cuda": False},
        "versions": {"qexport": "0.1.0", "torch": "2.13.0", "python": "3.11.7"},
        **({} if milliseconds is None else {"latency": {"median_ms": {"128 tokens, stock": milliseconds}}}),
    }  # fmt: skip
