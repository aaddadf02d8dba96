"""`train`: fine-tune a float teacher or distil a low-bit student, on transformers.Trainer.

Mixed precision, gradient accumulation, several processes or GPUs, resuming and TensorBoard come from there;
here are the loss and the stages of a run.
"""

from __future__ import annotations

import importlib.util
import math
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import (
    EarlyStoppingCallback,
    EvalPrediction,
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
from qexport.training.batches import Rows, Shuffle, collator, predict_logits
from qexport.training.callbacks import Curvature, Lines, StopOnSignal
from qexport.training.config import TrainConfig
from qexport.training.data import Encoded, TaskData, encode, load_task_data, load_tokenizer, pad_token_id
from qexport.training.distill import attention_loss, hidden_loss, label_loss, logits_loss
from qexport.training.metrics import compute_metrics
from qexport.training.models import PACKAGED_MODEL, resolve_model
from qexport.training.pairing import load_pair, longest_sequence, teacher_labels
from qexport.training.recipes import Recipe, get_recipe
from qexport.training.recipes.base import Losses
from qexport.training.run_folder import (
    CHECKPOINTS,
    TRAIN_REPORT,
    check_folder,
    fetch_hub_tokenizer,
    finish,
    newest_checkpoint,
    reported_metrics,
)
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
    losses = _losses(recipe, config)
    check_folder(config)
    if config.logging == "tensorboard":
        _need_tensorboard()
    if config.threads:
        torch.set_num_threads(config.threads)

    source = config.model or config.teacher
    if source is None:
        if recipe.losses.distils:
            raise UsageError(
                f"method {recipe.name} needs --teacher, a folder made by: qexport train --method fp32"
            )
        source = PACKAGED_MODEL
    data = _load_data(config, losses)
    task = data.task
    if data.train is None or not data.evals:
        raise UsageError(f"task {task.name}: {data.source} has no training or no evaluation rows")
    sizes = ", ".join(f"{name} {len(split.texts)}" for name, split in data.evals.items())
    say(f"data: {task.name}, {len(data.train.texts)} training rows, {sizes} ({data.source})")

    set_seed(config.seed)
    model, teacher = load_pair(config, quant, losses, source, task)
    tokenizer_folder = Path(resolve_model(source))
    if not tokenizer_folder.is_dir():
        tokenizer_folder = fetch_hub_tokenizer(source, config.output)
    tokenizer = load_tokenizer(tokenizer_folder)
    max_length = min(config.max_length or task.max_length, longest_sequence(model))
    evals = {name: encode(split, tokenizer, max_length) for name, split in data.evals.items()}
    train_rows = encode(data.train, tokenizer, max_length)
    say(f"student: {quant.bits} {quant.activations} {quant.granularity}" if quant else "model: float32")

    stop = StopOnSignal()
    trainer = _trainer(
        config,
        recipe,
        model,
        teacher=teacher,
        losses=losses,
        task=task,
        train_rows=train_rows,
        evals=evals,
        pad_id=pad_token_id(tokenizer_folder),
        stop=stop,
    )
    for standard in (PrinterCallback, ProgressCallback):  # one of them prints raw dictionaries
        trainer.remove_callback(standard)
    trainer.add_callback(Lines(say, bars=sys.stderr.isatty() and os.environ.get("TQDM_DISABLE") != "1"))
    checkpoint = newest_checkpoint(config.output) if config.resume else None
    if checkpoint:
        say(f"resuming from {checkpoint.name}")
    with disk_errors(config.output), stop.installed():
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if stop.stopped:
        raise Interrupted(
            f"training stopped at step {trainer.state.global_step} of {trainer.state.max_steps}, "
            f"the checkpoint is in {config.output / CHECKPOINTS}; go on with the same command and --resume"
        )
    metrics = {}
    for name, rows in evals.items():
        scores = reported_metrics(trainer.evaluate(Rows(rows, by_length=True)), task)
        metrics.update({f"{name}/{key}": value for key, value in scores.items()})
    seconds = time.monotonic() - started
    if trainer.is_world_process_zero():
        with disk_errors(config.output):
            finish(
                config,
                trainer,
                quant=quant,
                losses=losses,
                data=data,
                tokenizer_folder=tokenizer_folder,
                metrics=metrics,
                max_length=max_length,
                seconds=seconds,
            )
    trainer.accelerator.wait_for_everyone()
    return TrainResult(config.output, metrics, seconds)


class Distiller(Trainer):
    """Trainer with the weighted sum of the four losses; the teacher runs once per batch without gradient."""

    def __init__(
        self,
        *args: Any,
        teacher: PreTrainedModel | None,
        losses: Losses,
        task: Task,
        temperature: float,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.teacher, self.losses, self.task, self.temperature = teacher, losses, task, temperature
        self.model_accepts_loss_kwargs = False  # the loss is a mean over the batch, accumulation divides it
        self._sums: dict[str, float] = {}
        self._count = 0
        if teacher is not None:
            frozen: nn.Module = teacher
            frozen.requires_grad_(False).eval().to(self.args.device)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The weighted sum; in evaluation only the label loss."""
        regression = self.task.kind == "regression"
        features = {name: value for name, value in inputs.items() if name != "labels"}
        labels = inputs["labels"]
        if not model.training:
            outputs = model(**features)
            loss = label_loss(outputs.logits, labels, regression=regression)
            return (loss, {"logits": outputs.logits}) if return_outputs else loss
        inner = {
            "output_hidden_states": self.losses.hidden > 0,
            "output_attentions": self.losses.attention > 0,
        }
        outputs = model(**features, **inner)
        terms: dict[str, Tensor] = {}
        if self.losses.distils:
            if self.teacher is None:
                raise UsageError("distillation needs --teacher")
            with torch.no_grad():
                target = self.teacher(**features, **inner)
            terms = self._distillation(outputs, target)
        if self.losses.label > 0:
            terms["label"] = self.losses.label * label_loss(outputs.logits, labels, regression=regression)
        for name, term in terms.items():
            self._sums[name] = self._sums.get(name, 0.0) + float(term.detach())
        self._count += 1
        loss = torch.stack(list(terms.values())).sum()
        return (loss, outputs) if return_outputs else loss

    def _distillation(self, student: Any, teacher: Any) -> dict[str, Tensor]:
        """The weighted terms between two model outputs."""
        weights = self.losses
        terms: dict[str, Tensor] = {}
        if weights.hidden > 0:
            terms["hidden"] = weights.hidden * hidden_loss(student.hidden_states, teacher.hidden_states)
        if weights.attention > 0:
            terms["attention"] = weights.attention * attention_loss(student.attentions, teacher.attentions)
        if weights.logits > 0:
            terms["logits"] = weights.logits * logits_loss(
                student.logits,
                teacher.logits,
                temperature=self.temperature,
                regression=self.task.kind == "regression",
            )
        return terms

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        if self.args.train_sampling_strategy == "random":
            rows: Any = train_dataset or self.train_dataset
            return Shuffle(len(rows), self.args.seed)
        return super()._get_train_sampler(train_dataset)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add the mean of each loss term since the last line."""
        if "loss" in logs and self._count:
            sums = [value / self._count for value in self._sums.values()]
            means = self.accelerator.reduce(torch.tensor(sums, device=self.args.device), reduction="mean")
            for name, mean in zip(self._sums, means, strict=True):
                logs[f"loss_{name}"] = round(float(mean), 5)
            self._sums, self._count = {}, 0
        super().log(logs, *args, **kwargs)


def _load_data(config: TrainConfig, losses: Losses) -> TaskData:
    return load_task_data(
        config.task,
        data_dir=config.data_dir,
        train_file=config.train_file,
        eval_file=config.eval_file,
        text_column=config.text_column,
        text_pair_column=config.text_pair_column,
        label_column=config.label_column,
        regression=config.regression,
        train_samples=config.train_samples,
        eval_samples=config.eval_samples,
        labels=teacher_labels(config, losses),
        seed=config.seed,
    )


def _losses(recipe: Recipe, config: TrainConfig) -> Losses:
    def pick(name: str) -> float:
        override = getattr(config, f"{name}_weight")
        default: float = getattr(recipe.losses, name)
        return default if override is None else float(override)

    losses = Losses(
        hidden=pick("hidden"), attention=pick("attention"), logits=pick("logits"), label=pick("label")
    )
    if not losses.distils and losses.label == 0:
        raise UsageError(
            "every loss weight is 0; give at least one of --hidden-weight, --attention-weight, "
            "--logits-weight, --label-weight"
        )
    if losses.distils and config.teacher is None:
        raise UsageError(
            f"method {recipe.name} distils and needs --teacher, a folder made by: qexport train --method fp32"
        )
    return losses


def _trainer(
    config: TrainConfig,
    recipe: Recipe,
    model: PreTrainedModel,
    *,
    teacher: PreTrainedModel | None,
    losses: Losses,
    task: Task,
    train_rows: Encoded,
    evals: Mapping[str, Encoded],
    pad_id: int,
    stop: StopOnSignal,
) -> Distiller:
    split = next(iter(evals))
    selected_by = f"{'eval_' if len(evals) == 1 else f'eval_{split}_'}{task.main_metric}"

    def metrics(prediction: EvalPrediction) -> dict[str, float]:
        return compute_metrics(task, np.asarray(prediction.predictions), np.asarray(prediction.label_ids))

    callbacks: list[TrainerCallback] = [Curvature(model), stop]
    if config.early_stopping:
        callbacks.append(EarlyStoppingCallback(early_stopping_patience=config.early_stopping))
    eval_rows: Any = {name: Rows(rows, by_length=True) for name, rows in evals.items()}
    return Distiller(
        model=model,
        args=_arguments(config, recipe, len(train_rows), selected_by),
        data_collator=collator(pad_id),
        train_dataset=Rows(train_rows),
        eval_dataset=eval_rows if len(evals) > 1 else eval_rows[split],
        compute_metrics=metrics,
        callbacks=callbacks,
        teacher=teacher,
        losses=losses,
        task=task,
        temperature=config.temperature,
    )


def _arguments(config: TrainConfig, recipe: Recipe, n_rows: int, selected_by: str) -> TrainingArguments:
    """What transformers needs to know; the schedule counts optimiser steps of all processes together.

    Args:
        config: the run.
        recipe: defaults of what `config` leaves open.
        n_rows: training rows.
        selected_by: name of the metric, as Trainer.evaluate spells it, that picks the best checkpoint.
    """
    defaults = recipe.optimisation
    batch_size = config.batch_size or defaults.batch_size
    world = int(os.environ.get("WORLD_SIZE", "1"))
    per_epoch = math.ceil(n_rows / (batch_size * world * config.gradient_accumulation))
    steps = config.max_steps or max(1, math.ceil(per_epoch * (config.epochs or defaults.epochs)))
    every = min(config.eval_steps or per_epoch, steps)
    return TrainingArguments(
        output_dir=str(config.output / CHECKPOINTS),
        max_steps=steps,
        learning_rate=config.lr or defaults.lr,
        warmup_steps=int(steps * (defaults.warmup if config.warmup is None else config.warmup)),
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
        load_best_model_at_end=True,
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
