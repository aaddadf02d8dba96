from __future__ import annotations

import dataclasses
import io
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jsonschema
import numpy as np
import pytest
from rich.console import Console

from qexport.errors import UsageError
from qexport.serving import schema
from qexport.serving.evaluate import evaluate
from qexport.serving.report import Report, json_schema
from qexport.serving.session import Session
from qexport.serving.terminal import megabytes
from qexport.serving.verify import LayerReference, VerifyConfig, verify

MakeFolder = Callable[..., Path]
CHECKOUT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory, toy: SimpleNamespace) -> Report:
    """A report with every section filled."""
    root = tmp_path_factory.mktemp("report")
    folder = toy.write_folder(root / "low", toy.classifier())
    fp32 = toy.write_folder(root / "fp32", toy.classifier(noise=0.3))
    rows = toy.make_rows(60, texts=[f"row <b>{row}</b> & more" for row in range(60)])
    logits, _ = evaluate(Session(folder), rows)
    batch = {"input_ids": np.array([[2, 5, 3]])}
    layers = {"embeddings.LayerNorm": Session(folder, extra_outputs=["norm_0"]).run(batch)["norm_0"]}
    teacher = np.where(np.arange(60)[:, None] % 9 == 0, -logits, logits).astype(np.float32)
    rows = dataclasses.replace(rows, labels=teacher.argmax(-1))
    config = VerifyConfig(
        model=folder, baseline=fp32, lengths=(8, 16), iterations=3, warmup=0, processes=1, max_drop=0.5,
        min_agreement=99.9, max_size_mb=5.0, command="qexport verify low --max-drop 0.5 <&>",
    )  # fmt: skip
    return verify(config, rows, {"student": logits, "teacher": teacher}, layers=LayerReference(batch, layers))


@pytest.fixture(scope="module")
def html(report: Report) -> str:
    """Its page, drawn once."""
    return report.to_html()


def test_json_is_valid_against_the_shipped_schema(report: Report) -> None:
    jsonschema.Draft202012Validator.check_schema(json_schema())
    jsonschema.validate(json.loads(report.to_json()), json_schema())


@pytest.mark.parametrize(
    "damage",
    [
        lambda plain: plain.pop("gates"),
        lambda plain: plain.update(extra=1),
        lambda plain: plain.update(schema_version="9.0"),
        lambda plain: plain["model"].update(file_bytes="many"),
        lambda plain: plain["gates"][0].update(status="maybe"),
        lambda plain: plain["latency"][0].pop("p99_ms"),
    ],
)
def test_the_schema_refuses_a_report_that_is_not_one(
    report: Report, damage: Callable[[dict[str, Any]], Any]
) -> None:
    plain = report.to_dict()
    damage(plain)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(plain, json_schema())


def test_the_shipped_schema_and_its_page_are_those_of_the_code() -> None:
    assert json_schema() == schema.build_schema()
    page = CHECKOUT / "docs" / "report-schema.md"
    assert page.read_text(encoding="utf-8").endswith(schema.markdown().rstrip() + "\n"), (
        "run: python -m qexport.serving.schema --markdown"
    )


def test_every_field_of_the_report_is_described() -> None:
    def missing(node: dict[str, Any], name: str) -> list[str]:
        return [f"{name}.{key}" for key, value in node["properties"].items() if not value.get("description")]

    found = schema.build_schema()
    absent = missing(found, "Report")
    for name, node in found["$defs"].items():
        absent += missing(node, name)
    assert absent == []


def test_numbers_that_are_not_finite_become_null(report: Report) -> None:
    broken = dataclasses.replace(report.parity[0], max_abs=float("inf"), mean_abs=float("nan"))
    changed = dataclasses.replace(report, parity=[broken, *report.parity[1:]])
    plain = json.loads(changed.to_json())
    assert plain["parity"][0]["max_abs"] is None and plain["parity"][0]["mean_abs"] is None
    jsonschema.validate(plain, json_schema())
    assert "inf" in changed.to_html()


class Page(HTMLParser):
    """Collects tags, identifiers and what would be fetched."""

    void = ("meta", "br", "img", "link", "input", "hr")

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.fetched: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.tags.append(tag)
        if tag not in self.void:
            self.open.append(tag)
        if values.get("id"):
            self.ids.append(str(values["id"]))
        for name in ("src", "href", "xlink:href", "data", "action"):
            if values.get(name) and not str(values[name]).startswith("#"):
                self.fetched.append(f"{tag} {name}={values[name]}")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.void:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes <{self.open[-1:]}>"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_is_well_formed_and_fetches_nothing(html: str) -> None:
    text, page = html, Page(html)
    assert page.open == []
    assert page.fetched == []
    assert "script" not in page.tags and "link" not in page.tags
    assert not re.search(r"url\(\s*['\"]?(?!#)", text) and "@import" not in text and "://" not in text
    assert len(page.ids) == len(set(page.ids))
    for reference in re.findall(r'(?:href="#|url\(#)([^")]+)', text):
        assert reference in page.ids


def test_the_page_shows_verdict_gates_plots_and_the_command(report: Report, html: str) -> None:
    text, page = html, Page(html)
    assert page.tags.count("svg") >= 6
    for wanted in (
        "A gate failed", "ternarybert 2-2-8 on toy", "--max-drop", "--min-agreement",
        "qexport verify low --max-drop 0.5 <&>", "Latency by length, 1 thread",
        "Size on disk", "Logit differences", "Layer by layer",
        "What the bytes are",
        report.environment.versions["onnxruntime"], report.model.sha256, "row <b>0</b> & more",
    ):  # fmt: skip
        assert wanted in page.text, wanted
    assert "<b>0</b>" not in text  # text of rows is escaped
    for marker in re.findall(r"#0[0ab]0\d0[0-9]\b", text):
        raise AssertionError(f"a plot kept the marker colour {marker}, which no style defines")


def test_the_page_has_both_colour_schemes_with_the_same_names(html: str) -> None:
    light, dark = re.findall(r":root \{(.*?)\n\s*\}", html, flags=re.DOTALL)[:2]
    names = [set(re.findall(r"--([\w-]+):", block)) for block in (light, dark)]
    assert names[0] == names[1]
    used = set(re.findall(r"var\(--([\w-]+)\)", html))
    assert used <= names[0]


def test_the_page_is_the_same_for_the_same_report(report: Report, html: str) -> None:
    assert report.to_html() == html


def test_the_page_of_a_bare_measurement_has_no_empty_sections(
    make_folder: MakeFolder, toy: SimpleNamespace
) -> None:
    config = VerifyConfig(model=make_folder() / "model.onnx", latency=False, processes=0)
    bare = verify(config, toy.make_rows(10, texts=None))
    page = Page(bare.to_html())
    assert "Measured, no gate was set" in page.text
    for absent in ("Gates", "Every latency", "In a process of its own", "Layer by layer", "Size on disk"):
        assert absent not in page.text
    jsonschema.validate(json.loads(bare.to_json()), json_schema())


def test_the_terminal_shows_verdict_table_and_gates(report: Report) -> None:
    out = io.StringIO()
    report.print(Console(file=out, width=120))
    text = out.getvalue()
    assert text.startswith("FAILED")
    for wanted in (
        "ternarybert 2-2-8",
        "ORT int8",
        "FP32",
        "drop vs teacher",
        "--max-drop 0.5",
        "student",
        "stock vs fp32",
    ):
        assert wanted in text, wanted
    assert "\x1b" not in text  # a pipe gets no colour codes


def test_brackets_in_names_are_printed_as_they_are(report: Report) -> None:
    engines = [dataclasses.replace(report.engines[0], label="a [b] c"), *report.engines[1:]]
    out = io.StringIO()
    changed = dataclasses.replace(report, engines=engines, notes=["[bold]plain[/bold]"])
    changed.print(Console(file=out, width=120))
    assert "a [b] c" in out.getvalue() and "[bold]plain[/bold]" in out.getvalue()


def test_write_leaves_both_files_and_replaces_older_ones(report: Report, tmp_path: Path) -> None:
    folder = tmp_path / "reports" / "one"
    paths = report.write(folder)
    assert [path.name for path in paths] == ["report.json", "report.html"]
    assert json.loads(paths[0].read_text(encoding="utf-8"))["status"] == "failed"
    report.write(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["report.html", "report.json"]
    (tmp_path / "file").write_text("")
    with pytest.raises((UsageError, FileExistsError)):
        report.write(tmp_path / "file")


@pytest.mark.parametrize(
    ("n_bytes", "text"),
    [(None, "-"), (1_234, "0.001"), (4_926_000, "4.93"), (22_900_000, "22.9"), (418_000_000, "418.0")],
)
def test_megabytes_have_three_digits(n_bytes: int | None, text: str) -> None:
    assert megabytes(n_bytes) == text
