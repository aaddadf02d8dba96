"""The projection of a student's hidden states to the width of its teacher: fitted, trained, dropped.

One linear layer for all hidden states, the output of the embeddings included, as in TinyBERT's released code
(arXiv 1909.10351, equations 8 and 9). While a stage lasts it is a module of the student, so that it is
optimised, saved and resumed with it; a finished model has none. That it begins at the least squares fit is
ours: released, it is random.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from qexport.training.layer_map import LayerMap

__all__ = ["attach_projection", "drop_projection", "fit_linear", "hidden_states", "projection_of"]

_NAME = "qexport_projection"
_RIDGE = 1e-6  # of the mean variance: keeps the fit defined where there are fewer tokens than channels


def projection_of(model: nn.Module) -> nn.Linear | None:
    """The projection that `attach_projection` gave to `model`, or None."""
    found = getattr(model, _NAME, None)
    return found if isinstance(found, nn.Linear) else None


def drop_projection(model: nn.Module) -> None:
    """Take the projection away, if there is one."""
    if projection_of(model) is not None:
        delattr(model, _NAME)


def attach_projection(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    layers: LayerMap,
    batches: Iterable[Mapping[str, Tensor]],
) -> None:
    """Give `student` a projection, the linear map to the teacher's hidden states of least squared error.

    Args:
        student: float, width d.
        teacher: width D.
        layers: which states are compared.
        batches: inputs by name with attention_mask; padding is left out.
    """

    def pairs() -> Iterator[tuple[Tensor, Tensor]]:
        for batch in batches:
            targets = hidden_states(teacher, batch)
            yield from zip(
                hidden_states(student, batch), [targets[state] for state in layers.states], strict=True
            )

    weight, bias = fit_linear(pairs())
    projection = nn.Linear(weight.shape[1], weight.shape[0])
    with torch.no_grad():
        projection.weight.copy_(weight)
        projection.bias.copy_(bias)
    student.add_module(_NAME, projection.to(student.device))


@torch.no_grad()
def hidden_states(model: PreTrainedModel, batch: Mapping[str, Tensor]) -> list[Tensor]:
    """Hidden states of the real tokens in evaluation mode, embeddings first: float32 [T, D] each.

    Args:
        model: its mode is kept.
        batch: inputs by name, attention_mask [B, S] among them; what the model does not take is left out.
    """
    accepted = inspect.signature(model.forward).parameters
    features = {name: value.to(model.device) for name, value in batch.items() if name in accepted}
    features.pop("labels", None)
    was_training = model.training
    model.train(False)
    try:
        states = model(**features, output_hidden_states=True).hidden_states
    finally:
        model.train(was_training)
    kept = features["attention_mask"].bool()
    return [state[kept] for state in states]


def fit_linear(pairs: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Weight and bias with the least squared error of x @ weight.T + bias = y.

    Args:
        pairs: x float32 [T, d] and y float32 [T, D], any number of them, at least one.
    Returns:
        float32 [D, d] and [D], on the CPU.
    """
    gram: Tensor | None = None
    cross: Tensor | None = None
    for x, y in pairs:
        ones = torch.ones(len(x), 1, dtype=torch.float64)
        a = torch.cat([x.double().cpu(), ones], 1)
        b = y.double().cpu()
        gram = a.T @ a if gram is None else gram + a.T @ a
        cross = a.T @ b if cross is None else cross + a.T @ b
    assert gram is not None and cross is not None
    width = len(gram) - 1
    ridge = torch.full((width + 1,), float(gram.diagonal()[:width].mean()) * _RIDGE, dtype=torch.float64)
    ridge[width] = 0.0
    solved = torch.linalg.solve(gram + torch.diag(ridge), cross).float()
    return solved[:width].T.contiguous(), solved[width].contiguous()
