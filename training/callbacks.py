"""Callbacks of a run: curvature for loss-aware ternarisation, a clean stop on Ctrl-C, lines for people."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import EarlyStoppingCallback, ProgressCallback, TrainerCallback

from qexport.training.batches import Order
from qexport.training.calibration import learned_thresholds
from qexport.training.quantizers import LearnedAsymmetricActivation
from qexport.training.quantizers.learned import THRESHOLD_FLOOR
from qexport.training.student import QuantEmbedding, QuantLinear

__all__ = ["Curvature", "Epochs", "Lines", "Patience", "StopOnSignal", "Thresholds", "log_line"]

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


class Thresholds(TrainerCallback):
    """After each step keep learned thresholds above zero, and 0 within learned asymmetric ranges."""

    def __init__(self, model: nn.Module) -> None:
        self.thresholds = [parameter for group in learned_thresholds(model) for parameter in group]
        self.ranges = [
            module for module in model.modules() if isinstance(module, LearnedAsymmetricActivation)
        ]

    @torch.no_grad()
    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """transformers' hook, after the optimiser's update."""
        for parameter in self.thresholds:
            parameter.clamp_(min=THRESHOLD_FLOOR)
        for learned in self.ranges:
            learned.offset.copy_(torch.maximum(learned.offset.clamp(max=0.0), -learned.threshold))


class Epochs(TrainerCallback):
    """Tell an order of rows which pass begins; a sampler inside accelerate's loaders is not told."""

    def __init__(self, order: Order) -> None:
        self.order = order

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """transformers' hook, before rows are drawn; after a resume `state.epoch` has a fraction."""
        self.order.set_epoch(int((state.epoch or 0.0) + 1e-6))


class Patience(EarlyStoppingCallback):
    """transformers' early stopping that after a resume knows the evaluations before it."""

    def __init__(self, patience: int, metric: str) -> None:
        """Stop after `patience` evaluations in a row that are no better; `metric` as in the log."""
        super().__init__(early_stopping_patience=patience)
        self.metric = metric

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """transformers' hook."""
        base: Any = super()  # transformers' hooks have no types
        base.on_train_begin(args, state, control, **kwargs)
        values = [line[self.metric] for line in state.log_history if self.metric in line]
        best = max(range(len(values)), key=values.__getitem__, default=0)
        self.early_stopping_patience_counter = max(0, len(values) - 1 - best)


def log_line(step: int, steps: int, logs: Mapping[str, Any]) -> str:
    """One log entry of the Trainer as a line: step, then losses and metrics."""
    shown = []
    for name, value in logs.items():
        bare = name.removeprefix("eval_")
        if isinstance(value, float) and (
            name.startswith("loss") or (name != bare and bare[:7] not in _TIMINGS)
        ):
            shown.append(f"{bare.replace('loss_', '').replace('_', ' ')} {value:.4f}")
    what = "evaluation: " if any(name.startswith("eval_") for name in logs) else ""
    return f"step {step}/{steps}  {what}{', '.join(shown)}" if shown else ""


_TIMINGS = ("runtime", "samples", "steps_p", "model_p")


class Lines(ProgressCallback):
    """A bar on a terminal, and a readable line for each log entry everywhere."""

    def __init__(self, say: Callable[[str], None], *, bars: bool) -> None:
        super().__init__()
        self.say, self.bars = say, bars
        self.bar: Any = super()  # transformers' hooks have no types

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """transformers' hook: open the bar."""
        if self.bars:
            self.bar.on_train_begin(args, state, control, **kwargs)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """transformers' hook: move the bar."""
        if self.bars:
            self.bar.on_step_end(args, state, control, **kwargs)

    def on_prediction_step(
        self, args: Any, state: Any, control: Any, eval_dataloader: Any = None, **kwargs: Any
    ) -> None:
        """transformers' hook: evaluations are short, they have no bar of their own."""

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """transformers' hook: close the bar."""
        if self.bars:
            self.bar.on_train_end(args, state, control, **kwargs)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """transformers' hook: one line, above the bar."""
        line = log_line(state.global_step, state.max_steps, logs or {})
        if not line or not state.is_world_process_zero:
            return
        if self.bars and self.training_bar is not None:
            self.training_bar.write(line)
        else:
            self.say(line)


class StopOnSignal(TrainerCallback):
    """First Ctrl-C: finish the step, write a checkpoint, stop."""

    def __init__(self) -> None:
        self.stopped = False

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """transformers' hook, between two steps; all processes stop at the same one."""
        if args.world_size > 1:
            flag = torch.tensor(float(self.stopped), device=args.device)
            torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX)
            self.stopped = bool(flag)
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
