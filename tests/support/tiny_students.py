"""Tiny quantised students as folders, without training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tiny_models import tiny_model, tiny_tokenizer
from torch import nn
from transformers import PreTrainedModel

from qexport.training.calibration import initialise_thresholds
from qexport.training.quant_config import QuantConfig
from qexport.training.student import quantize_model


def save_student(
    folder: Path, model_type: str = "bert", *, calibrate: bool = True, head: Any = None, **quantization: Any
) -> Path:
    """Write a student; stored scales and steps are found on random ids unless `calibrate` is false."""
    model = _model(model_type, head)
    generator = torch.Generator().manual_seed(1)
    config = QuantConfig(**{"method": "ternarybert", "bits": "2-2-8", **quantization})
    quantize_model(model, config)
    if calibrate:
        ids = torch.randint(4, 20, (8, 12), generator=generator)
        features = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if config.weight_quantizer == "lsq":
            initialise_thresholds(model, features)
        nn.Module.train(model, True)
        with torch.no_grad():
            model(**features)
    model.train(False)
    return _save(model, folder)


def save_float(folder: Path, model_type: str = "bert") -> Path:
    """Write an FP32 model."""
    return _save(_model(model_type), folder)


def _model(model_type: str, head: Any = None) -> PreTrainedModel:
    """A tiny model whose biases and LayerNorm weights are random too: no two tensors are equal by chance."""
    model = tiny_model(model_type, **({} if head is None else {"head": head}))
    generator = torch.Generator().manual_seed(2)
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


def _save(model: PreTrainedModel, folder: Path) -> Path:
    model.save_pretrained(folder)
    tiny_tokenizer().save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        '{"pad_token": "[PAD]", "model_max_length": 40, "tokenizer_class": "TokenizersBackend"}'
    )
    return folder
