from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from qexport.errors import UsageError
from qexport.graphs.config import ExportConfig, Target


def target(**options: Any) -> Target:
    return ExportConfig(model=Path("in"), output=Path("out"), **options).target()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, Target(18, 8, False)),
        ({"inline": True}, Target(18, 8, True, True)),
        ({"min_ort": "1.16"}, Target(18, 8, True)),
        ({"min_ort": "1.19.2"}, Target(18, 8, True)),
        ({"min_ort": "1.16", "opset": 19}, Target(19, 9, True)),
        ({"min_ort": "1.20", "opset": 21}, Target(21, 10, False)),
        ({"min_ort": "2.0", "opset": 20}, Target(20, 9, False)),
    ],
)
def test_target_follows_the_options(options: dict[str, Any], expected: Target) -> None:
    assert target(**options) == expected


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"min_ort": "old"}, "a version such as 1.20"),
        ({"min_ort": "1"}, "a version such as 1.20"),
        ({"min_ort": "1.15"}, "1.16 or newer"),
        ({"opset": 17}, "one of 18, 19, 20, 21"),
        ({"opset": 22}, "one of 18, 19, 20, 21"),
        ({"min_ort": "1.16", "opset": 20}, "reads opset 19 at most"),
        ({"min_ort": "1.17", "opset": 21}, "reads opset 20 at most"),
    ],
)
def test_impossible_targets_are_usage_errors(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        target(**options)
