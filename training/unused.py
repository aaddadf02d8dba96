"""Parameters that a loss does not depend on, such as a task layer where only hidden states are compared.

With several processes each waits for the gradient of every parameter that requires one (PyTorch's
DistributedDataParallel), so those that never get one must not require it.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

__all__ = ["unused_parameters"]


def unused_parameters(model: nn.Module, loss: Tensor) -> list[str]:
    """Names of the parameters of `model` that require a gradient and get none from `loss`.

    Args:
        model: has computed `loss`.
        loss: scalar; its graph is walked, no gradient is computed.
    """
    reached: set[int] = set()
    seen: set[Any] = set()
    waiting: list[Any] = [loss.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):  # the end of a path: a parameter
            reached.add(id(node.variable))
        waiting.extend(following for following, _ in node.next_functions)
    return [
        name
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and id(parameter) not in reached
    ]
