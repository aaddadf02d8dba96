"""Narrower encoders: attention heads and feed-forward neurons ranked by importance, and cut.

The width of the hidden states stays; a layer keeps the first of its heads and neurons, so an encoder is put
in order of importance before it is cut. Source: DynaBERT (Hou et al. 2020), sections 2.1 and 2.2, as in its
released code; the importance is the first-order change of the loss when a head or a neuron is removed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from qexport.errors import UnsupportedModelError
from qexport.training.kinds import Kind, get_kind

__all__ = [
    "Importance", "Layer", "cut_width", "encoder_layers", "layer_sizes", "reading_layers", "reorder",
    "unit_importance",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Layer:
    """The modules of one layer whose shapes change with its width."""

    attention: nn.Module
    query: nn.Linear
    key: nn.Linear
    value: nn.Linear
    output: nn.Linear
    """Reads the joined heads."""
    up: nn.Linear
    """Writes the neurons."""
    down: nn.Linear
    """Reads the neurons."""

    @property
    def linears(self) -> tuple[nn.Linear, ...]:
        """All of them."""
        return (self.query, self.key, self.value, self.output, self.up, self.down)

    @property
    def head_size(self) -> int:
        """Values of one head."""
        size = self.attention.attention_head_size
        assert isinstance(size, int)
        return size


@dataclass(frozen=True, slots=True)
class Importance:
    """What each unit of one layer is worth; larger is more."""

    heads: Tensor
    """float32 [H]."""
    neurons: Tensor
    """float32 [F]."""


def _linear(model: nn.Module, name: str) -> nn.Linear:
    module = model.get_submodule(name)
    if not isinstance(module, nn.Linear):
        raise AttributeError(f"{name} is a {type(module).__name__}, not a linear layer")
    return module


def encoder_layers(model: nn.Module) -> list[Layer]:
    """The layers of an encoder whose linears are not quantised yet.

    Raises:
        UnsupportedModelError: an architecture with other modules.
    """
    found = []
    for path, module in model.named_modules():
        if not type(module).__name__.endswith("SelfAttention"):
            continue
        if hasattr(module, "q_lin"):  # DistilBERT
            prefix = path.rpartition(".")[0]
            names = [f"{path}.{name}" for name in ("q_lin", "k_lin", "v_lin", "out_lin")]
            names += [f"{prefix}.ffn.lin1", f"{prefix}.ffn.lin2"]
        else:
            prefix = path.removesuffix(".attention.self")
            names = [f"{path}.{name}" for name in ("query", "key", "value")]
            names += [f"{prefix}.{name}.dense" for name in ("attention.output", "intermediate", "output")]
        try:
            linears = [_linear(model, name) for name in names]
        except AttributeError as error:
            raise UnsupportedModelError(
                f"{path}: heads and neurons of this architecture cannot be cut ({error}); "
                "use a method that keeps the width"
            ) from error
        found.append(Layer(module, *linears))
    return found


def layer_sizes(model: nn.Module) -> tuple[int, int]:
    """Heads and feed-forward neurons of a layer."""
    layer = encoder_layers(model)[0]
    return layer.query.out_features // layer.head_size, layer.up.out_features


def reading_layers(model: nn.Module) -> list[str]:
    """Paths of the linears that read heads and of those that read neurons, layer by layer.

    Raises:
        UnsupportedModelError: an architecture with other modules.
    """
    names = {module: name for name, module in model.named_modules()}
    return [names[linear] for layer in encoder_layers(model) for linear in (layer.output, layer.down)]


def unit_importance(
    model: nn.Module, batches: Iterable[Mapping[str, Tensor]], *, kind: Kind | None = None
) -> list[Importance]:
    """Importance of heads and neurons, layer by layer, summed over batches.

    A head: |d loss / d mask of the head|, which is the sum of weight times gradient over its columns of the
    output matrix. A neuron: |sum of w dw + b db over what makes it| + |sum of w dw over what reads it|.

    Args:
        model: fine-tuned, float32; its gradients are gone afterwards.
        batches: what the model takes, and labels as `Kind.labels` gives them.
        kind: whose label loss it is; default: classification.
    """
    head = kind or get_kind("classification")
    layers = encoder_layers(model)
    wanted = {
        parameter for layer in layers for module in (layer.output, layer.up, layer.down)
        for parameter in module.parameters()
    }  # fmt: skip
    before = {parameter: parameter.requires_grad for parameter in model.parameters()}
    training = model.training
    model.train(False)
    for parameter in before:
        parameter.requires_grad_(parameter in wanted)
    heads, neurons = layer_sizes(model)
    totals = [Importance(torch.zeros(heads), torch.zeros(neurons)) for _ in layers]
    try:
        for batch in batches:
            features = {name: value for name, value in batch.items() if name != "labels"}
            loss = head.label_loss(head.read(model(**features), features), batch["labels"])
            torch.autograd.backward(loss)
            for layer, total in zip(layers, totals, strict=True):
                columns = _change(layer.output.weight).sum(0)
                total.heads.add_(columns.view(heads, layer.head_size).sum(-1).abs().cpu())
                made = _change(layer.up.weight).sum(1)
                if layer.up.bias is not None:
                    made = made + _change(layer.up.bias)
                total.neurons.add_((made.abs() + _change(layer.down.weight).sum(0).abs()).cpu())
            model.zero_grad(set_to_none=True)
    finally:
        for parameter, wants in before.items():
            parameter.requires_grad_(wants)
        model.train(training)
    return totals


def _change(parameter: Tensor) -> Tensor:
    """Weight times gradient: minus the first-order change of the loss when the weight becomes 0."""
    assert parameter.grad is not None
    return parameter.detach() * parameter.grad


@torch.no_grad()
def reorder(model: nn.Module, importance: list[Importance]) -> None:
    """Put heads and neurons in order of decreasing importance, in place; the model computes the same."""
    for layer, worth in zip(encoder_layers(model), importance, strict=True):
        heads = worth.heads.argsort(descending=True, stable=True)
        columns = (heads[:, None] * layer.head_size + torch.arange(layer.head_size)).reshape(-1)
        for linear in (layer.query, layer.key, layer.value):
            _take_rows(linear, columns)
        _take_columns(layer.output, columns)
        neurons = worth.neurons.argsort(descending=True, stable=True)
        _take_rows(layer.up, neurons)
        _take_columns(layer.down, neurons)


@torch.no_grad()
def cut_width(model: nn.Module, *, heads: int, neurons: int) -> None:
    """Keep the first heads and neurons of every layer, in place; a layer that has no more stays as it is.

    Works on the meta device too, where only shapes change.

    Raises:
        UnsupportedModelError: more heads or neurons than a layer has.
    """
    for layer in encoder_layers(model):
        have = (layer.query.out_features // layer.head_size, layer.up.out_features)
        if heads > have[0] or neurons > have[1]:
            raise UnsupportedModelError(
                f"config.json asks for {heads} heads and {neurons} neurons in a layer, the architecture has "
                f"{have[0]} and {have[1]}; the folder's config.json was changed by hand, train it again"
            )
        if have == (heads, neurons):
            continue
        kept = torch.arange(heads * layer.head_size, device=layer.query.weight.device)
        for linear in (layer.query, layer.key, layer.value):
            _take_rows(linear, kept)
        _take_columns(layer.output, kept)
        kept = torch.arange(neurons, device=layer.up.weight.device)
        _take_rows(layer.up, kept)
        _take_columns(layer.down, kept)
        sizes = {"num_attention_heads": heads, "n_heads": heads, "all_head_size": heads * layer.head_size}
        for name, size in sizes.items():
            if hasattr(layer.attention, name):
                setattr(layer.attention, name, size)


def _take_rows(linear: nn.Linear, rows: Tensor) -> None:
    """Keep these outputs, in this order."""
    linear.weight = nn.Parameter(linear.weight[rows].contiguous())
    if linear.bias is not None:
        linear.bias = nn.Parameter(linear.bias[rows].contiguous())
    linear.out_features = len(rows)


def _take_columns(linear: nn.Linear, columns: Tensor) -> None:
    """Keep these inputs, in this order."""
    linear.weight = nn.Parameter(linear.weight[:, columns].contiguous())
    linear.in_features = len(columns)
