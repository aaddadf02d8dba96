"""Ternary weight splitting: layers of two binary ones, made from a ternary student that they equal at first.

Source: BinaryBERT (Bai et al. 2021), section 3.2; the equations are in quantizers/bwn.py.
"""

from __future__ import annotations

import copy

from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from qexport.training.quant_config import QuantConfig
from qexport.training.quantizers import ActivationQuantizer, split_ternary
from qexport.training.student import QuantEmbedding, QuantLinear, share_thresholds

__all__ = ["SplitEmbedding", "SplitLinear", "split_student"]


class SplitLinear(nn.Module):
    """Two binary linear layers over one input, their outputs added: a ternary layer after its split.

    Right after the split it computes what the ternary layer computed. The halves are ordinary quantised
    modules, `first` and `second`; the bias is halved too.
    """

    def __init__(
        self, linear: nn.Linear, *, granularity: str, activation: ActivationQuantizer | None = None
    ) -> None:
        """Split `linear`; the halves share a copy of `activation`, which the first one owns."""
        super().__init__()
        self.first, self.second = (
            QuantLinear(half, bits=1, granularity=granularity, weight_quantizer="bwn")
            for half in _halves(linear, granularity)
        )
        self.first.activation = copy.deepcopy(activation)
        object.__setattr__(self.second, "activation", self.first.activation)

    def forward(self, input: Tensor) -> Tensor:
        """Float32 [..., K] -> float32 [..., N]."""
        first, second = self.first, self.second
        if not self.training:
            summed: Tensor = first(input) + second(input)
            return summed
        # both read the same values: one product with the sum of the halves has the same gradients
        x = input if first.activation is None else first.activation(input)
        bias = None if first.bias is None or second.bias is None else first.bias + second.bias
        return functional.linear(x, first.fake_weight() + second.fake_weight(), bias)


class SplitEmbedding(nn.Module):
    """Two binary tables whose rows are added: a ternary embedding after its split."""

    def __init__(self, embedding: nn.Embedding, *, granularity: str = "row") -> None:
        """Split the table of `embedding`."""
        super().__init__()
        tables = []
        for weight in split_ternary(embedding.weight.detach(), granularity):
            table = copy.copy(embedding)
            table._parameters = {"weight": nn.Parameter(weight)}
            tables.append(QuantEmbedding(table, bits=1, granularity=granularity, weight_quantizer="bwn"))
        self.first, self.second = tables

    def forward(self, input: Tensor) -> Tensor:
        """int64 [...] -> float32 [..., D]."""
        rows: Tensor = self.first(input) + self.second(input)
        return rows


def _halves(linear: nn.Linear, granularity: str) -> list[nn.Linear]:
    """Two linear layers of the shape of `linear` whose latent weights and biases add up to its own."""
    halves = []
    for weight in split_ternary(linear.weight.detach(), granularity):
        half = nn.Linear(1, 1, bias=False, device=weight.device)
        half.in_features, half.out_features = linear.in_features, linear.out_features
        half.weight = nn.Parameter(weight)
        if linear.bias is not None:
            half.bias = nn.Parameter(linear.bias.detach() / 2)
        halves.append(half)
    return halves


def split_student(model: PreTrainedModel, config: QuantConfig) -> PreTrainedModel:
    """Split the ternary layers of a student into two binary ones each, in place; it computes the same after.

    Args:
        model: a student with ternary matrices; its embedding too where `split_embedding` is set.
        config: of the binary student.
    """
    for name, module in list(model.named_modules()):
        replacement: nn.Module | None = None
        if isinstance(module, QuantLinear) and module.bits == 2:
            replacement = SplitLinear(module, granularity=module.granularity, activation=module.activation)
        elif isinstance(module, QuantEmbedding) and module.bits == 2 and config.split_embedding:
            replacement = SplitEmbedding(module, granularity=module.granularity)
        if replacement is not None:
            model.set_submodule(name, replacement.train(module.training))
    if config.learns_activations:
        share_thresholds(model)
    model.config.quantization_config = config.to_dict()
    return model
