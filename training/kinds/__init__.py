"""Kinds of task, one module each: `get_kind` by name, `kind_of_config` by the head that a model has."""

from __future__ import annotations

from typing import Any

from qexport.errors import UnknownNameError
from qexport.training.kinds.base import Kind, Named
from qexport.training.kinds.classification import CLASSIFICATION, REGRESSION
from qexport.training.kinds.embedding import EMBEDDING
from qexport.training.kinds.span import SPAN
from qexport.training.kinds.tokens import TOKENS

__all__ = ["KINDS", "Kind", "Named", "get_kind", "kind_of_config"]

KINDS: dict[str, Kind] = {kind.name: kind for kind in (CLASSIFICATION, REGRESSION, SPAN, TOKENS, EMBEDDING)}
"""Every kind by name."""


def get_kind(name: str) -> Kind:
    """The kind called `name`.

    Raises:
        UnknownNameError: no such kind.
    """
    if name not in KINDS:
        raise UnknownNameError("kind of task", name, KINDS)
    return KINDS[name]


def kind_of_config(config: Any) -> Kind | None:
    """The kind of the head that the model of a config.json has; None for an encoder without one of ours."""
    for architecture in getattr(config, "architectures", None) or ():
        for kind in KINDS.values():
            if kind.heads(str(architecture)):
                one = kind.architecture == CLASSIFICATION.architecture and config.num_labels == 1
                return REGRESSION if one else kind
    return None
