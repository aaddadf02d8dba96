"""`train`: fine-tune a float teacher or distil a low-bit student, on transformers.Trainer.

Mixed precision, gradient accumulation, several processes or GPUs, resuming and TensorBoard come from there;
here are the loss and the stages of a run.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    PreTrainedModel,
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from qexport.atomic import disk_errors
from qexport.errors import Interrupted, MissingPackageError, UsageError
from qexport.training.batches import Rows, collator, predict_logits
from qexport.training.calibration import calibrate
from qexport.training.callbacks import Curvature, Lines, Patience, StopOnSignal, Thresholds
from qexport.training.candidates import augment_data
from qexport.training.config import TrainConfig
from qexport.training.data import Encoded, TaskData, encode, load_task_data, load_tokenizer, pad_token_id
from qexport.training.distiller import Distiller
from qexport.training.judge import judge_of
from qexport.training.kinds import Kind, get_kind
from qexport.training.models import PACKAGED_MODEL, load_config, resolve_model
from qexport.training.pairing import longest_sequence, quantization_of, teacher_labels
from qexport.training.projection import drop_projection
from qexport.training.quantizers.learned import threshold_rule
from qexport.training.recipes import Recipe, get_recipe
from qexport.training.recipes.base import LearnedSteps, Stage
from qexport.training.rows import Split
from qexport.training.run_folder import (
    CHECKPOINTS,
    TRAIN_REPORT,
    check_folder,
    check_material,
    fetch_hub_tokenizer,
    finish,
    history,
    newest_checkpoint,
    remember_run,
    reported_metrics,
)
from qexport.training.stages import FIRST_QUANTISED, Material, StageFolder, build_pair, plan_stages
from qexport.training.tasks import Task

__all__ = ["TRAIN_REPORT", "TrainResult", "predict_logits", "train"]


@dataclass(frozen=True)
class TrainResult:
    """What a finished run gives back."""

    output: Path
    """Folder of the trained model."""
    metrics: dict[str, float]
    """Of the best checkpoint, keys "<split>/<metric>", fractions."""
    seconds: float
    """Wall clock of this call."""


def train(config: TrainConfig, *, say: Callable[[str], None] = lambda line: None) -> TrainResult:
    """Run one training from data to a finished folder.

    Args:
        config: the run.
        say: takes one line per stage.
    Returns:
        the folder and the metrics of the best checkpoint on every evaluation split.
    Raises:
        UsageError: options that do not go together; OutputExistsError: a finished or unfinished run is there.
        DataError, UnknownNameError, UnsupportedModelError, MissingPackageError: see the message.
        Interrupted: Ctrl-C; a checkpoint is written and the message says how to go on.
        DiskFullError: checkpoints written before stay.
    """
    started = time.monotonic()
    recipe = get_recipe(config.method)
    quant = recipe.quant_config(config)
    plan = plan_stages(recipe, config)
    steps, size = recipe.learned_steps(config), recipe.student_size(config)
    check_folder(config)
    if config.logging == "tensorboard":
        _need_tensorboard()
    if config.threads:
        torch.set_num_threads(config.threads)

    source = config.model or config.teacher or PACKAGED_MODEL
    data = _load_data(config, distils=any(stage.losses.distils for stage in plan))
    task = data.task
    if data.train is None or not data.evals:
        raise UsageError(f"task {task.name}: {data.source} has no training or no evaluation rows")
    if config.temperature != 1 and not (
        get_kind(task.kind).soft and any(stage.losses.logits > 0 for stage in plan)
    ):
        raise UsageError(
            f"nothing of this run is a soft cross-entropy (method {recipe.name}, task {task.name}), so "
            f"--temperature {config.temperature:g} has no meaning for it; leave it out"
        )
    check_material(config, data.fingerprint)
    sizes = ", ".join(f"{name} {len(split.texts)}" for name, split in data.evals.items())
    say(f"data: {task.name}, {len(data.train.texts)} training rows, {sizes} ({data.source})")
    data = augment_data(config, data, source, say)
    grown = data.train
    assert grown is not None

    tokenizer_folder = Path(resolve_model(source))
    if not tokenizer_folder.is_dir():
        tokenizer_folder = fetch_hub_tokenizer(source, config.output)
    tokenizer = load_tokenizer(tokenizer_folder)
    readers = [source, *([config.teacher] if config.teacher and config.teacher != source else [])]
    room = min(longest_sequence(load_config(name)) for name in readers)
    max_length = min(config.max_length or task.max_length, room)
    pad_id = pad_token_id(tokenizer_folder)
    kind = get_kind(task.kind)

    def judged(task: Task, split: Split) -> Rows:
        """Evaluation rows, shortest first, with what judges them."""
        encoded = encode(split, tokenizer, max_length)
        return Rows(encoded, by_length=True, judge=judge_of(task, split, encoded))

    run = _Run(
        config=config,
        recipe=recipe,
        plan=plan,
        steps=steps,
        data=data,
        rows=encode(grown, tokenizer, max_length),
        kind=kind,
        evals={name: judged(task, split) for name, split in data.evals.items()},
        tuning=None if data.tuning is None else judged(task, data.tuning),
        pad_id=pad_id,
        stop=StopOnSignal(),
        say=say,
    )
    material = Material(
        config=config,
        quant=quant,
        source=source,
        task=task,
        rows=run.rows,
        collate=collator(pad_id, kind),
        size=size,
        finished={},
    )
    records: list[dict[str, Any]] = []
    with run.stop.installed():
        for index, stage in enumerate(plan):
            folder = StageFolder.of(config.output / CHECKPOINTS, plan, index)
            if len(plan) > 1 and config.resume and folder.finished:
                records.append(folder.record())
            else:
                trainer = _train_stage(run, index, folder, material)
                records.append(_record(trainer, stage, data))
                whole = not run.stop.stopped or trainer.state.global_step >= trainer.state.max_steps
                if whole and index + 1 < len(plan):
                    with disk_errors(config.output):
                        folder.keep(trainer, records[-1])
                if run.stop.stopped:
                    where = f"in stage {stage.name} ({index + 1} of {len(plan)}) " if len(plan) > 1 else ""
                    raise Interrupted(
                        f"training stopped {where}at step {trainer.state.global_step} of "
                        f"{trainer.state.max_steps}, the checkpoint is in {folder.path}; go on with the same "
                        "command and --resume"
                    )
            material = dataclasses.replace(material, finished={**material.finished, stage.name: folder.model})
    metrics = {}
    for name, rows in run.evals.items():
        scores = reported_metrics(trainer.evaluate(rows), task)
        metrics.update({f"{name}/{key}": value for key, value in scores.items()})
    seconds = time.monotonic() - started
    if trainer.is_world_process_zero():
        with disk_errors(config.output):
            finish(
                config,
                trainer,
                quant=quantization_of(trainer.model),
                losses=plan[-1].losses,
                data=data,
                tokenizer_folder=tokenizer_folder,
                stages=records if len(plan) > 1 else (),
                metrics=metrics,
                decoding=trainer.decoding,
                max_length=max_length,
                seconds=seconds,
            )
    trainer.accelerator.wait_for_everyone()
    return TrainResult(config.output, metrics, seconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Run:
    """What the stages of a run share."""

    config: TrainConfig
    recipe: Recipe
    plan: Sequence[Stage]
    steps: LearnedSteps | None
    data: TaskData
    rows: Encoded
    kind: Kind
    evals: Mapping[str, Rows]
    tuning: Rows | None
    pad_id: int
    stop: StopOnSignal
    say: Callable[[str], None]


def _train_stage(run: _Run, index: int, folder: StageFolder, material: Material) -> Distiller:
    """Train one stage to its end, or to the first Ctrl-C; the trainer then has the best model."""
    config, stage = run.config, run.plan[index]
    mark = f"[{index + 1}/{len(run.plan)} {stage.name}] " if len(run.plan) > 1 else ""

    def say(line: str) -> None:
        run.say(mark + line)

    set_seed(config.seed)
    if material.size is not None and not material.finished:
        say("making the student out of its teacher")
    model, teacher = build_pair(stage, material)
    if index == 0 and not config.resume:
        remember_run(config, run.data.fingerprint)
    quant = quantization_of(model)
    if quant is None or quant.wea.weight == 32:
        say(f"model: float32, {model.config.num_hidden_layers} layers of width {model.config.hidden_size}")
    else:
        say(f"student: {quant.bits} {quant.activations} {quant.granularity}")
    if run.steps is not None and stage.start in FIRST_QUANTISED:
        count = config.batch_size or run.recipe.optimisation.batch_size
        calibrate(
            model,
            run.rows,
            count=count,
            seed=config.seed,
            pad_id=run.pad_id,
            rule=threshold_rule(run.steps.truncation, run.steps.initial),
        )
        how = "least error" if run.steps.truncation is None else f"truncation {run.steps.truncation:g}"
        how = "mean magnitude" if run.steps.initial == "mean" else how
        say(f"initial steps: {how}, activations on {count} rows")
    trainer = _trainer(run, stage, folder.path, model, teacher)
    for standard in (PrinterCallback, ProgressCallback):  # one of them prints raw dictionaries
        trainer.remove_callback(standard)
    trainer.add_callback(Lines(say, bars=sys.stderr.isatty() and os.environ.get("TQDM_DISABLE") != "1"))
    checkpoint = None
    if config.resume and (folder.begun or len(run.plan) == 1):
        checkpoint = newest_checkpoint(folder.path)
        say(f"resuming from {checkpoint.name}")
    with disk_errors(config.output):
        if checkpoint is None or not trainer.restore_finished(checkpoint):
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    drop_projection(model)
    return trainer


def _record(trainer: Trainer, stage: Stage, data: TaskData) -> dict[str, Any]:
    """What the report says about a stage."""
    return {
        "name": stage.name,
        "losses": dataclasses.asdict(stage.losses),
        "teacher": stage.teacher or None,
        "steps": trainer.state.global_step,
        "best_checkpoint_metric": trainer.state.best_metric,
        "history": history(trainer.state.log_history, data),
    }


def _load_data(config: TrainConfig, *, distils: bool) -> TaskData:
    return load_task_data(
        config.task,
        data_dir=config.data_dir,
        train_file=config.train_file,
        eval_file=config.eval_file,
        text_column=config.text_column,
        text_pair_column=config.text_pair_column,
        label_column=config.label_column,
        regression=config.regression,
        eval_articles=config.eval_articles,
        train_samples=config.train_samples,
        eval_samples=config.eval_samples,
        labels=teacher_labels(config) if distils else None,
        seed=config.seed,
    )


def _trainer(
    run: _Run, stage: Stage, folder: Path, model: PreTrainedModel, teacher: PreTrainedModel | None
) -> Distiller:
    config, evals, task = run.config, run.evals, run.data.task
    split = next(iter(evals))
    selected_by = f"{'eval_' if len(evals) == 1 else f'eval_{split}_'}{task.main_metric}"

    callbacks: list[TrainerCallback] = [Curvature(model), Thresholds(model), run.stop]
    if config.early_stopping and stage.selects:
        callbacks.append(Patience(config.early_stopping, selected_by))
    eval_rows: Any = dict(evals)
    arguments = _arguments(config, run.recipe, stage, folder, len(run.rows), selected_by)
    if arguments.n_gpu > 1:
        count = arguments.n_gpu
        run.say(f"one of {count} GPUs is used; for all of them: accelerate launch -m qexport train ...")
        arguments._n_gpu = 1  # transformers would wrap the model in DataParallel, with count times the batch
    return Distiller(
        model=model,
        args=arguments,
        data_collator=collator(run.pad_id, run.kind),
        train_dataset=Rows(run.rows),
        eval_dataset=eval_rows if len(evals) > 1 else eval_rows[split],
        callbacks=callbacks,
        teacher=teacher,
        losses=stage.losses,
        kind=run.kind,
        tuning=run.tuning,
        temperature=config.temperature,
        steps=run.steps,
    )


def _arguments(
    config: TrainConfig, recipe: Recipe, stage: Stage, folder: Path, n_rows: int, selected_by: str
) -> TrainingArguments:
    """What transformers needs to know; the schedule counts optimiser steps of all processes together.

    Args:
        config: the run.
        recipe: defaults of what `config` leaves open.
        stage: its epochs, its schedule, and its learning rate as a multiple of the run's.
        folder: for checkpoints.
        n_rows: training rows.
        selected_by: name of the metric, as Trainer.evaluate spells it, that picks the best checkpoint.
    """
    defaults = recipe.optimisation
    batch_size = config.batch_size or defaults.batch_size
    world = int(os.environ.get("WORLD_SIZE", "1"))
    per_epoch = math.ceil(n_rows / (batch_size * world * config.gradient_accumulation))
    steps = config.max_steps or max(1, math.ceil(per_epoch * stage.epochs))
    every = min(config.eval_steps or per_epoch, steps)
    warmup = config.warmup
    if warmup is None:
        warmup = defaults.warmup if stage.schedule == "linear" else 0.0
    return TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        learning_rate=(config.lr or defaults.lr) * stage.lr,
        lr_scheduler_type="linear" if stage.schedule == "linear" else "constant_with_warmup",
        warmup_steps=int(steps * warmup),
        weight_decay=defaults.weight_decay if config.weight_decay is None else config.weight_decay,
        optim="adamw_torch_fused",
        per_device_train_batch_size=batch_size,
        per_device_eval_batch_size=config.eval_batch_size,
        gradient_accumulation_steps=config.gradient_accumulation,
        eval_strategy="steps",
        eval_steps=every,
        save_strategy="steps",
        save_steps=every,
        save_total_limit=2,
        load_best_model_at_end=stage.selects,
        metric_for_best_model=selected_by,
        greater_is_better=True,
        logging_steps=config.logging_steps,
        train_sampling_strategy="group_by_length" if config.group_by_length else "random",
        remove_unused_columns=False,
        label_names=["labels"],
        seed=config.seed,
        data_seed=config.seed,
        bf16=config.bf16,
        use_cpu=not torch.cuda.is_available(),
        report_to=["tensorboard"] if config.logging == "tensorboard" else [],
        ddp_find_unused_parameters=False,
        dataloader_pin_memory=torch.cuda.is_available(),
    )


def _need_tensorboard() -> None:
    if importlib.util.find_spec("tensorboard") is None:
        raise MissingPackageError("--logging tensorboard needs a package: pip install 'qexport[tensorboard]'")
