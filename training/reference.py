"""What PyTorch says: outputs and LayerNorm outputs of a trained folder, for parity checks of an export."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from qexport.training.kinds import get_kind, kind_of_config
from qexport.training.models import load

__all__ = ["TorchReference"]

Batch = Mapping[str, npt.NDArray[Any]]


class TorchReference:
    """A trained folder in evaluation mode.

    Args:
        folder: written by `qexport train`, a student or a teacher.
        threads: CPU threads of PyTorch; None leaves its own choice.
    Raises:
        UnsupportedModelError: see `qexport.load`.
    """

    def __init__(self, folder: str | Path, *, threads: int | None = None) -> None:
        if threads:
            torch.set_num_threads(threads)
        self._model = load(folder)
        self._kind = kind_of_config(self._model.config) or get_kind("classification")
        self._accepted = set(inspect.signature(self._model.forward).parameters)

    def _feeds(self, batch: Batch) -> dict[str, torch.Tensor]:
        return {name: torch.from_numpy(value) for name, value in batch.items() if name in self._accepted}

    @torch.inference_mode()
    def run(self, batch: Batch) -> dict[str, npt.NDArray[np.float32]]:
        """The outputs of one batch by the names that an ONNX file gives them, float32.

        Args:
            batch: int64 [B, S] input_ids, attention_mask and, where the model has them, token_type_ids.
        """
        feeds = self._feeds(batch)
        found = self._kind.read(self._model(**feeds), feeds)
        return {name: value.float().numpy() for name, value in found.items()}

    @torch.inference_mode()
    def layer_norms(self, batch: Batch) -> dict[str, npt.NDArray[np.float32]]:
        """Output of every LayerNorm, float32 [B, S, D], by module path, in the order they ran."""
        found: dict[str, npt.NDArray[np.float32]] = {}
        handles = []
        for path, module in self._model.named_modules():
            if isinstance(module, nn.LayerNorm):

                def keep(_: nn.Module, __: Any, output: torch.Tensor, path: str = path) -> None:
                    found[path] = output.float().numpy()

                handles.append(module.register_forward_hook(keep))
        try:
            self._model(**self._feeds(batch))
        finally:
            for handle in handles:
                handle.remove()
        return found
