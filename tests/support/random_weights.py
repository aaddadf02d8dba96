"""A model of torch's meta device with random weights, for tests of a size."""

from __future__ import annotations

import torch
from torch import nn


def materialise(model: nn.Module) -> nn.Module:
    """The model on the CPU: parameters normal with deviation 0.02, position ids counted, other buffers 0."""
    model = model.to_empty(device="cpu")
    for name, buffer in model.named_buffers():
        counted = torch.arange(buffer.numel()).view_as(buffer)
        buffer.copy_(counted if name.endswith("position_ids") else torch.zeros_like(buffer))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.02)
    return model
