"""Table: the rows of a sweep, one JSON object a line, one row a run; rewritten atomically."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qexport.atomic import atomic_write_text
from qexport.errors import DataError

__all__ = ["Row", "Table", "read_rows"]

Row = Mapping[str, Any]

FORMAT = 1
"""Of a row; raised when a field changes its meaning."""


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a table in their order.

    Raises:
        DataError: no such file, or a line that is no row of a sweep.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise DataError(
            f"cannot read {path}: {error.strerror}; give a table written by qexport sweep"
        ) from error
    rows = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError(
                f"{path}, line {number} is not JSON; remove the line, the sweep makes its row again"
            ) from error
        if not isinstance(row, dict) or row.get("format_version") != FORMAT or "key" not in row:
            raise DataError(f"{path}, line {number} is not a row of a sweep of this version of qexport")
        rows.append(row)
    return rows


class Table:
    """The table of one sweep on disk."""

    def __init__(self, path: Path) -> None:
        """Read what is there.

        Raises:
            DataError: see `read_rows`.
        """
        self.path = path
        self.rows: dict[str, dict[str, Any]] = {}
        self._read()

    def _read(self) -> None:
        if self.path.is_file():
            self.rows = {row["key"]: row for row in read_rows(self.path)}

    def done(self, key: str) -> bool:
        """Whether the run has a row that says it went well."""
        return self.rows.get(key, {}).get("status") == "done"

    def put(self, row: Row) -> None:
        """Add a row, or replace that of the same run.

        Raises:
            DiskFullError: the old table stays.
        """
        self._read()
        self.rows[row["key"]] = dict(row)
        text = "".join(json.dumps(each, ensure_ascii=False) + "\n" for each in self.rows.values())
        atomic_write_text(self.path, text)
