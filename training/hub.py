"""Splits of data sets on the Hugging Face hub, through the optional package `datasets`."""

from __future__ import annotations

import importlib
from typing import Any

from qexport.errors import EnvironmentProblem, MissingPackageError
from qexport.training.tasks import Task

__all__ = ["hub_name", "hub_split"]


def hub_name(task: Task) -> str:
    """The data set of a task with its configuration, for people: "nyu-mll/glue/sst2"."""
    return "/".join(part for part in (task.hub_id, task.hub_config) if part)


def hub_split(task: Task, name: str, *, instead: str) -> Any:
    """One split as `datasets` gives it.

    Args:
        task: has a `hub_id`.
        name: of the split there.
        instead: what to do without the hub, for messages: "pass --data and --eval".
    Raises:
        MissingPackageError: `datasets` is not installed.
        EnvironmentProblem: the hub cannot be reached and nothing is cached.
    """
    try:
        load_dataset = importlib.import_module("datasets").load_dataset
    except ImportError as error:
        raise MissingPackageError(
            f"reading {task.name} from the Hugging Face hub needs the package datasets; run pip install "
            f"datasets, or {instead}"
        ) from error
    try:
        return load_dataset(*filter(None, (task.hub_id, task.hub_config)), split=name)
    except (OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise EnvironmentProblem(
            f"cannot load {hub_name(task)}, split {name}, from the Hugging Face hub or its cache "
            f"({reason}); connect to the network, or {instead}"
        ) from error
