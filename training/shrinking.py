"""A smaller encoder out of a fine-tuned one: fewer layers, narrower hidden states, fewer and smaller heads.

Where TinyBERT (arXiv 1909.10351) starts a student from general distillation on a large corpus, this makes one
from the teacher and a few hundred training rows. It is our own design:

1. Layer m is layer g(m) of the teacher, see `uniform_map`. Heads and neurons are its first ones, so it is
   put in order of importance before (`reorder`).
2. Hidden channels: greedily, the one that the channels picked so far explain least (pivoted Cholesky of the
   covariance over the compared states).
3. A matrix that reads hidden states reads all of the teacher's, each as the best linear function of the
   channels that are left (least squares over its own inputs); one that writes them keeps the rows of those.
4. Smaller heads: the scores of a head are a bilinear form in its inputs, its output is a linear map of them;
   both are replaced by the best ones of lower rank, in the metric of the inputs (singular values).
5. LayerNorm sees fewer channels, so its weight and bias make up for the mean ratio of the deviations and the
   mean shift of the means.

A student of the teacher's own size is the teacher.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from qexport.errors import UnsupportedModelError, UsageError
from qexport.training.attention import ATTENTION_NAME
from qexport.training.layer_map import LayerMap, uniform_map
from qexport.training.projection import hidden_states
from qexport.training.recipes.base import StudentSize
from qexport.training.width import Layer, encoder_layers

__all__ = ["pick_channels", "shrink", "size_of"]

Batches = Callable[[], Iterable[Mapping[str, Tensor]]]
"""Gives the same batches, inputs by name, at each call."""

_RIDGE = 1e-6  # of the mean variance


def size_of(config: PreTrainedConfig) -> StudentSize:
    """The size of the encoder with this configuration."""
    neurons = config.hidden_dim if config.model_type == "distilbert" else config.intermediate_size
    return StudentSize(
        layers=config.num_hidden_layers,
        hidden_size=config.hidden_size,
        intermediate_size=neurons,
        heads=config.num_attention_heads,
    )


def _check(size: StudentSize, teacher: StudentSize) -> None:
    """Refuse what cannot be made.

    Raises:
        UsageError: larger than the teacher, or heads that do not divide the width.
    """
    for name, wanted in dataclasses.asdict(size).items():
        there = getattr(teacher, name)
        if wanted > there:
            option = f"--{name.replace('_', '-')}"
            raise UsageError(
                f"a student is made of its teacher's layers and may not be larger: {option} is {wanted}, the "
                f"teacher has {there}; lower it, or start from a model of that size with --model"
            )
    if size.hidden_size % size.heads:
        raise UsageError(
            f"--hidden-size must be a multiple of --heads, got {size.hidden_size} and {size.heads}"
        )


def _resized(config: PreTrainedConfig, size: StudentSize) -> PreTrainedConfig:
    """The configuration of an encoder of that size, all else as in `config`."""
    result: Any = copy.deepcopy(config)
    if getattr(config, "embedding_size", None) == config.hidden_size:  # ELECTRA without a projection
        result.embedding_size = size.hidden_size
    result.num_hidden_layers, result.hidden_size = size.layers, size.hidden_size
    setattr(
        result,
        "hidden_dim" if config.model_type == "distilbert" else "intermediate_size",
        size.intermediate_size,
    )
    result.num_attention_heads = size.heads
    config_of_size: PreTrainedConfig = result
    return config_of_size


def shrink(teacher: PreTrainedModel, size: StudentSize, batches: Batches) -> PreTrainedModel:
    """A student of `size` that computes what `teacher` does, as nearly as this can be without training.

    Args:
        teacher: float32, heads and neurons in order of importance.
        size: of the student.
        batches: rows of the task, with attention_mask.
    Raises:
        UsageError: a size that cannot be; UnsupportedModelError: an architecture that cannot be cut.
    """
    whole = size_of(teacher.config)
    _check(size, whole)
    student: PreTrainedModel = type(teacher)(_resized(teacher.config, size))
    student.set_attn_implementation(ATTENTION_NAME)
    for name, _ in list(student.named_children()):
        if getattr(teacher, name) is None:  # sentence encoders are loaded without BERT's pooler
            setattr(student, name, None)
    layers = uniform_map(size.layers, whole.layers)
    if size.hidden_size < whole.hidden_size:
        kept = pick_channels(_covariance(teacher, layers, batches), size.hidden_size)
    else:
        kept = torch.arange(whole.hidden_size)
    inputs = _Inputs(teacher, student, layers, kept)
    if (
        size.hidden_size < whole.hidden_size
        or whole.hidden_size // whole.heads != size.hidden_size // size.heads
    ):
        inputs.watch(batches)
    _fill(student, teacher, layers, kept, inputs)
    return student


@torch.no_grad()
def _covariance(model: PreTrainedModel, layers: LayerMap, batches: Batches) -> Tensor:
    """Of the channels over all compared states, float64 [D, D]."""
    size = model.config.hidden_size
    total, outer, count = torch.zeros(size).double(), torch.zeros(size, size).double(), 0
    for batch in batches():
        found = hidden_states(model, batch)
        for index in layers.states:
            state = found[index].double()
            total += state.sum(0)
            outer += state.T @ state
            count += len(state)
    mean = total / count
    return outer / count - torch.outer(mean, mean)


def pick_channels(covariance: Tensor, count: int) -> Tensor:
    """The channels that explain the others best, picked one by one: pivoted Cholesky.

    Args:
        covariance: float64 [D, D].
        count: how many of them.
    Returns:
        int64 [count], rising.
    """
    rest = covariance.clone()
    picked: list[int] = []
    for _ in range(count):
        left = rest.diagonal().clone()
        left[picked] = -math.inf
        channel = int(left.argmax())
        picked.append(channel)
        pivot = float(rest[channel, channel])
        if pivot > 0:
            column = rest[:, channel] / math.sqrt(pivot)
            rest -= torch.outer(column, column)
    return torch.tensor(sorted(picked))


@dataclass(slots=True)
class _Moments:
    """Sums over the inputs x of a matrix, a 1 appended to each."""

    outer: Tensor
    """float64 [D + 1, D + 1]."""

    def readings(self, kept: Tensor) -> Tensor:
        """All D + 1 as the best linear function of those kept, float64 [D + 1, d + 1]; the last is the 1."""
        width = len(self.outer) - 1
        chosen = torch.cat([kept, torch.tensor([width])])
        inner = self.outer[chosen][:, chosen]
        result: Tensor = torch.linalg.solve(inner + _ridge(inner), self.outer[chosen]).T.clone()
        result[chosen] = torch.eye(len(chosen), dtype=torch.float64)
        return result

    def root(self, kept: Tensor) -> Tensor:
        """L with L L^T the second moments of what is kept and the 1, float64 [d + 1, d + 1], lower."""
        chosen = torch.cat([kept, torch.tensor([len(self.outer) - 1])])
        inner = self.outer[chosen][:, chosen]
        inner = inner / inner[-1, -1]
        lower: Tensor = torch.linalg.cholesky(inner + _ridge(inner))
        return lower


def _ridge(moments: Tensor) -> Tensor:
    return torch.eye(len(moments), dtype=torch.float64) * float(moments.diagonal()[:-1].mean()) * _RIDGE


@dataclass(slots=True)
class _Norm:
    """How the statistics of kept channels compare with those of all, over the inputs of a LayerNorm."""

    ratio: float = 0.0
    """Sum of the deviation of the kept over that of all."""
    shift: float = 0.0
    """Sum of the mean of the kept less that of all, in deviations of all."""
    count: int = 0


class _Inputs:
    """What the matrices and LayerNorms of a teacher read on real tokens, collected through hooks."""

    def __init__(
        self, teacher: PreTrainedModel, student: PreTrainedModel, layers: LayerMap, kept: Tensor
    ) -> None:
        self.teacher, self.kept = teacher, kept
        self.moments: dict[nn.Module, _Moments] = {}
        self.norms: dict[nn.Module, _Norm] = {}
        found = encoder_layers(teacher)
        self._readers: list[nn.Module] = []
        for number in layers.layers:
            self._readers += [found[number - 1].query, found[number - 1].up]
        inside = {module for layer in found for module in layer.linears}
        for name, module in student.named_modules():
            origin = teacher.get_submodule(_origin(name, layers))
            if isinstance(module, nn.Linear) and isinstance(origin, nn.Linear) and origin not in inside:
                if module.in_features != origin.in_features:
                    self._readers.append(origin)
            elif isinstance(module, nn.LayerNorm) and module.weight.shape != origin.weight.shape:
                self.norms[origin] = _Norm()
        self._mask: Tensor | None = None

    @torch.no_grad()
    def watch(self, batches: Batches) -> None:
        """Run the teacher and take the sums."""
        handles = [module.register_forward_pre_hook(self._read) for module in self._readers]
        handles += [module.register_forward_pre_hook(self._normalise) for module in self.norms]
        try:
            for batch in batches():
                self._mask = batch["attention_mask"].bool()
                hidden_states(self.teacher, batch)
        finally:
            for handle in handles:
                handle.remove()

    def _tokens(self, value: Tensor) -> Tensor:
        """[B, S, D] of real tokens, or [B, D] as it is."""
        assert self._mask is not None
        return value[self._mask] if value.dim() == 3 else value

    def _read(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        x = self._tokens(inputs[0]).double().cpu()
        x = torch.cat([x, torch.ones(len(x), 1).double()], 1)
        entry = self.moments.setdefault(module, _Moments(torch.zeros(x.shape[1], x.shape[1]).double()))
        entry.outer += x.T @ x

    def _normalise(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        x = self._tokens(inputs[0]).double().cpu()
        part, entry = x[:, self.kept], self.norms[module]
        deviation = x.std(1, correction=0)
        entry.ratio += float((part.std(1, correction=0) / deviation).sum())
        entry.shift += float(((part.mean(1) - x.mean(1)) / deviation).sum())
        entry.count += len(x)


def _origin(name: str, layers: LayerMap) -> str:
    """The teacher's name of a module or parameter of the student."""
    return re.sub(r"\.layer\.(\d+)(?=\.|$)", lambda match: f".layer.{layers.layers[int(match[1])] - 1}", name)


@torch.no_grad()
def _fill(
    student: PreTrainedModel, teacher: PreTrainedModel, layers: LayerMap, kept: Tensor, inputs: _Inputs
) -> None:
    """Give every parameter of `student` its first value."""
    done: set[nn.Module] = set()
    theirs = encoder_layers(teacher)
    for layer, number in zip(encoder_layers(student), layers.layers, strict=True):
        _fill_layer(layer, theirs[number - 1], kept, inputs)
        done.update(layer.linears)
    for name, module in student.named_modules():
        if module in done or not any(True for _ in module.parameters(recurse=False)):
            continue
        origin = teacher.get_submodule(_origin(name, layers))
        if isinstance(module, nn.Linear) and isinstance(origin, nn.Linear):
            rows = kept if module.out_features != origin.out_features else None
            read = inputs.moments.get(origin) if module.in_features != origin.in_features else None
            _set(module, *_reading(origin, rows, read, kept))
        elif isinstance(module, nn.Embedding) and isinstance(origin, nn.Embedding):
            whole = module.weight.shape == origin.weight.shape
            module.weight.copy_(origin.weight if whole else origin.weight[:, kept])
        elif isinstance(module, nn.LayerNorm) and isinstance(origin, nn.LayerNorm):
            norm = inputs.norms.get(origin)
            if norm is None:
                module.load_state_dict(origin.state_dict())
            else:
                module.weight.copy_((origin.weight * norm.ratio / norm.count)[kept])
                module.bias.copy_((origin.bias + origin.weight * norm.shift / norm.count)[kept])
        else:
            raise UnsupportedModelError(
                f"{name}: a {type(module).__name__} cannot be made smaller; start from a small model with "
                "--model"
            )


def _set(linear: nn.Linear, weight: Tensor, bias: Tensor | None) -> None:
    linear.weight.copy_(weight)
    if linear.bias is not None and bias is not None:
        linear.bias.copy_(bias)


def _reading(
    origin: nn.Linear, rows: Tensor | None, read: _Moments | None, kept: Tensor
) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of `origin` with these outputs, reading the channels that are kept; None for all."""
    weight: Tensor = origin.weight
    bias: Tensor | None = origin.bias
    if rows is not None:
        weight, bias = weight[rows], None if bias is None else bias[rows]
    if read is None:
        return weight, bias
    joined = _joined(weight, bias) @ read.readings(kept)
    return joined[:, :-1], joined[:, -1]


def _fill_layer(layer: Layer, origin: Layer, kept: Tensor, inputs: _Inputs) -> None:
    """The matrices of one layer."""
    narrower = layer.query.in_features != origin.query.in_features
    moments = inputs.moments.get(origin.query)
    columns = kept if narrower else torch.arange(origin.query.in_features)
    neurons = torch.arange(layer.up.out_features)
    _set(layer.up, *_reading(origin.up, neurons, inputs.moments.get(origin.up) if narrower else None, kept))
    _set(layer.down, origin.down.weight[kept][:, neurons], origin.down.bias[kept])
    size, whole = layer.head_size, origin.head_size
    heads = layer.query.out_features // size
    shift = origin.output.bias.double()
    for head in range(heads):
        old = torch.arange(head * whole, (head + 1) * whole)
        new = slice(head * size, (head + 1) * size)
        query, key, value = (
            _joined(*_reading(linear, old, moments if narrower else None, kept))
            for linear in (origin.query, origin.key, origin.value)
        )
        output = origin.output.weight[:, old].double()
        if size == whole:
            parts = (query, key, value, output[kept])
        else:
            assert moments is not None
            root = moments.root(columns)
            output = output[kept]
            parts = _smaller_head(query, key, value, output, root, size)
        for linear, part in zip((layer.query, layer.key, layer.value), parts, strict=False):
            rank = len(part)
            linear.weight[new][:rank] = part[:, :-1].float()
            if linear.bias is not None:
                linear.bias[new] = 0.0
                linear.bias[new][:rank] = part[:, -1].float()
            if rank < size and linear is layer.key:  # larger heads: the rest is in no score, but can learn
                linear.weight[new][rank:] = 0.0
        rank = parts[3].shape[1]
        layer.output.weight[:, new] = 0.0
        layer.output.weight[:, new][:, :rank] = parts[3].float()
    if layer.output.bias is not None:
        layer.output.bias.copy_(shift[kept])


def _joined(weight: Tensor, bias: Tensor | None) -> Tensor:
    """[weight | bias], float64 [N, K + 1]."""
    column = torch.zeros(len(weight)) if bias is None else bias
    return torch.cat([weight.double(), column[:, None].double()], 1)


def _smaller_head(
    query: Tensor, key: Tensor, value: Tensor, output: Tensor, root: Tensor, size: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One head with `size` values for each of Q, K and V, or fewer where it had fewer.

    Args:
        query, key, value: float64 [H, d + 1], the last column the bias.
        output: float64 [d, H].
        root: see `_Moments.root`.
        size: of the new head.
    """
    whole = len(query)
    scale = (size / whole) ** 0.25  # of either factor: scores are divided by the root of the head's size
    left, right = _low_rank((query @ root).T, key @ root, size)
    inverse = torch.linalg.inv(root)
    new_query, new_key = scale * left.T @ inverse, scale * right @ inverse
    out, back = _low_rank(output, value @ root, size)
    return new_query, new_key, back @ inverse, out


def _low_rank(left: Tensor, right: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Two factors with the product nearest to left @ right; float64 [n, k], [k, m] -> [n, r], [r, m].

    r is `rank`, or k where that is less. Both factors have the same share of each singular value.
    """
    q_left, r_left = torch.linalg.qr(left)
    q_right, r_right = torch.linalg.qr(right.T)
    u, values, v = torch.linalg.svd(r_left @ r_right.T)
    rank = min(rank, len(values))
    root = values[:rank].sqrt()
    return (q_left @ u[:, :rank]) * root, root[:, None] * (v[:rank] @ q_right.T)
