"""Quantisation method `qexport` of transformers: lets AutoModel…from_pretrained load a student folder.

This module is imported while transformers is still importing itself, so it reads nothing of transformers but
the registry.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from qexport.training.quant_config import QUANT_METHOD, QuantConfig

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["QexportQuantizationConfig", "QexportQuantizer"]


@register_quantization_config(QUANT_METHOD)
class QexportQuantizationConfig(QuantizationConfigMixin):
    """transformers' view of `QuantConfig`: the same fields as attributes."""

    def __init__(self, **values: Any) -> None:
        values.pop("quant_method", None)
        self.quant_method: Any = QUANT_METHOD  # transformers' enum has only its own methods
        self.fields = QuantConfig(**values)

    def to_dict(self) -> dict[str, Any]:
        """For config.json."""
        return self.fields.to_dict()


@register_quantizer(QUANT_METHOD)
class QexportQuantizer(HfQuantizer):
    """Builds the quantised modules before the latent weights are loaded into them."""

    requires_calibration = False

    def update_attn_implementation(self, config: Any) -> Any:
        """Students run on the registered `qexport` attention, whatever was asked for."""
        from qexport.training.attention import ATTENTION_NAME

        config._attn_implementation = ATTENTION_NAME
        return config

    def _process_model_before_weight_loading(self, model: PreTrainedModel, **_: Any) -> PreTrainedModel:
        from qexport.training.student import quantize_model

        return quantize_model(model, QuantConfig.from_dict(self.quantization_config.to_dict()))

    def is_serializable(self) -> bool:
        """A student is saved as its latent float32 weights."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Latent weights can be trained on."""
        return True

    @property
    def is_qat_trainable(self) -> bool:
        """Quantisation-aware training is what the modules do in training mode."""
        return True
