"""Kinds of model, one module each: `get_kind` by name, `kind_of_graph` by the outputs of a file."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qexport.errors import UnknownNameError, UnsupportedModelError
from qexport.serving.kinds.base import Agreement, OutputKind, stack_rows

__all__ = [
    "KNOWN_INPUTS",
    "Agreement",
    "OutputKind",
    "decoding_of",
    "get_kind",
    "kind_names",
    "kind_of_graph",
    "stack_rows",
]

KNOWN_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
"""The inputs that an encoder exported for transformers, optimum or qexport may have, all int64 [B, S]."""

_KINDS = {
    "classification": "classification:CLASSIFICATION",
    "regression": "classification:REGRESSION",
    "span": "span:SPAN",
    "tokens": "tokens:TOKENS",
    "embedding": "embedding:EMBEDDING",
}
"""Name -> module and object; of kinds with the same outputs the first stands for a file that does not say."""


def kind_names() -> tuple[str, ...]:
    """Every kind."""
    return tuple(_KINDS)


def get_kind(name: str) -> OutputKind:
    """The kind called `name`.

    Raises:
        UnknownNameError: no such kind.
    """
    if name not in _KINDS:
        raise UnknownNameError("kind of task", name, _KINDS)
    module, _, attribute = _KINDS[name].partition(":")
    found: OutputKind = getattr(importlib.import_module(f"{__name__}.{module}"), attribute)
    return found


def decoding_of(folder: Path) -> dict[str, float]:
    """What an exported folder says about reading its outputs: "decoding" in qexport.json, {} when absent."""
    return _numbers(folder / "qexport.json")


def _numbers(path: Path) -> dict[str, float]:
    if not path.is_file():
        return {}
    try:
        stated = json.loads(path.read_text(encoding="utf-8")).get("decoding") or {}
        return {str(name): float(value) for name, value in stated.items()}
    except (ValueError, AttributeError, TypeError) as error:
        raise UnsupportedModelError(
            f"{path}: decoding must be an object of numbers ({error}); export the model again"
        ) from error


def kind_of_graph(
    path: Path, inputs: Sequence[str], outputs: Mapping[str, Sequence[Any]], stated: object = None
) -> OutputKind:
    """What a graph is, by its outputs.

    Args:
        path: of the file, for the message.
        inputs: names of the graph's inputs.
        outputs: name -> shape of each output.
        stated: kind in the qexport.json beside it; decides between kinds with the same outputs.
    Raises:
        UnsupportedModelError: inputs beside `KNOWN_INPUTS`, or the outputs of no kind.
    """
    fitting = [kind for kind in map(get_kind, _KINDS) if kind.fits(outputs)]
    foreign = [name for name in inputs if name not in KNOWN_INPUTS]
    if not fitting or foreign or "input_ids" not in inputs:
        wanted = dict.fromkeys(f"{' and '.join(kind.outputs)} {kind.axes}" for kind in map(get_kind, _KINDS))
        got = ", ".join(f"{name} {list(shape)}" for name, shape in outputs.items())
        raise UnsupportedModelError(
            f"{path} is not an encoder that qexport knows: inputs must be among {', '.join(KNOWN_INPUTS)} "
            f"and outputs must hold {', or '.join(wanted)}, got inputs {', '.join(inputs)} and outputs {got}"
            "; export it with qexport to-onnx"
        )
    return next((kind for kind in fitting if kind.name == stated), fitting[0])
