"""Learning rates of learned thresholds: parameter groups of their own."""

from __future__ import annotations

from torch import nn
from torch.optim import Optimizer

from qexport.training.calibration import learned_offsets, learned_thresholds
from qexport.training.recipes.base import LearnedSteps

__all__ = ["set_step_rates"]


def set_step_rates(optimizer: Optimizer, model: nn.Module, steps: LearnedSteps) -> None:
    """Move the thresholds of `model` into two new groups of a fresh optimiser, without weight decay.

    Args:
        optimizer: holds every parameter of `model`, and has not made a step.
        model: a student.
        steps: peak learning rates of thresholds of weights, and of activations. Offsets of asymmetric
            activations, small beside their ranges, take the rate of weights.
    """
    weights, activations = learned_thresholds(model)
    thresholds = weights + learned_offsets(model), activations
    own = {id(parameter) for parameters in thresholds for parameter in parameters}
    for group in optimizer.param_groups:
        group["params"] = [parameter for parameter in group["params"] if id(parameter) not in own]
    for parameters, rate in zip(thresholds, (steps.weight_lr, steps.activation_lr), strict=True):
        if parameters:
            optimizer.add_param_group({"params": parameters, "lr": rate, "weight_decay": 0.0})
