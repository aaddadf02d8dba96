"""Twins of the student's modules that put export IR nodes in the graph, and the wrapper that is traced.

A twin holds integer codes and scales instead of a latent weight, so no float copy of a quantised weight can
reach the file. In the graph it is one opaque node of domain `qexport`, which qexport.graphs.rewrites lowers.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface

from qexport.errors import UnsupportedModelError
from qexport.graphs.rewrites import EXPORT_DOMAIN
from qexport.training.attention import MASKED_SCORE, AttentionQuantizers
from qexport.training.exact import ExactGELU, ExactLayerNorm
from qexport.training.ghosts import GhostLinear
from qexport.training.kinds import Kind
from qexport.training.quantizers import (
    ActivationQuantizer,
    AsymmetricActivation,
    LearnedAsymmetricActivation,
)
from qexport.training.student import QuantEmbedding, QuantLinear, quantized_modules

__all__ = [
    "EXPORT_ATTENTION",
    "ExportWrapper",
    "TwinAttention",
    "TwinEmbedding",
    "TwinGELU",
    "TwinLayerNorm",
    "TwinLinear",
    "export_attention",
    "replace_by_twins",
]

EXPORT_ATTENTION = "qexport-export"
"""Name of the attention function that the export uses, registered with transformers."""


def _emit(kind: str, inputs: tuple[Tensor, ...], attributes: dict[str, Any], shape: Any) -> Tensor:
    kind = f"{EXPORT_DOMAIN}::{kind}"
    return torch.onnx.ops.symbolic(kind, inputs, attributes, dtype=torch.float32, shape=shape, version=1)


def _static_scale(quantizer: ActivationQuantizer, name: str) -> Tensor:
    """The stored scale, float32 scalar.

    Raises:
        UnsupportedModelError: training never saw this activation.
    """
    scale = quantizer.stored_scale().detach().clone().float().reshape(())
    if not bool(torch.isfinite(scale)) or float(scale) <= 0:
        raise UnsupportedModelError(
            f"{name}: the static activation scale must be greater than 0, got {float(scale)}; "
            "train the student for at least one step, or use --activations dynamic-token"
        )
    return scale


class TwinLinear(nn.Module):
    """Stands for a QuantLinear: float32 [..., K] -> float32 [..., N]."""

    def __init__(self, name: str, linear: QuantLinear) -> None:
        """Take codes and scales over.

        Raises:
            UnsupportedModelError: see `_static_scale`.
        """
        super().__init__()
        codes, scale = linear.weight_codes()
        self.name = name
        self.n_rows = codes.shape[0]
        self.register_buffer("codes", codes)
        self.register_buffer("scale", scale.detach().clone())
        bias = torch.zeros(self.n_rows) if linear.bias is None else linear.bias.detach().clone().float()
        self.register_buffer("bias", bias)
        activation = linear.activation
        self.attributes: dict[str, Any] = {"name": name, "w_bits": linear.bits, "act": "none"}
        self.static = False
        if activation is not None:
            self.attributes |= {
                "act": activation.mode,
                "a_bits": activation.bits,
                "clip": float(activation.clip),
            }
            self.static = activation.mode == "static"
            if self.static:
                self.register_buffer("a_scale", _static_scale(activation, name))
            if isinstance(activation, AsymmetricActivation | LearnedAsymmetricActivation):
                self.attributes["asymmetric"] = 1
                if self.static:
                    self.attributes["a_zero"] = activation.stored_zero()

    def forward(self, input: Tensor) -> Tensor:
        """Emit `qexport::QuantLinear`."""
        inputs: tuple[Any, ...] = (input, self.codes, self.scale, self.bias)
        if self.static:
            inputs += (self.a_scale,)
        return _emit("QuantLinear", inputs, self.attributes, [*input.shape[:-1], self.n_rows])


class TwinEmbedding(nn.Module):
    """Stands for a QuantEmbedding: int64 [...] -> float32 [..., D]."""

    def __init__(self, name: str, embedding: QuantEmbedding) -> None:
        """Take codes and scales over."""
        super().__init__()
        codes, scale = embedding.weight_codes()
        self.name = name
        self.width = codes.shape[1]
        self.attributes: dict[str, Any] = {"name": name, "w_bits": embedding.bits}
        self.register_buffer("codes", codes)
        self.register_buffer("scale", scale.detach().clone())

    def forward(self, input: Tensor) -> Tensor:
        """Emit `qexport::QuantEmbedding`."""
        inputs: tuple[Any, ...] = (input, self.codes, self.scale)
        return _emit("QuantEmbedding", inputs, self.attributes, [*input.shape, self.width])


class TwinAttention(nn.Module):
    """Stands for the AttentionQuantizers of a self-attention module."""

    def __init__(self, name: str, sites: AttentionQuantizers) -> None:
        """Take the scales over.

        Raises:
            UnsupportedModelError: see `_static_scale`.
        """
        super().__init__()
        self.name = name
        query = sites.query
        self.attributes: dict[str, Any] = {
            "name": name,
            "act": query.mode,
            "a_bits": query.bits,
            "clip": float(query.clip),
            "quantize_qk": 1,
            "quantize_p": int(sites.probabilities is not None),
            "quantize_v": int(sites.value is not None),
            "p_top": query.top if sites.probabilities is None else sites.probabilities.top,
        }
        self.scale_names: list[str] = []
        if query.mode == "static":
            order = {"q": sites.query, "k": sites.key, "p": sites.probabilities, "v": sites.value}
            for site, quantizer in order.items():
                if quantizer is not None:
                    self.scale_names.append(f"{site}_scale")
                    self.register_buffer(f"{site}_scale", _static_scale(quantizer, f"{name}.{site}"))

    def forward(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float) -> Tensor:
        """Emit `qexport::QuantAttention`; query, key, value float32 [B, H, S, D], mask bool [B, 1, 1, S]."""
        scales = tuple(getattr(self, name) for name in self.scale_names)
        attributes = {**self.attributes, "scaling": float(scaling)}
        return _emit("QuantAttention", (query, key, value, mask, *scales), attributes, query.shape)


class TwinGELU(nn.Module):
    """Stands for an ExactGELU: float32 [...] -> float32 [...]."""

    def forward(self, input: Tensor) -> Tensor:
        """Emit `qexport::Gelu`."""
        return _emit("Gelu", (input,), {}, input.shape)


class TwinLayerNorm(nn.Module):
    """Stands for an ExactLayerNorm: float32 [..., K] -> float32 [..., K]."""

    def __init__(self, norm: ExactLayerNorm) -> None:
        """Take weight and bias over."""
        super().__init__()
        self.weight, self.bias, self.epsilon = norm.weight, norm.bias, norm.eps

    def forward(self, input: Tensor) -> Tensor:
        """Emit `qexport::LayerNorm`."""
        return _emit("LayerNorm", (input, self.weight, self.bias), {"epsilon": self.epsilon}, input.shape)


def export_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    scaling: float | None = None,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention for the export: one opaque node where the module is quantised, float operators elsewhere.

    Args:
        query, key, value: float32 [B, H, S, D].
        attention_mask: bool [B, 1, 1, S], true for real tokens.
    Returns:
        context float32 [B, S, H, D], and no scores.
    """
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    twin = getattr(module, "qexport_attention", None)
    if isinstance(twin, TwinAttention):
        context: Tensor = twin(query, key, value, attention_mask, scaling)
    else:
        scores = (query @ key.transpose(-1, -2)) * scaling
        scores = scores + torch.where(attention_mask, 0.0, MASKED_SCORE)
        context = torch.softmax(scores, dim=-1) @ value
    return context.transpose(1, 2), None


def _key_mask(attention_mask: Tensor, **_: Any) -> Tensor:
    """Bool [B, 1, 1, S] from the tokenizer's mask int64 [B, S]."""
    return attention_mask[:, None, None, :].bool()


AttentionInterface.register(EXPORT_ATTENTION, export_attention)
AttentionMaskInterface.register(EXPORT_ATTENTION, _key_mask)


def replace_by_twins(model: PreTrainedModel) -> dict[str, TwinLinear | TwinEmbedding | TwinAttention]:
    """Put a twin in place of every quantised module of `model`, in place; the twins by module path.

    A float model has none: only its attention function changes, and kernels of ghosts are computed for good.
    GELU and LayerNorm of a student that quantises activations get twins too, which are not counted.
    """
    twins: dict[str, TwinLinear | TwinEmbedding | TwinAttention] = {}
    for name, module in quantized_modules(model).items():
        twin: TwinLinear | TwinEmbedding | TwinAttention
        if isinstance(module, QuantLinear):
            twin = TwinLinear(name, module)
        elif isinstance(module, QuantEmbedding):
            twin = TwinEmbedding(name, module)
        else:
            twin = TwinAttention(name, module)
        model.set_submodule(name, twin)
        twins[name] = twin
    for name, part in list(model.named_modules()):
        if isinstance(part, GhostLinear):
            part.fold()
        elif isinstance(part, ExactLayerNorm):
            model.set_submodule(name, TwinLayerNorm(part))
        elif isinstance(part, ExactGELU):
            model.set_submodule(name, TwinGELU())
    model.set_attn_implementation(EXPORT_ATTENTION)
    return twins


class _OnlyRow(nn.Module):
    """An embedding whose ids are all 0: its first row, whatever is asked for."""

    def __init__(self, embedding: nn.Embedding) -> None:
        super().__init__()
        self.weight = nn.Parameter(embedding.weight[0].detach().clone(), requires_grad=False)

    def forward(self, input: Tensor) -> Tensor:
        """int64 [...] -> float32 [D], to be broadcast."""
        return self.weight


class ExportWrapper(nn.Module):
    """What torch.onnx traces: tensors in the order of `input_names` -> the outputs of the model's kind.

    Of a sequence classifier these are the logits, float32 [batch, num_labels].
    """

    def __init__(self, model: PreTrainedModel, kind: Kind) -> None:
        """Wrap `model`, which has the head of `kind`.

        Its token-type table is cut to its only row when there is no such input.

        Raises:
            UnsupportedModelError: the model does not take ids and a mask.
        """
        super().__init__()
        self.model, self.kind = model, kind
        parameters = inspect.signature(model.forward).parameters
        missing = [name for name in ("input_ids", "attention_mask") if name not in parameters]
        if missing:
            raise UnsupportedModelError(
                f"{type(model).__name__}: the model must take input_ids and attention_mask, no {missing[0]}"
            )
        self.input_names = ["input_ids", "attention_mask"]
        types = getattr(model.config, "type_vocab_size", 0) or 0
        self.fixed_types = "token_type_ids" in parameters and types <= 1
        if "token_type_ids" in parameters and types > 1:
            self.input_names.append("token_type_ids")
        if self.fixed_types:
            for name, module in list(model.named_modules()):
                if name.endswith("token_type_embeddings") and isinstance(module, nn.Embedding):
                    model.set_submodule(name, _OnlyRow(module))
        self.pass_positions = "position_ids" in parameters and not self._counts_padding(model)
        self.max_length = self.longest(model)

    @staticmethod
    def _counts_padding(model: PreTrainedModel) -> bool:
        """Whether positions start after the padding index, as in RoBERTa."""
        return any(hasattr(module, "create_position_ids_from_input_ids") for module in model.modules())

    @classmethod
    def longest(cls, model: PreTrainedModel) -> int:
        """Tokens in the longest sequence that the position table allows."""
        offset = int(model.config.pad_token_id or 0) + 1 if cls._counts_padding(model) else 0
        return int(model.config.max_position_embeddings) - offset

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """The outputs in the kind's order; positions are counted in the graph, not stored."""
        feeds: dict[str, Tensor] = dict(zip(self.input_names, tensors, strict=True))
        ids = feeds["input_ids"]
        if self.fixed_types:
            feeds["token_type_ids"] = torch.zeros_like(ids)
        if self.pass_positions:
            feeds["position_ids"] = torch.arange(ids.shape[1], device=ids.device).unsqueeze(0)
        found = self.kind.read(self.model(**feeds), feeds)
        return tuple(found[name] for name in self.kind.outputs)
