"""Options from a dataclass: names, help, defaults, kinds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from qexport.errors import UsageError
from qexport.options import Option, field_docs, takes_config


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A configuration."""

    model: Path
    """Folder to read."""
    output: Path
    """Folder
    to write."""
    bits: str | None = None
    """Bits of weights."""
    rate: float = 0.5
    """A rate."""
    sizes: tuple[int, ...] = (1, 2)
    """Sizes."""
    check: bool = True
    """Check it."""
    force: bool = False
    """Replace it."""


def _app() -> tuple[typer.Typer, list[tuple[Sample, bool]]]:
    seen: list[tuple[Sample, bool]] = []
    options = {
        "model": Option(argument=True),
        "output": Option(("--output", "-o"), also_positional=True),
        "bits": Option(("--bits", "-b"), panel="Numbers"),
        "sizes": Option(comma=True),
    }

    @takes_config(Sample, options, panels={"Numbers": ("rate",)})
    def command(config: Sample, *, json: bool = False) -> None:
        """Do it."""
        seen.append((config, json))

    app = typer.Typer()
    app.command()(command)
    return app, seen


def test_docs_are_the_strings_under_the_fields() -> None:
    docs = field_docs(Sample)
    assert docs["model"] == "Folder to read."
    assert docs["output"] == "Folder to write."
    assert list(docs) == ["model", "output", "bits", "rate", "sizes", "check", "force"]


def test_values_reach_the_config() -> None:
    app, seen = _app()
    words = [
        "m",
        "-o",
        "out",
        "-b",
        "2-2-8",
        "--rate",
        "2",
        "--sizes",
        "3, 4",
        "--no-check",
        "--force",
        "--json",
    ]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    config = Sample(
        model=Path("m"), output=Path("out"), bits="2-2-8", rate=2.0, sizes=(3, 4), check=False, force=True
    )
    assert seen == [(config, True)]


def test_defaults_are_those_of_the_dataclass() -> None:
    app, seen = _app()
    assert CliRunner().invoke(app, ["m", "out"]).exit_code == 0
    assert seen == [(Sample(model=Path("m"), output=Path("out")), False)]


def test_help_page_has_field_docs_and_panels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    page = CliRunner().invoke(_app()[0], ["--help"]).output
    for text in ("Folder to read.", "Folder to write.", "Bits of weights.", "Numbers", "--no-check", "1,2"):
        assert text in page


@pytest.mark.parametrize(("words", "match"), [(["m"], "neither"), (["m", "a", "-o", "b"], "both")])
def test_positional_or_option_but_once(words: list[str], match: str) -> None:
    result = CliRunner().invoke(_app()[0], words)
    assert isinstance(result.exception, UsageError)
    assert match in str(result.exception)


def test_words_in_a_number_list_are_refused() -> None:
    result = CliRunner().invoke(_app()[0], ["m", "out", "--sizes", "1,two"])
    assert isinstance(result.exception, UsageError)
    assert "--sizes takes whole numbers" in str(result.exception)


def test_option_for_a_field_that_does_not_exist_is_a_programming_error() -> None:
    with pytest.raises(TypeError, match="no field colour"):
        takes_config(Sample, {"colour": Option()})
