"""Distiller: transformers.Trainer with the weighted losses, the metrics of each split, and our samplers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import SequentialSampler
from transformers import EvalPrediction, PreTrainedModel, Trainer, TrainerState
from transformers.trainer import TRAINER_STATE_NAME

from qexport.errors import UsageError
from qexport.training.batches import GroupByLength, Order, Rows, Shuffle
from qexport.training.callbacks import Epochs
from qexport.training.distill import attention_loss, hidden_loss
from qexport.training.kinds import Kind, Named
from qexport.training.layer_map import LayerMap
from qexport.training.pairing import layers_to_compare
from qexport.training.projection import projection_of
from qexport.training.quantizers import ActivationQuantizer
from qexport.training.recipes.base import LearnedSteps, Losses
from qexport.training.step_rates import set_step_rates
from qexport.training.unused import unused_parameters

__all__ = ["Distiller"]


class Distiller(Trainer):
    """Trainer with the weighted sum of the four losses; the teacher runs once per batch without gradient."""

    def __init__(
        self,
        *args: Any,
        model: PreTrainedModel,
        teacher: PreTrainedModel | None,
        losses: Losses,
        kind: Kind,
        temperature: float,
        steps: LearnedSteps | None = None,
        tuning: Rows | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(model, *args, **kwargs)
        self.student = model
        self.compute_metrics = self._metrics
        self.steps = steps
        self.teacher, self.losses, self.kind, self.temperature = teacher, losses, kind, temperature
        self.tuning, self._evaluated = tuning, tuning
        self.decoding: Mapping[str, float] = {}
        """How outputs are decoded, chosen by the tuning rows before each evaluation; see `Judge.tuned`."""
        self.model_accepts_loss_kwargs = False  # the loss is a mean over the batch, accumulation divides it
        self._sums: dict[str, float] = {}
        self._count = 0
        self.layers: LayerMap | None = None
        if teacher is not None:
            frozen: nn.Module = teacher
            frozen.requires_grad_(False).eval().to(self.args.device)
            self.layers = layers_to_compare(model, teacher, losses)
        self._freeze_unused()

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The weighted sum; in evaluation only the label loss, computed without autocast."""
        features = {name: value for name, value in inputs.items() if name != "labels"}
        labels = inputs["labels"]
        if not model.training:
            # accelerate's --bf16 wraps forward, in evaluation too; an exported file computes in float32
            plain = type(self.student).forward
            with torch.autocast(self.args.device.type, enabled=False):
                named = self.kind.read(plain(self.student, **features), features)
            loss = self.kind.label_loss(named, labels)
            return (loss, {"joined": self.kind.join(named)}) if return_outputs else loss
        outputs, terms = self._terms(model, features, labels)
        for name, term in terms.items():
            self._sums[name] = self._sums.get(name, 0.0) + float(term.detach())
        self._count += 1
        loss = torch.stack(list(terms.values())).sum()
        return (loss, outputs) if return_outputs else loss

    def _terms(
        self, model: nn.Module, features: dict[str, Any], labels: Tensor
    ) -> tuple[Any, dict[str, Tensor]]:
        """What the model gives for one batch, and the weighted terms of its loss."""
        inner = {
            "output_hidden_states": self.losses.hidden > 0,
            "output_attentions": self.losses.attention > 0,
        }
        outputs = model(**features, **inner)
        named = self.kind.read(outputs, features)
        terms: dict[str, Tensor] = {}
        if self.losses.distils:
            if self.teacher is None:
                raise UsageError("distillation needs --teacher")
            with torch.no_grad():
                target = self.teacher(**features, **inner)
            terms = self._distillation(outputs, target, named, features)
        if self.losses.label > 0:
            terms["label"] = self.losses.label * self.kind.label_loss(named, labels)
        return outputs, terms

    def _freeze_unused(self) -> None:
        """Let parameters that get no gradient require none: see `unused_parameters`.

        One row is run in training mode; random state and stored scales are afterwards what they were.
        """
        rows: Any = self.train_dataset
        batch: Any = self._prepare_inputs(self.data_collator([rows[0]]))
        features = {name: value for name, value in batch.items() if name != "labels"}
        student, was_training = self.student, self.student.training
        scales = [
            buffer
            for module in student.modules() if isinstance(module, ActivationQuantizer)
            for buffer in module.buffers()
        ]  # fmt: skip
        before = [scale.clone() for scale in scales]
        nn.Module.train(student, True)
        with torch.random.fork_rng():
            _, terms = self._terms(student, features, batch["labels"])
        nn.Module.train(student, was_training)
        for scale, value in zip(scales, before, strict=True):
            scale.data.copy_(value)
        for name in unused_parameters(student, torch.stack(list(terms.values())).sum()):
            student.get_parameter(name).requires_grad_(False)

    def _distillation(self, student: Any, teacher: Any, named: Named, features: Named) -> dict[str, Tensor]:
        """The weighted terms between two model outputs; `named` are the student's by name."""
        weights, layers = self.losses, self.layers
        terms: dict[str, Tensor] = {}
        if weights.hidden > 0 and layers is not None:
            projection = projection_of(self.student)
            states = student.hidden_states if projection is None else map(projection, student.hidden_states)
            targets = [teacher.hidden_states[index] for index in layers.states]
            terms["hidden"] = weights.hidden * hidden_loss(list(states), targets)
        if weights.attention > 0 and layers is not None:
            scores = [teacher.attentions[index] for index in layers.attentions]
            terms["attention"] = weights.attention * attention_loss(student.attentions, scores)
        if weights.logits > 0:
            target = self.kind.read(teacher, features)
            terms["logits"] = weights.logits * self.kind.logits_loss(
                named, target, features=features, temperature=self.temperature
            )
        return terms

    def restore_finished(self, checkpoint: Path) -> bool:
        """Take the model of a training that had made its last step before it was stopped.

        transformers would train on to the end of the pass.

        Args:
            checkpoint: the newest one.
        Returns:
            false if steps are left; nothing is changed then.
        """
        state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
        if state.global_step < self.args.max_steps:
            return False
        self.state = state
        best = state.best_model_checkpoint if self.args.load_best_model_at_end else None
        # the folder may have been moved since
        chosen = checkpoint if best is None else checkpoint.parent / Path(best).name
        self._load_from_checkpoint(str(chosen if chosen.is_dir() else checkpoint))
        return True

    def evaluation_loop(self, dataloader: Any, *args: Any, **kwargs: Any) -> Any:
        """transformers' loop; the metrics are those of the rows it runs over, the tuning rows run first."""
        if self.tuning is not None:
            self._evaluated = self.tuning
            super().evaluation_loop(
                self.get_eval_dataloader(self.tuning), "Tuning", prediction_loss_only=False
            )
        self._evaluated = dataloader.dataset
        return super().evaluation_loop(dataloader, *args, **kwargs)

    def _metrics(self, prediction: EvalPrediction) -> dict[str, float]:
        """The metrics of the evaluation rows, whose outputs come in the order of the batches."""
        rows = self._evaluated
        assert rows is not None and rows.judge is not None
        found = np.asarray(prediction.predictions, dtype=np.float32)
        joined = np.empty_like(found)
        joined[rows.order] = found
        if rows is self.tuning:
            self.decoding = rows.judge.tuned(joined)
            return {}
        return rows.judge.score(joined, self.decoding)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """transformers' AdamW; learned steps have learning rates of their own."""
        fresh = self.optimizer is None
        optimizer = super().create_optimizer(model)
        if fresh and self.steps is not None:
            student: Any = self.model if model is None else model
            set_step_rates(optimizer, student, self.steps)
        return optimizer

    def _get_eval_sampler(self, eval_dataset: Any) -> Any:
        """In order: evaluation rows are sorted by length already, and metrics go by their order."""
        return SequentialSampler(eval_dataset)

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        rows: Any = train_dataset or self.train_dataset
        if self.args.train_sampling_strategy == "random":
            order: Order = Shuffle(len(rows), self.args.seed)
        else:
            batch = self.args.train_batch_size * self.args.gradient_accumulation_steps
            order = GroupByLength(rows.lengths(), batch * self.args.world_size, self.args.seed)
        self.add_callback(Epochs(order))
        return order

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add the mean of each loss term since the last line."""
        if "loss" in logs and self._count:
            sums = [value / self._count for value in self._sums.values()]
            means = self.accelerator.reduce(torch.tensor(sums, device=self.args.device), reduction="mean")
            for name, mean in zip(self._sums, means, strict=True):
                logs[f"loss_{name}"] = round(float(mean), 5)
            self._sums, self._count = {}, 0
        super().log(logs, *args, **kwargs)
