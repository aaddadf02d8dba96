"""Student and teacher of a run: loading both, and the checks that they fit each other and the task."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel

from qexport.errors import UsageError
from qexport.training.config import TrainConfig
from qexport.training.kinds import get_kind, kind_of_config
from qexport.training.layer_map import LayerMap, uniform_map
from qexport.training.models import is_student, load_config, load_encoder, resolve_model
from qexport.training.quant_config import QuantConfig
from qexport.training.recipes.base import Losses
from qexport.training.tasks import Task

__all__ = ["layers_to_compare", "load_pair", "longest_sequence", "quantization_of", "teacher_labels"]

_DROPOUTS = (
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "dropout",
    "attention_dropout",
    "classifier_dropout",
    "seq_classif_dropout",
)
"""Fields of config.json that hold a dropout rate, over all supported architectures."""


def load_pair(
    config: TrainConfig, losses: Losses, source: str, task: Task
) -> tuple[PreTrainedModel, PreTrainedModel | None]:
    """The model to train, in float, and the teacher where the losses need one.

    Args:
        config: the run.
        losses: weights of the training loss.
        source: where the model to train starts from: folder, hub id or "minilm".
        task: its labels become those of the model.
    Raises:
        UsageError: a start that is a quantised student, a teacher with other labels.
        UnsupportedModelError, EnvironmentProblem: see `load_encoder`.
    """
    kind = get_kind(task.kind)
    settings = kind.settings(task)
    if is_student(resolve_model(source)):
        raise UsageError(f"{source} is a quantised student; start from a float model folder")
    teacher = None
    if losses.distils and config.teacher is not None:
        teacher = _teacher(config.teacher, task)
    if config.dropout is not None:
        for name in _DROPOUTS:
            settings[name] = config.dropout
    model = load_encoder(source, kind=kind, **settings)
    return model, teacher


def _teacher(name: str, task: Task) -> PreTrainedModel:
    """A teacher with the head of the task's kind.

    Raises:
        UsageError: another head, or one for another task.
    """
    kind = get_kind(task.kind)
    teacher = load_encoder(name)
    found = kind_of_config(teacher.config)
    problem = kind.misfit(teacher.config, task)
    if found is not None and found.architecture != kind.architecture:
        problem = f"is a {found.model}, task {task.name} needs a {kind.model}"
    if problem:
        raise UsageError(f"the teacher {name} {problem}; fine-tune a teacher on this task with --method fp32")
    return teacher


def layers_to_compare(model: PreTrainedModel, teacher: PreTrainedModel, losses: Losses) -> LayerMap | None:
    """The layers that a student's are compared with; None where only logits are.

    Depth, width and heads of the two may differ.

    Raises:
        UsageError: they do not read the same tokens, or the student is deeper.
    """
    if model.config.vocab_size != teacher.config.vocab_size:
        raise UsageError(
            "student and teacher must read the same tokens, their vocabularies have "
            f"{model.config.vocab_size} and {teacher.config.vocab_size}; take a "
            "teacher with the student's tokenizer"
        )
    if losses.hidden == 0 and losses.attention == 0:
        return None
    return uniform_map(model.config.num_hidden_layers, teacher.config.num_hidden_layers)


def teacher_labels(config: TrainConfig) -> list[str] | None:
    """Class names of the teacher in its own order, so that a label id means the same to both.

    Returns:
        None where there is no teacher, for regression, or if its config.json has no names.
    Raises:
        UsageError, UnsupportedModelError, EnvironmentProblem: see `load_config`.
    """
    if config.teacher is None or config.regression:
        return None
    names: dict[Any, str] = load_config(config.teacher).id2label or {}
    ordered = [names[key] for key in sorted(names)]
    return None if not ordered or all(name.startswith("LABEL_") for name in ordered) else ordered


def longest_sequence(config: PreTrainedConfig) -> int:
    """Positions of the table, less the offset of RoBERTa's padding index."""
    positions = int(config.max_position_embeddings)
    roberta = config.model_type in ("roberta", "xlm-roberta", "camembert")
    return positions - 1 - int(config.pad_token_id) if roberta else positions


def quantization_of(model: Any) -> QuantConfig | None:
    """How a model is quantised; None for a float model of full width."""
    stored = getattr(model.config, "quantization_config", None)
    if stored is None:
        return None
    return QuantConfig.from_dict(stored if isinstance(stored, dict) else stored.to_dict())
