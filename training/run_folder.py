"""The output folder of a run: what may be there before, what is resumed, what is written at the end."""

from __future__ import annotations

import json
import os
import platform
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import Trainer

import qexport
from qexport.atomic import atomic_write_text, disk_errors
from qexport.digests import weights_sha256
from qexport.errors import OutputExistsError, UsageError
from qexport.serving.machine import environment
from qexport.training.config import TrainConfig
from qexport.training.data import TOKENIZER_FILES, TaskData
from qexport.training.quant_config import QuantConfig
from qexport.training.recipes.base import Losses
from qexport.training.sentence_folder import SENTENCE_FILES, write_sentence_files
from qexport.training.tasks import Task

__all__ = [
    "CHECKPOINTS",
    "TRAIN_REPORT",
    "check_folder",
    "check_material",
    "fetch_hub_tokenizer",
    "finish",
    "history",
    "newest_checkpoint",
    "remember_run",
    "reported_metrics",
]

TRAIN_REPORT = "qexport_train.json"
"""File of a finished run, written last: a folder without it holds an unfinished run."""

CHECKPOINTS = "checkpoints"
"""Folder in the output while the run lasts; a finished run has none."""

ARGUMENTS = "arguments.json"
"""File there: what the run was begun with: options, rows and weights."""

_ROWS, _WEIGHTS = "rows_sha256", "weights_sha256"

_MAY_CHANGE = ("output", "data_dir", "train_file", "eval_file", "resume", "force", "threads",
               "eval_batch_size", "logging", "logging_steps")  # fmt: skip
"""Options that may be others when a run goes on: where data are, and what does not change the model."""

_MODELS = ("model", "teacher", "augment_model", "glove")
"""Options that may be another path when a run goes on: folders are moved, and named in several ways."""

_MODEL_FILES = (*TOKENIZER_FILES, *SENTENCE_FILES, "config.json", "generation_config.json",
                "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")  # fmt: skip
"""What a finished run may have written beside its report."""


def check_folder(config: TrainConfig) -> None:
    """Refuse an output folder that this run may not write into, else make it; the first process only.

    Raises:
        OutputExistsError: a file, a finished run, an unfinished one without --resume, or foreign files.
        UsageError: --resume without anything to resume.
        DiskFullError: no room for the folder.
    """
    if int(os.environ.get("RANK", "0")) > 0:
        return
    output = config.output
    if output.exists() and not output.is_dir():
        raise OutputExistsError(f"{output} is a file; choose another --output")
    finished = (output / TRAIN_REPORT).exists()
    begun = any(
        any((output / CHECKPOINTS).glob(name)) for name in ("checkpoint-*", "*/checkpoint-*", "*/model")
    )
    if config.force:
        shutil.rmtree(output / CHECKPOINTS, ignore_errors=True)
    elif finished:
        raise OutputExistsError(
            f"{output} holds a finished run; pass --force to replace it or choose another --output"
        )
    elif begun and not config.resume:
        raise OutputExistsError(
            f"{output} holds an unfinished run; pass --resume to go on or --force to start anew"
        )
    elif output.exists() and not begun and any(path.name != CHECKPOINTS for path in output.iterdir()):
        raise OutputExistsError(f"{output} exists and is not a training run; pass --force to write into it")
    if config.resume and not begun:
        raise UsageError(f"--resume: no checkpoint in {output / CHECKPOINTS}; leave --resume out to start")
    arguments = output / CHECKPOINTS / ARGUMENTS
    if config.resume and arguments.is_file():
        _same_arguments(config, json.loads(arguments.read_text(encoding="utf-8")))
    with disk_errors(output):
        arguments.parent.mkdir(parents=True, exist_ok=True)


def remember_run(config: TrainConfig, fingerprint: str) -> None:
    """Write what a run begins with, for the checks when it goes on; the first process only.

    Args:
        config: the run.
        fingerprint: of its rows, `TaskData.fingerprint`.
    Raises:
        DiskFullError: no room.
    """
    if int(os.environ.get("RANK", "0")) == 0:
        with disk_errors(config.output):
            values = {**config.to_json(), _ROWS: fingerprint, _WEIGHTS: _weights(config)}
            atomic_write_text(config.output / CHECKPOINTS / ARGUMENTS, json.dumps(values, indent=2) + "\n")


def check_material(config: TrainConfig, fingerprint: str) -> None:
    """Refuse to go on with other rows, or another start or teacher in the same place; the first process only.

    Args:
        config: the run.
        fingerprint: of its rows, `TaskData.fingerprint`.
    Raises:
        UsageError: they are others.
    """
    arguments = config.output / CHECKPOINTS / ARGUMENTS
    if int(os.environ.get("RANK", "0")) > 0 or not config.resume or not arguments.is_file():
        return
    begun = json.loads(arguments.read_text(encoding="utf-8"))
    if begun.get(_ROWS, fingerprint) != fingerprint:
        raise UsageError(
            "--resume: the rows are not those that this run was begun with; give the same files, or --force "
            "to start anew"
        )
    for option, now in _weights(config).items():
        if begun.get(_WEIGHTS, {}).get(option, now) != now:
            raise UsageError(
                f"--resume: {getattr(config, option)} has other weights than the {option} that this run was "
                f"begun with; give that one as --{option}, or --force to start anew"
            )


def _weights(config: TrainConfig) -> dict[str, str]:
    """SHA-256 of the weights of start and teacher, of those that are folders."""
    named = {option: getattr(config, option) for option in ("model", "teacher")}
    return {
        option: weights_sha256(Path(name).expanduser())
        for option, name in named.items()
        if name is not None and Path(name).expanduser().is_dir()
    }


def _same_arguments(config: TrainConfig, begun: Mapping[str, Any]) -> None:
    """Refuse to go on with a run that was begun with options that make another model.

    Raises:
        UsageError: it was.
    """
    for name, value in config.to_json().items():
        moved = name in _MODELS and value is not None and Path(value).exists()
        if name not in _MAY_CHANGE and name in begun and begun[name] != value and not moved:
            option = f"--{name.replace('_', '-')}"
            raise UsageError(
                f"--resume: this run was begun with {option} {begun[name]}, now it is {value}; give the same "
                f"{option}, or --force to start anew"
            )


def newest_checkpoint(folder: Path) -> Path:
    """The last checkpoint in `folder` that was written to its end.

    Raises:
        UsageError: there is none.
    """
    found = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[-1]))
    complete = [path for path in found if (path / "trainer_state.json").is_file()]
    if not complete:
        raise UsageError(f"--resume: no complete checkpoint in {folder}; pass --force to start anew")
    return complete[-1]


def fetch_hub_tokenizer(name: str, output: Path) -> Path:
    """Fetch a hub model's tokenizer into the run's folder and return that folder."""
    from transformers import AutoTokenizer

    folder = output / CHECKPOINTS / "tokenizer"
    AutoTokenizer.from_pretrained(name).save_pretrained(folder)
    return folder


def reported_metrics(scores: Mapping[str, float], task: Task) -> dict[str, float]:
    """The task's metrics and the loss out of what Trainer.evaluate gives; its timings are left out."""
    names = (*task.metrics, "loss")
    plain = {key.removeprefix("eval_"): float(value) for key, value in scores.items()}
    return {name: value for name, value in plain.items() if name in names}


def finish(
    config: TrainConfig,
    trainer: Trainer,
    *,
    quant: QuantConfig | None,
    losses: Losses,
    data: TaskData,
    tokenizer_folder: Path,
    stages: Sequence[Mapping[str, Any]],
    metrics: Mapping[str, float],
    decoding: Mapping[str, float],
    max_length: int,
    seconds: float,
) -> None:
    """Write model and tokenizer through a hidden folder, then the report, then drop the checkpoints.

    Args:
        config: the run.
        trainer: holds the best model and the log.
        quant: what was quantised, None for a float model.
        losses: weights of the training loss.
        data: what was trained and evaluated on.
        tokenizer_folder: where the tokenizer's files are copied from.
        stages: what was recorded of each stage, the last included; empty for a method of one training.
        metrics: of the best checkpoint, keys "<split>/<metric>".
        decoding: how its outputs are decoded, {} where there is nothing to choose.
        max_length: tokens kept of a sentence or pair.
        seconds: wall clock of this call.
    """
    output = config.output
    part = output / ".final.part"
    shutil.rmtree(part, ignore_errors=True)
    trainer.save_model(str(part))
    (part / "training_args.bin").unlink(missing_ok=True)
    for name in TOKENIZER_FILES:
        if (tokenizer_folder / name).is_file():
            shutil.copyfile(tokenizer_folder / name, part / name)
    if data.task.kind == "embedding":
        trained: Any = trainer.model
        width = int(trained.config.hidden_size)
        write_sentence_files(part, width=width, max_length=max_length)
    report = _report(config, trainer, quant, losses, data, metrics, max_length, seconds)
    if decoding:
        report["decoding"] = dict(decoding)
    if stages:
        report["stages"] = list(stages)
    (output / TRAIN_REPORT).unlink(missing_ok=True)
    for name in _MODEL_FILES:  # of a run that --force replaces
        if (part / name).exists():
            continue
        if (output / name).is_dir():
            shutil.rmtree(output / name)
        else:
            (output / name).unlink(missing_ok=True)
    for file in sorted(part.iterdir()):
        if file.is_dir():
            shutil.rmtree(output / file.name, ignore_errors=True)
        os.replace(file, output / file.name)
    part.rmdir()
    atomic_write_text(output / TRAIN_REPORT, json.dumps(report, indent=2, default=float) + "\n")
    if config.logging == "tensorboard":
        for run in (*(output / CHECKPOINTS).glob("runs/*"), *(output / CHECKPOINTS).glob("*/runs/*")):
            stage = run.parents[1].name
            (output / "runs").mkdir(exist_ok=True)
            shutil.move(
                str(run), str(output / "runs" / (run.name if stage == CHECKPOINTS else f"{stage}-{run.name}"))
            )
    shutil.rmtree(output / CHECKPOINTS, ignore_errors=True)


def _report(
    config: TrainConfig,
    trainer: Trainer,
    quant: QuantConfig | None,
    losses: Losses,
    data: TaskData,
    metrics: Mapping[str, float],
    max_length: int,
    seconds: float,
) -> dict[str, Any]:
    """The content of qexport_train.json."""
    return {
        "format_version": 1,
        "task": data.task.name,
        "kind": data.task.kind,
        "labels": list(data.task.labels),
        "columns": list(data.task.columns),
        "max_length": max_length,
        "method": config.method,
        "bits": quant.bits if quant else "32-32-32",
        "quantization": quant.to_dict() if quant else None,
        "losses": {name: getattr(losses, name) for name in ("hidden", "attention", "logits", "label")},
        "metrics": dict(metrics),
        "main_metric": data.task.main_metric,
        "best_checkpoint_metric": trainer.state.best_metric,
        "steps": trainer.state.global_step,
        "history": history(trainer.state.log_history, data),
        "seed": config.seed,
        "data": {
            "source": data.source,
            "fingerprint": data.fingerprint,
            "train_rows": len(data.train.texts) if data.train else 0,
            "augmentation": data.augmentation,
            "eval_rows": {name: len(split.texts) for name, split in data.evals.items()},
        },
        "teacher": config.teacher,
        "arguments": config.to_json(),
        "seconds": round(seconds, 1),
        "machine": {
            "cpu": environment().cpu,
            "threads": torch.get_num_threads(),
            "cuda": torch.cuda.is_available(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
            "processes": int(os.environ.get("WORLD_SIZE", "1")),
        },
        "versions": {
            "qexport": qexport.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "python": platform.python_version(),
        },
    }


def history(log: Sequence[Mapping[str, Any]], data: TaskData) -> list[dict[str, Any]]:
    """The log of the run; of an evaluation only the task's metrics and the loss."""
    prefixes = ("eval_", *(f"eval_{split}_" for split in data.evals))
    kept = {prefix + name for prefix in prefixes for name in (*data.task.metrics, "loss")}
    return [
        {key: value for key, value in line.items() if key in kept or not key.startswith("eval_")}
        for line in log
    ]
