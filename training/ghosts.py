"""Ghost modules: cheap copies of the features of each attention head and neuron fold, added to their sum.

A layer that reads heads (attention output) or neurons (second feed-forward matrix) is a sum over groups of
its inputs: H_h [S, N] is what head or fold h gives to each of S tokens and N channels. A ghost is a depthwise
convolution over the tokens, one kernel a channel, its taps a softmax, followed by ReLU:

    out = sum_h H_h + bias + sum_h sum_f gain_hf * relu(conv(H_h, softmax(taps_hf)))

Source: GhostBERT (Huang et al., ACL 2021). No code was released and its text could not be consulted: what is
the paper's, what is remembered and what is ours stands in docs/methods.md.
"""

from __future__ import annotations

import inspect
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from qexport.errors import UnsupportedModelError
from qexport.training.width import layer_sizes, reading_layers

__all__ = ["GhostLinear", "add_ghosts", "ghost_count", "has_ghosts"]

_MASK: ContextVar[Tensor | None] = ContextVar("qexport_token_mask", default=None)
"""int64 [B, S] of the forward pass that runs in this thread, 1 for real tokens."""


class GhostLinear(nn.Module):
    """A linear layer, taken apart into groups of its inputs, with ghosts of each group's output.

    The parts are ordinary linear layers without bias, which `quantize_model` may quantise; kernels and gains
    stay float. Outputs of padding tokens count as 0 in the convolution.
    """

    def __init__(self, linear: nn.Linear, *, groups: int, ghosts: int, kernel: int, gain: bool) -> None:
        """Take over the parameters of `linear`.

        Args:
            linear: float32 [N, K].
            groups: parts into which K is divided, as evenly as it goes.
            ghosts: convolutions of each part's output.
            kernel: taps of a convolution, odd.
            gain: whether each channel of a ghost has a learned factor; it begins at 0, so that at first the
                layer computes what `linear` does.
        """
        super().__init__()
        weight, n_out = linear.weight, linear.out_features
        self.ghosts, self.kernel, self.out_features = ghosts, kernel, n_out
        self.sizes = [len(part) for part in torch.arange(linear.in_features).tensor_split(groups)]
        parts, start = [], 0
        for size in self.sizes:
            part = nn.Linear(1, 1, bias=False, device=weight.device)
            part.in_features, part.out_features = size, n_out
            part.weight = nn.Parameter(weight.detach()[:, start : start + size].clone())
            parts.append(part)
            start += size
        self.parts = nn.ModuleList(parts)
        self.bias = linear.bias
        count = groups * n_out * ghosts
        self.taps = nn.Parameter(torch.zeros(count, 1, kernel, device=weight.device))
        self.gain = nn.Parameter(torch.zeros(count, 1, device=weight.device)) if gain else None
        self._folded: Tensor | None = None

    def extra_repr(self) -> str:
        return f"groups={len(self.sizes)}, ghosts={self.ghosts}, kernel={self.kernel}"

    def kernels(self) -> Tensor:
        """What the convolution reads: float32 [groups * N * ghosts, 1, kernel], each kernel adds up to 1."""
        if self._folded is not None:
            return self._folded
        return torch.softmax(self.taps, dim=-1)

    @torch.no_grad()
    def fold(self) -> None:
        """Compute the kernels for good: an exported graph then holds them instead of a softmax."""
        folded = self.kernels().clone()
        del self._folded
        self.register_buffer("_folded", folded)

    def forward(self, input: Tensor) -> Tensor:
        """Float32 [B, S, K] -> float32 [B, S, N]."""
        pieces = torch.split_with_sizes(input, self.sizes, dim=-1)
        made = [part(piece) for part, piece in zip(self.parts, pieces, strict=True)]
        features = torch.cat(made, dim=-1)  # [B, S, groups * N]
        mask = _MASK.get()
        if mask is not None:
            features = features * mask.unsqueeze(-1).to(features.dtype)
        ghosts = self._convolved(features) if self.training else self._added(features)
        total: Tensor = made[0]
        for other in made[1:]:
            total = total + other
        return total + ghosts if self.bias is None else total + ghosts + self.bias

    def _convolved(self, features: Tensor) -> Tensor:
        """The sum of all ghosts, float32 [B, S, N], of `features` [B, S, groups * N], by a convolution."""
        kernels, channels = self.kernels().to(features.dtype), features.shape[-1]
        y = functional.conv1d(features.transpose(1, 2), kernels, padding=self.kernel // 2, groups=channels)
        y = functional.relu(y)  # [B, groups * N * ghosts, S]
        if self.gain is not None:
            y = y * self.gain
        folds = (len(self.sizes), self.out_features, self.ghosts)
        return y.reshape(y.shape[0], *folds, y.shape[-1]).sum((1, 3)).transpose(1, 2)

    def _added(self, features: Tensor) -> Tensor:
        """The same with each product and sum rounded in one order, as every engine then does it.

        A convolution adds in an order of its own, and one unit in the last place moves a code of what is
        quantised next.
        """
        n, half = self.out_features, self.kernel // 2
        taps = self.kernels().reshape(-1, self.ghosts, self.kernel)  # [groups * N, ghosts, taps]
        gains = None if self.gain is None else self.gain.reshape(-1, self.ghosts)
        padded = functional.pad(features, (0, 0, half, half))
        shifted = [padded[:, tap : tap - self.kernel + 1 or None] for tap in range(self.kernel)]
        total: Tensor | None = None
        for ghost in range(self.ghosts):
            y = shifted[0] * taps[:, ghost, 0]
            for tap in range(1, self.kernel):
                y = y + shifted[tap] * taps[:, ghost, tap]
            y = functional.relu(y)
            if gains is not None:
                y = y * gains[:, ghost]
            for group in range(len(self.sizes)):
                part = y[..., group * n : (group + 1) * n]
                total = part if total is None else total + part
        assert total is not None  # there is at least one ghost
        return total


def ghost_count(heads: int, kept: int) -> int:
    """Ghosts of each head so that features and ghosts together are as many as the heads of the teacher were.

    At least one, so that a layer of full width has as many ghosts as heads.
    """
    return max(1, round(heads / kept) - 1)


def has_ghosts(model: nn.Module) -> bool:
    """Whether ghosts were added before."""
    return any(isinstance(module, GhostLinear) for module in model.modules())


def add_ghosts(model: PreTrainedModel, *, ghosts: int, kernel: int, gain: bool) -> None:
    """Put a GhostLinear in place of both output matrices of every layer of an encoder, in place.

    Attention is divided into its heads, the neurons into as many folds. Works on the meta device too.

    Raises:
        UnsupportedModelError: see `reading_layers`; a model that runs its feed-forward part on pieces of a
            sentence, over whose borders no convolution sees.
    """
    if getattr(model.config, "chunk_size_feed_forward", 0):
        raise UnsupportedModelError(
            f"config.json has chunk_size_feed_forward {model.config.chunk_size_feed_forward}, and ghost "
            "modules need whole sentences; set it to 0"
        )
    groups = layer_sizes(model)[0]
    for name in reading_layers(model):
        linear = model.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        replacement = GhostLinear(linear, groups=groups, ghosts=ghosts, kernel=kernel, gain=gain)
        model.set_submodule(name, replacement.train(linear.training))
    base: nn.Module = model.base_model
    base.register_forward_pre_hook(_remember_mask, with_kwargs=True)
    base.register_forward_hook(_forget_mask, always_call=True)


def _remember_mask(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Keep the tokenizer's mask for the ghosts of this pass: layers get another shape of it, or none."""
    given = inspect.signature(module.forward).bind_partial(*args, **kwargs).arguments
    mask = given.get("attention_mask")
    _MASK.set(mask if isinstance(mask, Tensor) and mask.dim() == 2 else None)


def _forget_mask(module: nn.Module, args: Any, output: Any) -> None:
    _MASK.set(None)
