"""Callbacks of a run: curvature for loss-aware ternarisation, a clean stop on Ctrl-C."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback

from qexport.training.student import QuantEmbedding, QuantLinear

__all__ = ["Curvature", "StopOnSignal"]

_EPSILON = 1e-8  # as in the released code of loss-aware quantisation


class Curvature(TrainerCallback):
    """After each step copy sqrt(v) of Adam to the modules that ternarise with it (LAT).

    v is the second moment without bias correction: a factor common to all weights changes nothing.
    """

    def __init__(self, model: nn.Module) -> None:
        self.modules = [
            module
            for module in model.modules()
            if isinstance(module, QuantLinear | QuantEmbedding) and module.uses_curvature
        ]

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """transformers' hook, after the optimiser's update."""
        moments = kwargs["optimizer"].state
        for module in self.modules:
            entry = moments.get(module.weight)
            if entry:
                torch.sqrt(entry["exp_avg_sq"], out=module.curvature).add_(_EPSILON)


class StopOnSignal(TrainerCallback):
    """First Ctrl-C: finish the step, write a checkpoint, stop."""

    def __init__(self) -> None:
        self.stopped = False

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """transformers' hook, between two steps."""
        if self.stopped:
            control.should_save = True
            control.should_training_stop = True

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Catch SIGINT and SIGTERM inside the block; a second Ctrl-C stops at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def stop(number: int, frame: Any) -> None:
            if self.stopped:
                raise KeyboardInterrupt
            self.stopped = True

        old = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)
