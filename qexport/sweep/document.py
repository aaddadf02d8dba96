"""Document: a YAML file whose every value knows its line, so that a mistake in it can be pointed at."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from qexport.errors import UsageError

__all__ = ["Node", "read_document"]

_MERGE = "tag:yaml.org,2002:merge"


@dataclass(frozen=True, slots=True)
class Node:
    """One value of the file."""

    value: Any
    """A scalar, a dict of text to Node, or a list of Node."""
    file: Path
    line: int
    """From 1."""

    def error(self, text: str) -> UsageError:
        """A sentence that begins with the place."""
        return UsageError(f"{self.file}, line {self.line}: {text}")

    def mapping(self, what: str) -> dict[str, Node]:
        """The value, which must be a mapping; nothing at all is an empty one.

        Raises:
            UsageError: it is something else.
        """
        if self.value is None:
            return {}
        if not isinstance(self.value, dict):
            raise self.error(f"{what} must be a mapping of names to values, got {_shown(self.value)}")
        return self.value

    def items(self, what: str) -> list[Node]:
        """The value as a list; a single value is a list of one.

        Raises:
            UsageError: a mapping, or an empty list.
        """
        if isinstance(self.value, list):
            if not self.value:
                raise self.error(f"{what} is an empty list; give at least one value or leave it out")
            return self.value
        if isinstance(self.value, dict) or self.value is None:
            raise self.error(f"{what} must be a value or a list of values, got {_shown(self.value)}")
        return [self]

    def text(self, what: str) -> str:
        """The value as text.

        Raises:
            UsageError: a list, a mapping or nothing.
        """
        if self.value is None or isinstance(self.value, dict | list):
            raise self.error(f"{what} must be one value, got {_shown(self.value)}")
        return str(self.value)

    def only(self, known: Iterable[str], where: str) -> None:
        """Refuse keys that are not known.

        Raises:
            UsageError: names the key's line and the nearest known name.
        """
        names = sorted(known)
        for name, value in self.mapping(where).items():
            if name in names:
                continue
            near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
            hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(names)}"
            raise value.error(f"unknown key '{name}' in {where}; {hint}")


def read_document(path: Path) -> Node:
    """Read one YAML file; the top must be a mapping.

    Raises:
        UsageError: no such file, not UTF-8, not YAML, a key given twice.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}; give the YAML file of a sweep") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 text; save it as UTF-8") from error
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        found = _node(root, path) if root is not None else Node(None, path, 1)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark is not None else ""
        problem = getattr(error, "problem", None) or "it cannot be read"
        raise UsageError(f"{path}{line} is not valid YAML: {problem}") from error
    found.mapping("the file")
    return found


def _node(node: Any, path: Path) -> Node:
    line = node.start_mark.line + 1
    if isinstance(node, yaml.MappingNode):
        entries: dict[str, Node] = {}
        merged: dict[str, Node] = {}
        for key, value in node.value:
            if key.tag == _MERGE:
                parts = value.value if isinstance(value, yaml.SequenceNode) else [value]
                for part in reversed(parts):
                    merged.update(_node(part, path).mapping("<<"))
                continue
            name = str(key.value)
            if name in entries:
                raise Node(None, path, key.start_mark.line + 1).error(f"'{name}' is given twice; keep one")
            found = _node(value, path)
            entries[name] = Node(found.value, path, key.start_mark.line + 1)
        return Node({**merged, **entries}, path, line)
    if isinstance(node, yaml.SequenceNode):
        return Node([_node(item, path) for item in node.value], path, line)
    return Node(yaml.constructor.SafeConstructor().construct_object(node), path, line)


def _shown(value: Any) -> str:
    if value is None:
        return "nothing"
    return "a list" if isinstance(value, list) else "a mapping" if isinstance(value, dict) else f"'{value}'"
