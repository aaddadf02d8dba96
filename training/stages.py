"""The stages of a run: what is trained in each, where its model and teacher come from, where it is kept.

A method with several stages keeps each one in a folder of its own, `checkpoints/2-ternary-layers` for one:
checkpoints while it lasts, then the best model, from which the next stage starts. A run that is resumed goes
on in the stage that has no model yet.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, Trainer

from qexport.atomic import atomic_write_text
from qexport.errors import UsageError
from qexport.formats import parse_bits
from qexport.training.batches import Rows
from qexport.training.config import TrainConfig
from qexport.training.data import Encoded
from qexport.training.ghosts import ghost_count
from qexport.training.kinds import get_kind
from qexport.training.models import load_encoder
from qexport.training.pairing import layers_to_compare, load_pair
from qexport.training.projection import attach_projection
from qexport.training.quant_config import QuantConfig
from qexport.training.recipes.base import Losses, Recipe, Stage, StudentSize
from qexport.training.shrinking import shrink, size_of
from qexport.training.splitting import split_student
from qexport.training.student import quantize_model
from qexport.training.tasks import Task, get_task
from qexport.training.width import cut_width, layer_sizes, reorder, unit_importance

__all__ = [
    "FIRST_QUANTISED",
    "RANKING_ROWS",
    "STARTS",
    "Material",
    "StageFolder",
    "build_pair",
    "plan_stages",
]

RANKING_ROWS = 512
"""Training rows on which heads and neurons are ranked, and projections fitted."""

_STUDENT = "student"

FIRST_QUANTISED = (_STUDENT, "ternary")
"""Starts whose latent weights are those of a float model: learned steps begin there."""

_RECORD = "stage.json"
_PART = ".model.part"
_BATCH = 16  # rows in a batch of those

Collate = Callable[[list[dict[str, Any]]], dict[str, torch.Tensor]]


def plan_stages(recipe: Recipe, config: TrainConfig) -> tuple[Stage, ...]:
    """The stages of a run, with the loss weights and epochs that its options ask for.

    A loss option changes the stages that have this loss; --label-weight those that learn from logits. Stages
    that learn from labels alone are left out where the task has none.

    Raises:
        UsageError: loss weights that leave nothing to train on, no teacher, a start other than the teacher.
    """
    single = Stage(name="", start=_STUDENT, losses=recipe.losses, epochs=recipe.optimisation.epochs)
    several = bool(recipe.stages)
    labelled = config.task is None or get_kind(get_task(config.task).kind).labelled
    plan: list[Stage] = []
    quantises = parse_bits(config.bits or recipe.default_bits).weight < 32
    left_out = {}
    for stage in [stage for stage in recipe.stages if quantises or not stage.only_quantised] or [single]:
        if several and plan and not labelled and not stage.losses.distils:
            left_out[stage.name] = plan[-1].name  # learns from labels only: the stage before takes its place
            continue
        losses = _losses(stage.losses, config, everywhere=not several)
        if not labelled:
            if config.label_weight:
                raise UsageError(
                    f"task {config.task} has no labels to learn from; leave --label-weight "
                    f"{config.label_weight:g} out"
                )
            losses = dataclasses.replace(losses, label=0.0)
            if not losses.distils:
                raise UsageError(
                    f"method {recipe.name} learns from labels and task {config.task} has none; take "
                    "ternarybert, lsq-kd or kdlsq, or give --hidden-weight 1 --attention-weight 1 "
                    "--logits-weight 1"
                )
        if not losses.distils and losses.label == 0:
            where = f"stage '{stage.name}' of {recipe.name}: " if several else ""
            raise UsageError(
                f"{where}every loss weight is 0; give at least one of --hidden-weight, --attention-weight, "
                "--logits-weight, --label-weight"
            )
        teacher = left_out.get(stage.teacher, stage.teacher)
        epochs = config.epochs or stage.epochs
        plan.append(dataclasses.replace(stage, losses=losses, epochs=epochs, teacher=teacher))
    for name in ("hidden", "attention", "logits", "label"):
        asked = getattr(config, f"{name}_weight")
        if asked and not any(getattr(stage.losses, name) for stage in plan):
            raise UsageError(
                f"no stage of {recipe.name} has the loss of --{name}-weight {asked:g}; leave it out"
            )
    if config.teacher is None and (several or any(stage.losses.distils for stage in plan)):
        raise UsageError(
            f"method {recipe.name} distils and needs --teacher, a folder made by: qexport train --method fp32"
        )
    if several and recipe.size is None and config.model is not None:
        raise UsageError(f"method {recipe.name} starts from its teacher; leave --model {config.model} out")
    return tuple(plan)


def _losses(default: Losses, config: TrainConfig, *, everywhere: bool) -> Losses:
    def pick(name: str) -> float:
        override = getattr(config, f"{name}_weight")
        value: float = getattr(default, name)
        has_term = value > 0 or (name == "label" and default.logits > 0)
        return float(override) if override is not None and (everywhere or has_term) else value

    return Losses(
        hidden=pick("hidden"), attention=pick("attention"), logits=pick("logits"), label=pick("label")
    )


@dataclass(frozen=True, slots=True)
class StageFolder:
    """Where one stage is kept while the run lasts."""

    path: Path

    @classmethod
    def of(cls, checkpoints: Path, plan: Sequence[Stage], index: int) -> StageFolder:
        """The folder of stage `index`; a run of one stage uses `checkpoints` itself."""
        if len(plan) == 1:
            return cls(checkpoints)
        return cls(checkpoints / f"{index + 1}-{plan[index].name.replace(' ', '-')}")

    @property
    def model(self) -> Path:
        """The best model of a finished stage."""
        return self.path / "model"

    @property
    def finished(self) -> bool:
        """Whether the stage ran to its end."""
        return (self.model / _RECORD).is_file()

    @property
    def begun(self) -> bool:
        """Whether there is a checkpoint to go on from."""
        return any((path / "trainer_state.json").is_file() for path in self.path.glob("checkpoint-*"))

    def record(self) -> dict[str, Any]:
        """What `keep` wrote about the stage."""
        values: dict[str, Any] = json.loads((self.model / _RECORD).read_text(encoding="utf-8"))
        return values

    def keep(self, trainer: Trainer, record: Mapping[str, Any]) -> None:
        """Write the model through a hidden folder, then drop the checkpoints."""
        part = self.path / _PART
        if trainer.is_world_process_zero():
            shutil.rmtree(part, ignore_errors=True)
        trainer.accelerator.wait_for_everyone()
        trainer.save_model(str(part))
        if trainer.is_world_process_zero():
            atomic_write_text(part / _RECORD, json.dumps(record, indent=2, default=float) + "\n")
            shutil.rmtree(self.model, ignore_errors=True)
            os.replace(part, self.model)
            for path in self.path.glob("checkpoint-*"):
                shutil.rmtree(path, ignore_errors=True)
        trainer.accelerator.wait_for_everyone()


@dataclass(frozen=True, slots=True, kw_only=True)
class Material:
    """What a stage may be made of."""

    config: TrainConfig
    quant: QuantConfig | None
    """Of the finished student."""
    source: str
    """Folder, hub id or "minilm" that the first stage starts from."""
    task: Task
    rows: Encoded
    """Training rows."""
    collate: Collate
    """Makes a batch of rows."""
    size: StudentSize | None = None
    """Of a student that is made smaller than its teacher."""
    finished: Mapping[str, Path]
    """Models of the stages before, by name, in their order."""

    @property
    def previous(self) -> PreTrainedModel:
        """The model of the stage before."""
        return load_encoder(str(list(self.finished.values())[-1]))

    def sample(self) -> Iterator[dict[str, torch.Tensor]]:
        """Batches of training rows drawn with the seed of the run, the same at each call."""
        count = min(RANKING_ROWS, len(self.rows))
        picked = np.random.default_rng(self.config.seed).permutation(len(self.rows))[:count]
        rows = Rows(self.rows)
        for start in range(0, count, _BATCH):
            yield self.collate([rows[int(index)] for index in picked[start : start + _BATCH]])

    def student(self) -> QuantConfig:
        """The finished student's quantisation; only methods that quantise have stages."""
        assert self.quant is not None
        return self.quant


def build_pair(stage: Stage, material: Material) -> tuple[PreTrainedModel, PreTrainedModel | None]:
    """The model that a stage trains, and its teacher.

    Raises:
        UsageError, UnsupportedModelError: see `load_pair` and `STARTS`.
    """
    if material.finished:
        model = material.previous
        named = str(material.finished[stage.teacher]) if stage.teacher else material.config.teacher
        teacher = load_encoder(named) if named is not None and stage.losses.distils else None
    else:
        model, teacher = load_pair(material.config, stage.losses, material.source, material.task)
    if stage.start == _STUDENT:  # the projection is fitted to the float model
        _project(stage, material, model, teacher)
        return (model if material.quant is None else quantize_model(model, material.quant)), teacher
    model = STARTS[stage.start](material, model)
    _project(stage, material, model, teacher)
    return model, teacher


def _project(
    stage: Stage, material: Material, model: PreTrainedModel, teacher: PreTrainedModel | None
) -> None:
    """Check that the two can be compared, and attach a projection where hidden states need one."""
    layers = None if teacher is None else layers_to_compare(model, teacher, stage.losses)
    if teacher is None or layers is None or stage.losses.hidden == 0:
        return
    if stage.projects or model.config.hidden_size != teacher.config.hidden_size:
        attach_projection(model, teacher, layers, material.sample())


def _half_width(material: Material, model: PreTrainedModel) -> PreTrainedModel:
    """The best half of a fine-tuned model's heads and neurons, float32.

    Raises:
        UsageError: layers with one head only.
    """
    heads, neurons = layer_sizes(model)
    if heads < 2:
        raise UsageError(
            f"{material.source}: its layers have {heads} attention head, half of which is none; "
            f"method {material.config.method} needs a teacher with at least 2"
        )
    _order(material, model)
    kept_heads, kept_neurons = (heads + 1) // 2, (neurons + 1) // 2
    cut_width(model, heads=kept_heads, neurons=kept_neurons)
    plain = QuantConfig(
        method=material.student().method, bits="32-32-32", kept_heads=kept_heads, kept_neurons=kept_neurons
    )
    model.config.quantization_config = dataclasses.replace(plain, position_bits=32).to_dict()
    return model


def _order(material: Material, model: PreTrainedModel) -> None:
    """Put heads and neurons in order of importance, on training rows drawn with the run's seed."""
    reorder(model, unit_importance(model, material.sample(), kind=get_kind(material.task.kind)))


def _smaller(material: Material, model: PreTrainedModel) -> PreTrainedModel:
    """A smaller float model out of a fine-tuned one; a start that was named as it is."""
    if material.size is None:
        return model
    size, whole = material.size, size_of(model.config)
    if (size.heads, size.intermediate_size) != (whole.heads, whole.intermediate_size):
        _order(material, model)
    return shrink(model, size, material.sample)


def _ghosts(material: Material, model: PreTrainedModel) -> PreTrainedModel:
    """A fine-tuned model's best heads and neurons with ghost modules, float32."""
    config, (heads, neurons) = material.config, layer_sizes(model)
    kept = max(1, round(heads * (0.5 if config.width is None else config.width)))
    _order(material, model)
    quant = dataclasses.replace(
        material.student(),
        bits="32-32-32",
        position_bits=32,
        asymmetric="none",
        kept_heads=kept,
        kept_neurons=max(kept, round(neurons * kept / heads)),
        ghosts=config.ghosts or ghost_count(heads, kept),
        ghost_kernel=config.ghost_kernel or 3,
    )
    return quantize_model(model, quant)


def _quantised(material: Material, model: PreTrainedModel) -> PreTrainedModel:
    """The stage before, quantised."""
    return quantize_model(model, _with_width_of(model, material.student()))


_WIDTH = ("kept_heads", "kept_neurons", "ghosts", "ghost_kernel", "ghost_gain")
"""Fields of QuantConfig that the first stage of a run decides."""


def _with_width_of(model: PreTrainedModel, quant: QuantConfig) -> QuantConfig:
    """`quant` for a model that was cut before."""
    stored = model.config.quantization_config
    values = stored if isinstance(stored, dict) else stored.to_dict()
    return dataclasses.replace(quant, **{name: values[name] for name in _WIDTH})


def _ternary(material: Material, model: PreTrainedModel) -> PreTrainedModel:
    """The stage before, with ternary weights wherever they are split later."""
    final = material.student()
    embedding = 2 if final.split_embedding else final.wea.embedding
    quant = dataclasses.replace(
        final, bits=f"2-{embedding}-{final.wea.activation}", split_weights=False, split_embedding=False
    )
    return quantize_model(model, _with_width_of(model, quant))


def _split(material: Material, model: PreTrainedModel) -> PreTrainedModel:
    """The stage before, each ternary matrix split into two binary ones."""
    return split_student(model, _with_width_of(model, material.student()))


def _previous(material: Material, model: PreTrainedModel) -> PreTrainedModel:
    """The stage before as it is."""
    return model


STARTS: dict[str, Callable[[Material, PreTrainedModel], PreTrainedModel]] = {
    "half-width": _half_width,
    "ternary": _ternary,
    "split": _split,
    "previous": _previous,
    "smaller": _smaller,
    "ghosts": _ghosts,
    "quantised": _quantised,
}
"""What a stage's model is made of: the teacher or the stage before, changed by one of these."""
