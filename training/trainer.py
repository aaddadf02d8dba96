"""`train`: fine-tune a float teacher or distil a low-bit student, on transformers.Trainer.

Mixed precision, gradient accumulation, several processes or GPUs, resuming and TensorBoard come from there; here are the
loss, the stages of a run and what is written at its end.
"""

from __future__ import annotations

import json
import math
import os
import platform
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor, nn
from torch.utils.data import Dataset, Sampler
from transformers import (
    EarlyStoppingCallback,
    EvalPrediction,
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

import qexport
from qexport.atomic import atomic_write_text, disk_errors
from qexport.errors import Interrupted, MissingPackageError, OutputExistsError, UsageError
from qexport.training import data as data_module
from qexport.training.config import TrainConfig
from qexport.training.distill import attention_loss, hidden_loss, label_loss, logits_loss
from qexport.training.metrics import compute_metrics
from qexport.training.models import PACKAGED_MODEL, is_student, load_encoder, resolve_model
from qexport.training.quant_config import QuantConfig
from qexport.training.recipes import Recipe, get_recipe
from qexport.training.recipes.base import Losses
from qexport.training.student import QuantEmbedding, QuantLinear, quantize_model
from qexport.training.tasks import Task

__all__ = ["TRAIN_REPORT", "TrainResult", "predict_logits", "train"]

TRAIN_REPORT = "qexport_train.json"
"""File of a finished run, written last: a folder without it holds an unfinished run."""

_CHECKPOINTS = "checkpoints"


@dataclass(frozen=True)
class TrainResult:
    """What a finished run gives back."""

    output: Path
    metrics: dict[str, float]
    """Of the best checkpoint, keys "<split>/<metric>", fractions."""
    seconds: float
    """Wall clock of this call."""


class _Rows(Dataset[dict[str, Any]]):
    """Tokenised rows; `by_length` puts the shortest first, so that evaluation batches carry little padding."""

    def __init__(self, encoded: data_module.Encoded, *, by_length: bool = False) -> None:
        self.encoded = encoded
        self.order = np.argsort(encoded.lengths(), kind="stable") if by_length else np.arange(len(encoded))

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: int) -> dict[str, Any]:
        # the sampler that groups by length reads input_ids; the collator reads the rest by index
        row = int(self.order[index])
        return {"input_ids": self.encoded.input_ids[row], "index": row, "encoded": self.encoded}


class _Shuffle(Sampler[int]):
    """A permutation of the rows that depends on seed and epoch only, not on the number of processes."""

    def __init__(self, count: int, seed: int) -> None:
        self.count, self.seed, self.epoch = count, seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[int]:
        return iter(np.random.default_rng((self.seed, self.epoch)).permutation(self.count).tolist())


def _collator(pad_id: int) -> Callable[[list[dict[str, Any]]], dict[str, Tensor]]:
    def collate(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        encoded = rows[0]["encoded"]
        indices = [row["index"] for row in rows]
        batch = {name: torch.from_numpy(array) for name, array in
                 data_module.pad(encoded, indices, pad_id=pad_id).items()}  # fmt: skip
        batch["labels"] = torch.from_numpy(np.asarray(encoded.labels)[indices])
        return batch

    return collate


class _Distiller(Trainer):
    """Trainer with the weighted sum of the four losses; the teacher runs once per batch without gradient."""

    def __init__(self, *args: Any, teacher: PreTrainedModel | None, losses: Losses, task: Task,
                 temperature: float, **kwargs: Any) -> None:  # fmt: skip
        super().__init__(*args, **kwargs)
        self.teacher, self.losses, self.task, self.temperature = teacher, losses, task, temperature
        self.model_accepts_loss_kwargs = False  # the loss is a mean over the batch, accumulation divides it
        self._sums: dict[str, float] = {}
        self._count = 0
        if teacher is not None:
            teacher.requires_grad_(False)
            teacher.eval().to(self.args.device)

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False,
                     num_items_in_batch: Tensor | int | None = None) -> Any:  # fmt: skip
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
            if self.losses.hidden > 0:
                terms["hidden"] = self.losses.hidden * hidden_loss(outputs.hidden_states, target.hidden_states)
            if self.losses.attention > 0:
                terms["attention"] = self.losses.attention * attention_loss(outputs.attentions, target.attentions)
            if self.losses.logits > 0:
                terms["logits"] = self.losses.logits * logits_loss(
                    outputs.logits, target.logits, temperature=self.temperature, regression=regression
                )
        if self.losses.label > 0:
            terms["label"] = self.losses.label * label_loss(outputs.logits, labels, regression=regression)
        for name, term in terms.items():
            self._sums[name] = self._sums.get(name, 0.0) + float(term.detach())
        self._count += 1
        loss = torch.stack(list(terms.values())).sum()
        return (loss, outputs) if return_outputs else loss

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        if self.args.train_sampling_strategy == "random":
            return _Shuffle(len(train_dataset or self.train_dataset), self.args.seed)
        return super()._get_train_sampler(train_dataset)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add the mean of each loss term since the last line."""
        if "loss" in logs and self._count:
            means = torch.tensor([value / self._count for value in self._sums.values()], device=self.args.device)
            means = self.accelerator.reduce(means, reduction="mean")
            logs.update({f"loss_{name}": round(float(mean), 5) for name, mean in zip(self._sums, means, strict=True)})
            self._sums, self._count = {}, 0
        super().log(logs, *args, **kwargs)


class _Curvature(TrainerCallback):
    """After each step copy sqrt(v) of Adam to the modules that ternarise with it (LAT)."""

    def __init__(self, model: nn.Module) -> None:
        self.modules = [m for m in model.modules() if isinstance(m, QuantLinear | QuantEmbedding) and m.uses_curvature]

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        moments = kwargs["optimizer"].state
        for module in self.modules:
            entry = moments.get(module.weight)
            if entry:
                torch.sqrt(entry["exp_avg_sq"], out=module.curvature).add_(1e-8)


class _StopOnSignal(TrainerCallback):
    """First Ctrl-C: finish the step, write a checkpoint, stop."""

    def __init__(self) -> None:
        self.stopped = False

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.stopped:
            control.should_save = True
            control.should_training_stop = True

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Catch SIGINT and SIGTERM inside the block; a second Ctrl-C stops at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def stop(number: int, frame: Any) -> None:
            if self.stopped:
                raise KeyboardInterrupt
            self.stopped = True

        old = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)


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
    _check_folder(config)
    if config.logging == "tensorboard":
        _need_tensorboard()
    if config.threads:
        torch.set_num_threads(config.threads)

    source = config.model or config.teacher
    if source is None:
        if recipe.losses.distils:
            raise UsageError(f"method {recipe.name} needs --teacher, a folder made by: qexport train --method fp32")
        source = PACKAGED_MODEL
    data = data_module.load_task_data(
        config.task, data_dir=config.data_dir, train_file=config.train_file, eval_file=config.eval_file,
        text_column=config.text_column, text_pair_column=config.text_pair_column, label_column=config.label_column,
        regression=config.regression, train_samples=config.train_samples, eval_samples=config.eval_samples,
        labels=_teacher_labels(config, losses), seed=config.seed,
    )  # fmt: skip
    task = data.task
    if data.train is None or not data.evals:
        raise UsageError(f"task {task.name}: {data.source} has no training or no evaluation rows")
    sizes = ", ".join(f"{name} {len(split.texts)}" for name, split in data.evals.items())
    say(f"data: {task.name}, {len(data.train.texts)} training rows, {sizes} ({data.source})")

    set_seed(config.seed)
    model, teacher = _models(config, recipe, quant, losses, source, task)
    tokenizer_folder = Path(resolve_model(source))
    if not tokenizer_folder.is_dir():
        tokenizer_folder = _hub_tokenizer(source, config.output)
    tokenizer = data_module.load_tokenizer(tokenizer_folder)
    max_length = min(config.max_length or task.max_length, _longest(model))
    encoded = {name: data_module.encode(split, tokenizer, max_length) for name, split in data.evals.items()}
    train_rows = data_module.encode(data.train, tokenizer, max_length)
    say(f"student: {quant.bits} {quant.activations} {quant.granularity}" if quant else "model: float32")

    stop = _StopOnSignal()
    trainer = _trainer(config, recipe, model, teacher, losses, task, train_rows, encoded,
                       data_module.pad_token_id(tokenizer_folder), stop)  # fmt: skip
    checkpoint = _checkpoint(config) if config.resume else None
    if checkpoint:
        say(f"resuming from {checkpoint.name}")
    with disk_errors(config.output), stop.installed():
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if stop.stopped:
        raise Interrupted(
            f"training stopped at step {trainer.state.global_step} of {trainer.state.max_steps}, the checkpoint is in "
            f"{config.output / _CHECKPOINTS}; go on with the same command and --resume"
        )
    metrics = {}
    for name, rows in encoded.items():
        scores = trainer.evaluate(_Rows(rows, by_length=True))
        metrics.update({f"{name}/{key[5:]}": float(value) for key, value in scores.items()
                        if key[5:] in (*task.metrics, "loss") or key[5:] == task.main_metric})  # fmt: skip
    seconds = time.monotonic() - started
    if trainer.is_world_process_zero():
        with disk_errors(config.output):
            _finish(config, trainer, quant, losses, data, tokenizer_folder, metrics, max_length, seconds)
    trainer.accelerator.wait_for_everyone()
    return TrainResult(config.output, metrics, seconds)


@torch.no_grad()
def predict_logits(model: nn.Module, encoded: data_module.Encoded, *, pad_id: int, batch_size: int = 1,
                   pad_to: int | None = None) -> np.ndarray[Any, np.dtype[np.float32]]:  # fmt: skip
    """Logits of a model in evaluation mode, float32 [n, C], rows in the order of `encoded`.

    Args:
        model: from `qexport.load`.
        encoded: tokenised rows.
        pad_id: id of the padding token.
        batch_size: rows per forward pass, in order.
        pad_to: pad to this length instead of the longest row of the batch.
    """
    model.eval()
    parts = []
    for start in range(0, len(encoded.input_ids), batch_size):
        indices = list(range(start, min(start + batch_size, len(encoded.input_ids))))
        batch = data_module.pad(encoded, indices, pad_id=pad_id, pad_to=pad_to)
        accepted = {name: torch.from_numpy(value) for name, value in batch.items() if name in _inputs(model)}
        parts.append(model(**accepted).logits.float().numpy())
    return np.concatenate(parts)


def _inputs(model: nn.Module) -> set[str]:
    import inspect

    return set(inspect.signature(model.forward).parameters)


def _losses(recipe: Recipe, config: TrainConfig) -> Losses:
    def pick(name: str) -> float:
        override = getattr(config, f"{name}_weight")
        default: float = getattr(recipe.losses, name)
        return default if override is None else float(override)

    losses = Losses(hidden=pick("hidden"), attention=pick("attention"), logits=pick("logits"), label=pick("label"))
    if not losses.distils and losses.label == 0:
        raise UsageError("every loss weight is 0; give at least one of --hidden-weight, --attention-weight, "
                         "--logits-weight, --label-weight")  # fmt: skip
    if losses.distils and config.teacher is None:
        raise UsageError(f"method {recipe.name} distils and needs --teacher, a folder made by: qexport train --method fp32")
    return losses


def _check_folder(config: TrainConfig) -> None:
    if int(os.environ.get("RANK", "0")) > 0:
        return
    output = config.output
    if output.exists() and not output.is_dir():
        raise OutputExistsError(f"{output} is a file; choose another --output")
    finished = (output / TRAIN_REPORT).exists()
    begun = (output / _CHECKPOINTS).is_dir() and any((output / _CHECKPOINTS).iterdir())
    if config.force:
        shutil.rmtree(output / _CHECKPOINTS, ignore_errors=True)
    elif finished:
        raise OutputExistsError(f"{output} holds a finished run; pass --force to replace it or choose another --output")
    elif begun and not config.resume:
        raise OutputExistsError(f"{output} holds an unfinished run; pass --resume to go on or --force to start anew")
    elif output.exists() and not begun and any(path.name != _CHECKPOINTS for path in output.iterdir()):
        raise OutputExistsError(f"{output} exists and is not a training run; pass --force to write into it")
    if config.resume and not begun:
        raise UsageError(f"--resume: no checkpoint in {output / _CHECKPOINTS}; leave --resume out to start")
    with disk_errors(output):
        (output / _CHECKPOINTS).mkdir(parents=True, exist_ok=True)


def _checkpoint(config: TrainConfig) -> Path:
    found = sorted((config.output / _CHECKPOINTS).glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[-1]))
    complete = [path for path in found if (path / "trainer_state.json").is_file()]
    if not complete:
        raise UsageError(f"--resume: no complete checkpoint in {config.output / _CHECKPOINTS}; pass --force to start anew")
    return complete[-1]


def _models(config: TrainConfig, recipe: Recipe, quant: QuantConfig | None, losses: Losses, source: str,
            task: Task) -> tuple[PreTrainedModel, PreTrainedModel | None]:  # fmt: skip
    labels = {"num_labels": task.num_labels}
    if task.kind == "classification":
        labels["id2label"] = dict(enumerate(task.labels))  # type: ignore[assignment]
        labels["label2id"] = {name: index for index, name in enumerate(task.labels)}  # type: ignore[assignment]
    if resolve_model(source) and is_student(resolve_model(source)):
        raise UsageError(f"{source} is a quantised student; start from a float model folder")
    teacher = None
    if losses.distils and config.teacher is not None:
        teacher = load_encoder(config.teacher)
        if teacher.config.num_labels != task.num_labels:
            raise UsageError(
                f"the teacher {config.teacher} has {teacher.config.num_labels} outputs, task {task.name} has "
                f"{task.num_labels}; fine-tune a teacher on this task with --method fp32"
            )
    settings: dict[str, Any] = dict(labels)
    if config.dropout is not None:
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob", "dropout", "attention_dropout",
                     "classifier_dropout", "seq_classif_dropout"):  # fmt: skip
            settings[name] = config.dropout
    model = load_encoder(source, **settings)
    model.config.problem_type = "regression" if task.kind == "regression" else "single_label_classification"
    if teacher is not None and teacher.config.num_hidden_layers != model.config.num_hidden_layers:
        raise UsageError(
            f"student and teacher must have the same number of layers, got {model.config.num_hidden_layers} and "
            f"{teacher.config.num_hidden_layers}"
        )
    if quant is not None:
        quantize_model(model, quant)
    return model, teacher


def _trainer(config: TrainConfig, recipe: Recipe, model: PreTrainedModel, teacher: PreTrainedModel | None,
             losses: Losses, task: Task, train_rows: data_module.Encoded, evals: dict[str, data_module.Encoded],
             pad_id: int, stop: _StopOnSignal) -> _Distiller:  # fmt: skip
    defaults = recipe.optimisation
    batch_size = config.batch_size or defaults.batch_size
    epochs = config.epochs or defaults.epochs
    world = int(os.environ.get("WORLD_SIZE", "1"))
    per_epoch = math.ceil(len(train_rows.input_ids) / (batch_size * world * config.gradient_accumulation))
    steps = config.max_steps or max(1, math.ceil(per_epoch * epochs))
    every = min(config.eval_steps or per_epoch, steps)
    split = next(iter(evals))
    prefix = "eval_" if len(evals) == 1 else f"eval_{split}_"
    arguments = TrainingArguments(
        output_dir=str(config.output / _CHECKPOINTS),
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
        metric_for_best_model=prefix + task.main_metric,
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

    def metrics(prediction: EvalPrediction) -> dict[str, float]:
        return compute_metrics(task, np.asarray(prediction.predictions), np.asarray(prediction.label_ids))

    callbacks: list[TrainerCallback] = [_Curvature(model), stop]
    if config.early_stopping:
        callbacks.append(EarlyStoppingCallback(early_stopping_patience=config.early_stopping))
    eval_rows: Any = {name: _Rows(rows, by_length=True) for name, rows in evals.items()}
    return _Distiller(
        model=model, args=arguments, data_collator=_collator(pad_id), train_dataset=_Rows(train_rows),
        eval_dataset=eval_rows if len(evals) > 1 else eval_rows[split], compute_metrics=metrics, callbacks=callbacks,
        teacher=teacher, losses=losses, task=task, temperature=config.temperature,
    )  # fmt: skip


def _finish(config: TrainConfig, trainer: _Distiller, quant: QuantConfig | None, losses: Losses,
            data: data_module.TaskData, tokenizer_folder: Path, metrics: dict[str, float], max_length: int,
            seconds: float) -> None:  # fmt: skip
    """Write the folder: model and tokenizer through a hidden folder, then the report, then drop the checkpoints."""
    part = config.output / ".final.part"
    shutil.rmtree(part, ignore_errors=True)
    trainer.save_model(str(part))
    (part / "training_args.bin").unlink(missing_ok=True)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt", "vocab.json",
                 "merges.txt", "sentencepiece.bpe.model"):  # fmt: skip
        if (tokenizer_folder / name).is_file():
            shutil.copyfile(tokenizer_folder / name, part / name)
    report = {
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
        "metrics": metrics,
        "main_metric": data.task.main_metric,
        "best_checkpoint_metric": trainer.state.best_metric,
        "steps": trainer.state.global_step,
        "history": trainer.state.log_history,
        "seed": config.seed,
        "data": {
            "source": data.source,
            "fingerprint": data.fingerprint,
            "train_rows": len(data.train.texts) if data.train else 0,
            "eval_rows": {name: len(split.texts) for name, split in data.evals.items()},
        },
        "teacher": config.teacher,
        "arguments": config.to_json(),
        "seconds": round(seconds, 1),
        "machine": {"cpu": platform.processor() or platform.machine(), "threads": torch.get_num_threads(),
                    "cuda": torch.cuda.is_available()},
        "versions": {"qexport": qexport.__version__, "torch": torch.__version__,
                     "transformers": transformers.__version__, "python": platform.python_version()},
    }  # fmt: skip
    (config.output / TRAIN_REPORT).unlink(missing_ok=True)
    for file in sorted(part.iterdir()):
        os.replace(file, config.output / file.name)
    part.rmdir()
    atomic_write_text(config.output / TRAIN_REPORT, json.dumps(report, indent=2, default=float) + "\n")
    if config.logging == "tensorboard":
        for run in (config.output / _CHECKPOINTS).glob("runs/*"):
            (config.output / "runs").mkdir(exist_ok=True)
            shutil.move(str(run), str(config.output / "runs" / run.name))
    shutil.rmtree(config.output / _CHECKPOINTS, ignore_errors=True)


def _teacher_labels(config: TrainConfig, losses: Losses) -> list[str] | None:
    """Class names of a local teacher in its own order, so that label ids mean the same to both; None if it has no names."""
    if not losses.distils or config.teacher is None or config.regression:
        return None
    file = Path(resolve_model(config.teacher)) / "config.json"
    if not file.is_file():
        return None
    names: dict[str, str] = json.loads(file.read_text(encoding="utf-8")).get("id2label") or {}
    ordered = [names[key] for key in sorted(names, key=int)]
    return None if not ordered or all(name.startswith("LABEL_") for name in ordered) else ordered


def _longest(model: PreTrainedModel) -> int:
    """Positions of the table, less the offset of RoBERTa's padding index."""
    positions = int(model.config.max_position_embeddings)
    roberta = model.config.model_type in ("roberta", "xlm-roberta", "camembert")
    return positions - 1 - int(model.config.pad_token_id) if roberta else positions


def _hub_tokenizer(name: str, output: Path) -> Path:
    """Fetch a hub model's tokenizer into the run's folder and return that folder."""
    from transformers import AutoTokenizer

    folder = output / _CHECKPOINTS / "tokenizer"
    AutoTokenizer.from_pretrained(name).save_pretrained(folder)
    return folder


def _need_tensorboard() -> None:
    import importlib.util

    if importlib.util.find_spec("tensorboard") is None:
        raise MissingPackageError("--logging tensorboard needs a package: pip install 'qexport[tensorboard]'")


