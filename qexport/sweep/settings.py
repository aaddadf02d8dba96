"""Settings: options of `train` and `verify`, from YAML values to words of a command."""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from qexport.options import Option
from qexport.sweep.document import Node

__all__ = ["convert", "plain_names", "words"]


def plain_names(node: Node, where: str) -> Node:
    """A mapping with hyphens in its keys written as underscores, as fields are spelled."""
    entries = {name.replace("-", "_"): value for name, value in node.mapping(where).items()}
    return Node(entries, node.file, node.line)


def convert(config: type, name: str, node: Node) -> Any:
    """The value of field `name` of a configuration dataclass; paths stay text, so that it is JSON.

    YAML reads 2e-4 as text; a field that takes a number takes it all the same.

    Raises:
        UsageError: a value of another kind.
    """
    value = node.value
    kinds = _kinds(_hints(config)[name])
    if value is None:
        return None
    if tuple in kinds:
        return [item.text(name) for item in node.items(name)]
    if isinstance(value, dict | list):
        raise node.error(
            f"{name} must be one value here, got a {'list' if isinstance(value, list) else 'mapping'}"
        )
    if bool in kinds:
        if isinstance(value, bool):
            return value
        raise node.error(f"{name} must be true or false, got '{value}'")
    if str in kinds or Path in kinds:
        return str(value)
    number = None if isinstance(value, bool) else _number(value)
    if number is None or (float not in kinds and number != int(number)):
        wanted = "a number" if float in kinds else "a whole number"
        raise node.error(f"{name} must be {wanted}, got '{value}'")
    return float(number) if float in kinds else int(number)


@functools.cache
def _hints(config: type) -> dict[str, Any]:
    return typing.get_type_hints(config)


def _kinds(hint: Any) -> set[Any]:
    """The types that a field allows, without None."""
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        return {kind for item in typing.get_args(hint) for kind in _kinds(item)} - {type(None)}
    return {typing.get_origin(hint) or hint}


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if abs(number) < float("inf") else None


def words(config: type, values: Mapping[str, Any], options: Mapping[str, Option]) -> Iterator[str]:
    """Command-line words that give these fields these values; None and plain defaults say nothing.

    Args:
        config: the dataclass that the command's options are read from.
        values: field -> value, as `convert` gives it.
        options: how the command spells its fields, see `qexport.options.takes_config`.
    """
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    for name, value in values.items():
        if value is None:
            continue
        names = options.get(name, Option()).names or (f"--{name.replace('_', '-')}",)
        if isinstance(value, bool):
            if value != defaults[name]:
                yield names[0] if value else f"--no-{names[0][2:]}"
            continue
        yield names[0]
        yield ",".join(map(str, value)) if isinstance(value, list | tuple) else _shown(value)


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value)
