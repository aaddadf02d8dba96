"""Command-line options read from a configuration dataclass: names, types, defaults and help text.

Each field of the dataclass becomes one option, `--field-name`; the string under the field is its help.
A command says only what differs (`Option`): other names, the short form, the section of the help page.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import itertools
import sys
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from qexport.errors import UsageError

__all__ = ["Option", "field_docs", "takes_config"]

_POSITIONAL = "_positional"


@dataclass(frozen=True, slots=True)
class Option:
    """How one field differs from the plain `--field-name`."""

    names: tuple[str, ...] = ()
    """All names, the one to teach first; empty for the field's own."""
    panel: str | None = None
    """Section of the help page."""
    argument: bool = False
    """A positional argument instead of an option."""
    also_positional: bool = False
    """A required option that may be given as the last positional argument instead."""
    comma: bool = False
    """A tuple, written as comma-separated values."""
    metavar: str | None = None
    """Placeholder of the value on the help page."""


def field_docs(config: type) -> dict[str, str]:
    """The string literal under each field of a dataclass, its whitespace joined."""
    source = inspect.getsource(sys.modules[config.__module__])
    body = next(
        node.body
        for node in ast.parse(source).body
        if isinstance(node, ast.ClassDef) and node.name == config.__name__
    )
    docs: dict[str, str] = {}
    for field, text in itertools.pairwise(body):
        if (
            isinstance(field, ast.AnnAssign)
            and isinstance(field.target, ast.Name)
            and isinstance(text, ast.Expr)
            and isinstance(text.value, ast.Constant)
            and isinstance(text.value.value, str)
        ):
            docs[field.target.id] = " ".join(text.value.value.split())
    return docs


def takes_config(
    config: type, options: Mapping[str, Option], *, panels: Mapping[str, tuple[str, ...]] | None = None
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command function one option per field of `config`.

    The decorated function takes the finished configuration first and its own further options by keyword;
    Typer sees the union of both.

    Args:
        config: a dataclass whose fields are of types that Typer can read from text.
        options: fields whose names, kind or section are not the plain ones.
        panels: section of the help page -> fields in it.
    """
    section = {name: panel for panel, names in (panels or {}).items() for name in names}
    parameters = _parameters(config, options, section)
    types = typing.get_type_hints(config)
    items = {name: typing.get_args(types[name])[0] for name, option in options.items() if option.comma}

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        own = list(inspect.signature(function, eval_str=True).parameters.values())[1:]
        names = {parameter.name for parameter in parameters}

        @functools.wraps(function)
        def command(**values: Any) -> None:
            for name in [name for name in values if name.endswith(_POSITIONAL)]:
                _merge_positional(values, name.removesuffix(_POSITIONAL))
            for name, item in items.items():
                values[name] = _split(name, values[name], item)
            fields = {name: value for name, value in values.items() if name in names}
            rest = {name: value for name, value in values.items() if name not in names}
            function(config(**fields), **rest)

        merged = [*parameters, *own]
        command.__signature__ = inspect.Signature(merged)  # type: ignore[attr-defined]
        command.__annotations__ = {parameter.name: parameter.annotation for parameter in merged}
        del command.__wrapped__  # inspect would look through it
        return command

    return decorate


def _merge_positional(values: dict[str, Any], name: str) -> None:
    """Move the positional spelling of a field to the field, and insist on exactly one of the two."""
    positional = values.pop(name + _POSITIONAL)
    if (positional is None) == (values[name] is None):
        found = "neither" if positional is None else "both"
        raise UsageError(f"give the {name} once, as the last argument or as --{name}; got {found}")
    values[name] = positional if values[name] is None else values[name]


def _split(name: str, text: str, item: Callable[[str], Any]) -> tuple[Any, ...]:
    """Read comma-separated values; no text, no values."""
    try:
        return tuple(item(part.strip()) for part in text.split(",")) if text.strip() else ()
    except ValueError:
        option = name.replace("_", "-")
        raise UsageError(f"--{option} takes whole numbers with commas between them, got '{text}'") from None


def _parameters(
    config: type, options: Mapping[str, Option], section: Mapping[str, str]
) -> list[inspect.Parameter]:
    docs = field_docs(config)
    types = typing.get_type_hints(config)
    unknown = (set(options) | set(section)) - set(types)
    if unknown:
        raise TypeError(f"{config.__name__} has no field {sorted(unknown)[0]}")
    parameters = []
    for field in dataclasses.fields(config):
        option = options.get(field.name, Option())
        plain = f"--{field.name.replace('_', '-')}"
        names = option.names or (plain,)
        panel = option.panel or section.get(field.name)
        required = field.default is dataclasses.MISSING
        if option.argument:
            info: Any = typer.Argument(help=docs[field.name], metavar=option.metavar, show_default=False)
        else:
            if types[field.name] is bool and field.default is True:
                names = (f"{names[0]}/--no-{names[0][2:]}", *names[1:])
            info = typer.Option(
                *names,
                help=docs[field.name],
                rich_help_panel=panel,
                metavar=option.metavar,
                show_default=not required and field.default not in (None, False),
            )
        annotation = str if option.comma else types[field.name]
        if option.also_positional:
            annotation, required = annotation | None, False
            place = typer.Argument(help=f"The same as {names[0]}.", metavar=f"[{field.name.upper()}]")
            parameters.append(_parameter(field.name + _POSITIONAL, Annotated[annotation, place], None))
        default = field.default if field.default is not dataclasses.MISSING else None
        if option.comma:
            default = ",".join(str(item) for item in typing.cast(tuple[Any, ...], default))
        parameters.append(
            _parameter(
                field.name, Annotated[annotation, info], inspect.Parameter.empty if required else default
            )
        )
    return parameters


def _parameter(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
