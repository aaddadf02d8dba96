"""The student: quantised modules, surgery on a Hugging Face encoder, the `qexport` attention function.

In training mode the modules fake-quantise (floats on the quantised grid, straight-through gradients). In
evaluation mode they compute with whole numbers, exactly as the exported ONNX operators do: a product is a
sum of integers, held in float32 while it stays below 2**24 and in int32 beyond, and softmax, GELU and
LayerNorm are those of `qexport.training.exact`. PyTorch and ONNX Runtime then give the same bits up to the
pooler's tanh and the float head.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from qexport.errors import UnsupportedModelError
from qexport.formats import max_code
from qexport.training.attention import (
    ATTENTION_NAME,
    AttentionQuantizers,
    activation_quantizer,
    integer_matmul,
)
from qexport.training.exact import use_exact
from qexport.training.ghosts import add_ghosts, has_ghosts
from qexport.training.quant_config import QuantConfig
from qexport.training.quantizers import (
    SOLVERS,
    ActivationQuantizer,
    binary_weight_network,
    minmax,
    straight_through,
    ternary_weight_network,
)
from qexport.training.quantizers.learned import (
    LearnedActivation,
    ThresholdRule,
    gradient_factor,
    learned_codes,
    learned_step,
)
from qexport.training.width import cut_width

__all__ = [
    "SUPPORTED_MODEL_TYPES",
    "QuantEmbedding",
    "QuantLinear",
    "quantize_model",
    "quantized_modules",
    "share_thresholds",
]

SUPPORTED_MODEL_TYPES = ("bert", "camembert", "distilbert", "electra", "roberta", "xlm-roberta")
"""`model_type` values of config.json whose surgery is tested."""


class _QuantWeight(nn.Module):
    """What QuantLinear and QuantEmbedding share: the rule from latent weight to codes and scale."""

    weight: Tensor
    curvature: Tensor
    weight_threshold: nn.Parameter
    bits: int
    granularity: str
    weight_quantizer: str
    weight_clip: float
    gradient_scale: bool
    solver: str
    observing: ThresholdRule | None = None
    """While thresholds are initialised, how: the module then computes in float."""

    def _set_rule(
        self,
        weight: Tensor,
        bits: int,
        granularity: str,
        weight_quantizer: str,
        weight_clip: float,
        gradient_scale: bool,
        solver: str,
    ) -> None:
        self.bits, self.granularity = bits, granularity
        self.weight_quantizer, self.weight_clip = weight_quantizer, weight_clip
        self.gradient_scale, self.solver = gradient_scale, solver
        if self.uses_curvature:
            self.register_buffer("curvature", torch.zeros_like(weight, requires_grad=False))
        if self.learns_steps:
            count = weight.shape[0] if granularity == "row" else 1
            self.weight_threshold = nn.Parameter(torch.zeros(count, device=weight.device))

    def train(self, mode: bool = True) -> Any:
        """Switch the mode and drop cached codes: a fused optimiser step leaves no trace in `_version`."""
        self.__dict__.pop("_cache", None)
        return super().train(mode)

    @property
    def uses_curvature(self) -> bool:
        return self.bits == 2 and self.weight_quantizer == "lat"

    @property
    def learns_steps(self) -> bool:
        return self.weight_quantizer == "lsq"

    @torch.no_grad()
    def set_threshold(self, rule: ThresholdRule) -> None:
        """Initialise learned steps from the latent weight."""
        rows = self.weight if self.granularity == "row" else self.weight.reshape(1, -1)
        self.weight_threshold.copy_(rule(rows, max_code(self.bits)))

    def _fake_learned(self, weight: Tensor, threshold: Tensor) -> Tensor:
        """code * step with gradients for the latent weight, unclipped, and for the threshold."""
        top = max_code(self.bits)
        count = self.weight.numel() // self.weight_threshold.numel()
        factor = gradient_factor(count, top) if self.gradient_scale else 1.0
        return learned_step(weight, threshold.unsqueeze(-1), top, clipped=False, factor=factor)

    def _quantize(self, weight: Tensor, curvature: Tensor | None) -> tuple[Tensor, Tensor]:
        if self.weight_clip > 0:
            weight = weight.clamp(-self.weight_clip, self.weight_clip)
        if curvature is not None:
            return SOLVERS[self.solver](weight, self.granularity, curvature)
        if self.bits == 1:
            return binary_weight_network(weight, self.granularity)
        if self.bits == 2 and self.weight_quantizer in ("twn", "bwn"):
            return ternary_weight_network(weight, self.granularity)
        return minmax(weight, self.granularity, self.bits)

    def _codes(self) -> tuple[Tensor, Tensor]:
        """Codes float32 [N, K] and scale of the whole matrix, cached until the latent weight changes."""
        curvature = self.curvature if self.uses_curvature else None
        threshold = self.weight_threshold if self.learns_steps else None
        key = tuple(
            None if tensor is None else (tensor._version, tensor.data_ptr())
            for tensor in (self.weight, curvature, threshold)
        )
        cached = self.__dict__.get("_cache")
        if cached is None or cached[0] != key:
            with torch.no_grad():
                weight = self.weight.detach().float()
                if threshold is None:
                    cached = (key, *self._quantize(weight, curvature))
                else:
                    cached = (key, *learned_codes(weight, threshold.detach(), max_code(self.bits)))
            self.__dict__["_cache"] = cached
        return cached[1], cached[2]

    def weight_codes(self) -> tuple[Tensor, Tensor]:
        """What is stored after export.

        Returns:
            codes int8 [N, K]; scale float32 [N] ("row") or [1] ("matrix").
        """
        codes, scale = self._codes()
        return codes.to(torch.int8), scale


class QuantLinear(_QuantWeight, nn.Linear):
    """nn.Linear with a quantised weight and, unless `activation` is None, a quantised input."""

    def __init__(
        self,
        linear: nn.Linear,
        *,
        bits: int,
        granularity: str,
        weight_quantizer: str = "twn",
        weight_clip: float = 0.0,
        gradient_scale: bool = True,
        solver: str = "alternating",
        activation: ActivationQuantizer | None = None,
    ) -> None:
        """Take over the parameters of `linear`."""
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self._set_rule(self.weight, bits, granularity, weight_quantizer, weight_clip, gradient_scale, solver)
        self.activation = activation

    def extra_repr(self) -> str:
        return f"{nn.Linear.extra_repr(self)}, bits={self.bits}, {self.granularity}"

    def fake_weight(self) -> Tensor:
        """The quantised weight, float32 [N, K], with its gradient to what is trained."""
        if self.learns_steps:
            return self._fake_learned(self.weight, self.weight_threshold)
        with torch.no_grad():
            codes, scale = self._quantize(
                self.weight.detach(), self.curvature if self.uses_curvature else None
            )
            quantized = codes.mul_(scale.unsqueeze(-1))
        return straight_through(self.weight, quantized, self.weight_clip)

    def forward(self, input: Tensor) -> Tensor:
        """Float32 [..., K] -> float32 [..., N]."""
        if self.observing is not None:
            if isinstance(self.activation, LearnedActivation):
                self.activation.observe(input, self.observing)
            return functional.linear(input, self.weight, self.bias)
        if self.training:
            x = input if self.activation is None else self.activation(input)
            return functional.linear(x, self.fake_weight(), self.bias)
        codes, scale = self._codes()
        if self.activation is None:
            return functional.linear(input, codes * scale.unsqueeze(-1), self.bias)
        a, a_scale = self.activation.codes(input)
        y = integer_matmul(a, codes, self.activation.top * max_code(self.bits)) * scale * a_scale
        return y if self.bias is None else y + self.bias


class QuantEmbedding(_QuantWeight, nn.Embedding):
    """nn.Embedding with a quantised table.

    With one scale per row only rows that are looked up are quantised; with one for the table (granularity
    "matrix") all of them are, but for learned steps.
    """

    def __init__(
        self,
        embedding: nn.Embedding,
        *,
        bits: int,
        granularity: str = "row",
        weight_quantizer: str = "twn",
        weight_clip: float = 0.0,
        gradient_scale: bool = True,
        solver: str = "alternating",
    ) -> None:
        """Take over the table of `embedding`."""
        nn.Module.__init__(self)
        self.num_embeddings, self.embedding_dim = embedding.num_embeddings, embedding.embedding_dim
        self.padding_idx, self.max_norm = embedding.padding_idx, embedding.max_norm
        self.norm_type, self.scale_grad_by_freq = embedding.norm_type, embedding.scale_grad_by_freq
        self.sparse = embedding.sparse
        self.weight = embedding.weight
        self._set_rule(self.weight, bits, granularity, weight_quantizer, weight_clip, gradient_scale, solver)

    def extra_repr(self) -> str:
        return f"{nn.Embedding.extra_repr(self)}, bits={self.bits}"

    def forward(self, input: Tensor) -> Tensor:
        """int64 [...] -> float32 [..., D]."""
        rows = nn.Embedding.forward(self, input)
        if self.observing is not None:
            return rows
        if self.learns_steps:
            threshold: Tensor = self.weight_threshold
            if self.granularity == "row":
                threshold = functional.embedding(input, threshold.unsqueeze(-1)).squeeze(-1)
            return self._fake_learned(rows, threshold)
        with torch.no_grad():
            curvature = self.curvature if self.uses_curvature else None
            if self.granularity == "matrix":
                codes, scale = self._quantize(self.weight, curvature) if self.training else self._codes()
                quantized = functional.embedding(input, codes).mul_(scale)
            else:
                curvature = None if curvature is None else functional.embedding(input, curvature)
                codes, scale = self._quantize(rows.detach(), curvature)
                quantized = codes.mul_(scale.unsqueeze(-1))
        return straight_through(rows, quantized, self.weight_clip)


_HEADS = ("classifier", "classifier.out_proj", "qa_outputs", "score")  # the last task layer stays float


def _is_self_attention(module: nn.Module) -> bool:
    return type(module).__name__.endswith("SelfAttention")


_READS_GELU = re.compile(r"((?<!attention\.)output\.dense|ffn\.lin2)(\.|$)")
"""Path of the second matrix of a feed-forward part, or of a part of it."""

_PROJECTIONS = (("query", "key", "value"), ("q_lin", "k_lin", "v_lin"))


def share_thresholds(model: PreTrainedModel) -> None:
    """One learned threshold for the three projections of an attention module, which read the same tensor.

    The exported file then quantises that tensor once. The first projection owns the parameter; the others
    refer to it without being its parents, so that it is saved once.
    """
    for module in model.modules():
        for names in _PROJECTIONS if _is_self_attention(module) else ():
            found = [getattr(module, name) for name in names if hasattr(module, name)]
            linears = [part for linear in found for part in linear.modules() if isinstance(part, QuantLinear)]
            for linear in linears[1:]:
                del linear.activation
                object.__setattr__(linear, "activation", linears[0].activation)


def quantize_model(model: PreTrainedModel, config: QuantConfig) -> PreTrainedModel:
    """Replace linears and embeddings by quantised ones, in place, keeping every parameter and its name.

    Not quantised: token-type embeddings, biases, LayerNorm, the last task layer (unless `quantize_head`).
    With `kept_heads` and `kept_neurons` every layer is first cut to its first heads and neurons; with
    `ghosts` these get their ghost modules, unless they have them.

    Raises:
        UnsupportedModelError: an architecture whose attention this surgery does not know.
    """
    model_type = model.config.model_type
    if model_type not in SUPPORTED_MODEL_TYPES:
        raise UnsupportedModelError(
            f"model_type '{model_type}' is not supported; use one of {', '.join(SUPPORTED_MODEL_TYPES)}"
        )
    bits = config.wea
    if config.kept_heads and not has_ghosts(model):
        cut_width(model, heads=config.kept_heads, neurons=config.kept_neurons)
    if config.ghosts and not has_ghosts(model):
        add_ghosts(model, ghosts=config.ghosts, kernel=config.ghost_kernel, gain=config.ghost_gain)
    weight_bits = 2 if config.split_weights else bits.weight  # what is split later is ternary first
    embedding_bits = 2 if config.split_embedding else bits.embedding
    for name, module in list(model.named_modules()):
        replacement: nn.Module | None = None
        if type(module) is nn.Linear:
            asymmetric = config.asymmetric == "all" or (
                config.asymmetric == "feed-forward" and _READS_GELU.search(name) is not None
            )
            if bits.weight != 32 and (config.quantize_head or name not in _HEADS):
                replacement = QuantLinear(
                    module,
                    bits=weight_bits,
                    granularity=config.granularity,
                    weight_quantizer=config.weight_quantizer,
                    weight_clip=config.weight_clip,
                    gradient_scale=config.gradient_scale,
                    solver=config.ternary_solver,
                    activation=None
                    if bits.activation == 32
                    else activation_quantizer(config, asymmetric=asymmetric),
                )
        elif type(module) is nn.Embedding:
            table = name.rsplit(".", 1)[-1]
            width = {"word_embeddings": embedding_bits, "position_embeddings": config.position_bits}.get(
                table, 32
            )
            weight_quantizer, granularity = config.table_rule(table)
            if width != 32:
                replacement = QuantEmbedding(
                    module,
                    bits=width,
                    granularity=granularity,
                    weight_quantizer=weight_quantizer,
                    weight_clip=config.weight_clip,
                    gradient_scale=config.gradient_scale,
                    solver=config.ternary_solver,
                )
        elif _is_self_attention(module) and bits.activation != 32:
            module.qexport_attention = AttentionQuantizers(config)
        if replacement is not None:
            replacement.train(module.training)
            model.set_submodule(name, replacement)
    if config.split_weights:
        from qexport.training.splitting import split_student  # that module builds on this one

        split_student(model, config)
    if config.learns_activations:
        share_thresholds(model)
    if bits.activation != 32:
        use_exact(model)
    model.set_attn_implementation(ATTENTION_NAME)
    model.config.quantization_config = config.to_dict()
    return model


def quantized_modules(model: nn.Module) -> dict[str, QuantLinear | QuantEmbedding | AttentionQuantizers]:
    """Every quantised module by its path, in the order of the model."""
    kinds = (QuantLinear, QuantEmbedding, AttentionQuantizers)
    return {name: module for name, module in model.named_modules() if isinstance(module, kinds)}
