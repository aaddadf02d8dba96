"""The JSON schemas of report.json and bench.json, derived from the dataclasses of the reports.

    python -m qexport.serving.schema             # the schema, as shipped in serving/report.schema.json
    python -m qexport.serving.schema --markdown  # the tables of docs/report-schema.md
    python -m qexport.serving.schema --bench     # the same two of `qexport bench`:
                                                 # serving/bench/bench.schema.json and docs/bench-schema.md

Tests compare the files with what this module gives, so that none can fall behind the code.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import sys
import textwrap
import types
import typing
from typing import Any

from qexport.serving.bench.report import SCHEMA_VERSION as BENCH_SCHEMA_VERSION
from qexport.serving.bench.report import BenchReport
from qexport.serving.parity import Disagreement, LayerDifference, Parity
from qexport.serving.report import SCHEMA_VERSION, Invariance, Report

__all__ = ["build_schema", "markdown"]

_PLAIN = {str: "string", int: "integer", float: "number", bool: "boolean"}
_MAY_BE_INFINITE = (Parity, LayerDifference, Invariance, Disagreement)
"""Here a number that is not finite (a model that gave NaN) is written as null."""
_STATES = {
    ("Report", "status"): ["passed", "failed", "undecided", "incomplete", "interrupted", "measured"],
    ("Report", "schema_version"): [SCHEMA_VERSION],
    ("BenchReport", "schema_version"): [BENCH_SCHEMA_VERSION],
}


def _field_docs(kind: type) -> dict[str, str]:
    """Field name -> the string under it in the source."""
    (body,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(body, ast.ClassDef)
    found = {}
    for statement, after in zip(body.body, body.body[1:], strict=False):
        if not isinstance(statement, ast.AnnAssign) or not isinstance(statement.target, ast.Name):
            continue
        if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
            found[statement.target.id] = " ".join(inspect.cleandoc(str(after.value.value)).split())
    return found


def _fields(kind: type) -> list[tuple[str, Any, str]]:
    """(name, type, description) of each field of a dataclass."""
    hints, docs = typing.get_type_hints(kind), _field_docs(kind)
    return [(field.name, hints[field.name], docs.get(field.name, "")) for field in dataclasses.fields(kind)]


def _schema_of(hint: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint in _PLAIN:
        return {"type": _PLAIN[hint]}
    if dataclasses.is_dataclass(hint):
        assert isinstance(hint, type)
        _define(hint, definitions)
        return {"$ref": f"#/$defs/{hint.__name__}"}
    if origin is typing.Literal:
        return {"enum": list(arguments)}
    if origin is list:
        return {"type": "array", "items": _schema_of(arguments[0], definitions)}
    if origin is dict:
        return {"type": "object", "additionalProperties": _schema_of(arguments[1], definitions)}
    if origin in (typing.Union, types.UnionType):
        return {"anyOf": [_schema_of(item, definitions) for item in arguments]}
    return {"type": "null"} if hint is type(None) else {}


def _object(kind: type, definitions: dict[str, Any]) -> dict[str, Any]:
    properties = {}
    for name, hint, text in _fields(kind):
        schema = _schema_of(hint, definitions)
        if hint is float and issubclass(kind, _MAY_BE_INFINITE):
            schema = {"type": ["number", "null"]}
        states = _STATES.get((kind.__name__, name))
        if states:
            schema = {"enum": states}
        properties[name] = {**schema, "description": text} if text else schema
    return {
        "type": "object",
        "description": (inspect.getdoc(kind) or "").splitlines()[0],
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _define(kind: type, definitions: dict[str, Any]) -> None:
    if kind.__name__ not in definitions:
        definitions[kind.__name__] = {}  # keeps its place while its own fields are described
        definitions[kind.__name__] = _object(kind, definitions)


def build_schema(root: type = Report) -> dict[str, Any]:
    """The schema of `Report` or `BenchReport`, JSON Schema draft 2020-12."""
    definitions: dict[str, Any] = {}
    report = _object(root, definitions)
    title = {
        Report: f"verification report {SCHEMA_VERSION}", BenchReport: f"benchmark {BENCH_SCHEMA_VERSION}"
    }[root]  # fmt: skip
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"qexport {title}",
        **report,
        "$defs": definitions,
    }


def _type_name(hint: Any) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint in _PLAIN:
        return _PLAIN[hint]
    if dataclasses.is_dataclass(hint):
        assert isinstance(hint, type)
        return f"[{hint.__name__}](#{hint.__name__.lower()})"
    if origin is typing.Literal:
        return " or ".join(f"`{item}`" for item in arguments)
    if origin is list:
        return f"list of {_type_name(arguments[0])}"
    if origin is dict:
        return "object"
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_type_name(item) for item in arguments)
    return "null" if hint is type(None) else "any"


def markdown(root: type = Report) -> str:
    """One table per object, the report first."""
    kinds: dict[str, type] = {root.__name__: root}
    pending: list[type] = [root]
    while pending:
        for _, hint, _ in _fields(pending.pop(0)):
            for part in _dataclasses_in(hint):
                if part.__name__ not in kinds:
                    kinds[part.__name__] = part
                    pending.append(part)
    lines = []
    for name, kind in kinds.items():
        lines += [f"## {name}", "", (inspect.getdoc(kind) or "").splitlines()[0], ""]
        lines += ["| field | type | meaning |", "| --- | --- | --- |"]
        for field, hint, text in _fields(kind):
            shown = " or ".join(f"`{state}`" for state in _STATES.get((name, field), [])) or _type_name(hint)
            lines.append(f"| `{field}` | {shown} | {text.replace('|', '/')} |")
        lines.append("")
    return "\n".join(lines)


def _dataclasses_in(hint: Any) -> list[type]:
    if dataclasses.is_dataclass(hint):
        assert isinstance(hint, type)
        return [hint]
    return [part for item in typing.get_args(hint) for part in _dataclasses_in(item)]


if __name__ == "__main__":
    chosen = BenchReport if "--bench" in sys.argv else Report
    print(markdown(chosen) if "--markdown" in sys.argv else json.dumps(build_schema(chosen), indent=2))
