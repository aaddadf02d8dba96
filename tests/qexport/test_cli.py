"""The command line: names, exit codes, what goes to stdout, what is imported."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import qexport
from qexport import cli, errors
from qexport.cli import main

COMMANDS = ("train", "to-onnx", "verify", "bench", "predict", "inspect", "quickstart", "tasks", "methods")


@pytest.fixture(autouse=True)
def wide_plain_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "dumb")


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    page = capsys.readouterr().out
    for command in COMMANDS:
        assert f" {command} " in page
    assert "130 interrupted" in page


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_each_command_has_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    page = capsys.readouterr().out
    assert "Example" in page
    assert f"qexport {command}" in page.split("Example", 1)[1]


def test_help_imports_no_heavy_package() -> None:
    code = (
        "import sys; from qexport.cli import main;"
        "[main([name, '--help']) for name in ('train', 'verify', 'bench')];"
        "heavy = {'torch', 'transformers', 'onnx', 'onnxruntime', 'numpy', 'sklearn', 'matplotlib'};"
        "sys.exit(', '.join(sorted(heavy & set(sys.modules))) or None)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_predict_and_inspect_import_neither_torch_nor_transformers(tmp_path: Path) -> None:
    code = (
        "import sys; from qexport.cli import main;"
        f"codes = main(['predict', {str(tmp_path)!r}, 'text']), main(['inspect', {str(tmp_path)!r}]);"
        "assert codes == (5, 5), codes;"
        "sys.exit(', '.join(sorted({'torch', 'transformers'} & set(sys.modules))) or None)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_version_is_the_package_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"qexport {qexport.__version__}\n"


@pytest.mark.parametrize(
    "words",
    [
        ["trian"],
        ["train", "--methd", "fp32"],
        ["train", "--method", "fp32", "--epochs", "many"],
        ["predict", "-x"],
    ],
)
def test_usage_errors_end_in_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert "Usage" in output.err


def test_unknown_command_suggests_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["to-onx"]) == 2
    assert "to-onnx" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("problem", "code"),
    [
        (errors.QexportError("x"), 1),
        (errors.UsageError("x"), 2),
        (errors.UnknownNameError("task", "sst3", ["sst2"]), 2),
        (errors.DataError("x"), 2),
        (errors.OutputExistsError("x"), 2),
        (errors.GateFailed("x"), 3),
        (errors.EnvironmentProblem("x"), 4),
        (errors.MissingPackageError("x"), 4),
        (errors.DiskFullError("x"), 4),
        (errors.UnsupportedModelError("x"), 5),
        (errors.ShapeError("x"), 5),
        (errors.Interrupted("x"), 130),
    ],
)
def test_error_becomes_one_line_and_its_exit_code(
    problem: errors.QexportError,
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import qexport.training.recipes as recipes

    class Raises(dict[str, object]):
        def items(self) -> None:  # type: ignore[override]
            raise problem

    monkeypatch.setattr(recipes, "RECIPES", Raises())
    assert main(["methods"]) == code
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err == f"qexport: {problem}\n"


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    import qexport.training.recipes as recipes

    monkeypatch.setattr(recipes, "RECIPES", None)
    with pytest.raises(AttributeError):
        main(["methods"])


def test_ctrl_c_ends_in_130_with_the_command_to_repeat(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import qexport.training.recipes as recipes

    class Raises(dict[str, object]):
        def items(self) -> None:  # type: ignore[override]
            raise KeyboardInterrupt

    monkeypatch.setattr(recipes, "RECIPES", Raises())
    assert main(["methods", "--json"]) == 130
    assert "run again: qexport methods --json" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        ["--learning-rate", "-1"],
        ["--learning_rate", "-1"],
        ["--lr", "-1"],
        ["--lr=-1"],
    ],
)
def test_snake_kebab_and_hugging_face_names_are_the_same_option(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "--method", "fp32", "--task_name", "sst2", "--output_dir", "x", *words]) == 2
    assert capsys.readouterr().err == "qexport: --lr must be greater than 0, got -1.0\n"


def test_snake_case_command_is_accepted(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["to_onnx", "student", "-o", "x", "--min_ort", "old"]) == 2
    assert "--min-ort must be a version" in capsys.readouterr().err


def test_every_alias_leads_to_an_option() -> None:
    declared = set()
    for command in ("train", "to-onnx", "verify"):
        group = cli.typer.main.get_command(cli.app)
        for parameter in group.commands[command].params:  # type: ignore[attr-defined]
            declared.update(name.lstrip("-") for name in parameter.opts)
    assert set(cli._ALIASES.values()) <= declared
    assert not set(cli._ALIASES) & declared


def test_train_has_one_option_for_each_field() -> None:
    import dataclasses

    from qexport.training.config import TrainConfig

    group = cli.typer.main.get_command(cli.app)
    options = {parameter.name for parameter in group.commands["train"].params}  # type: ignore[attr-defined]
    assert {field.name for field in dataclasses.fields(TrainConfig)} <= options
    for parameter in group.commands["train"].params:  # type: ignore[attr-defined]
        assert parameter.help, parameter.name


def test_listings_are_json_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tasks", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {"sst2", "mnli", "stsb", "rotten_tomatoes"} <= {row["task"] for row in rows}
    assert main(["methods", "--json"]) == 0
    assert {"fp32", "ternarybert", "q8bert"} <= {row["method"] for row in json.loads(capsys.readouterr().out)}


def test_tables_have_no_escape_codes_when_color_is_off(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--no-color", "tasks"]) == 0
    page = capsys.readouterr().out
    assert "rotten_tomatoes" in page
    assert "\x1b" not in page


def test_output_of_to_onnx_is_given_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["to-onnx", "student"]) == 2
    assert "got neither" in capsys.readouterr().err
    assert main(["to-onnx", "student", "a", "--output", "b"]) == 2
    assert "got both" in capsys.readouterr().err


def test_python_m_qexport_runs_from_a_bare_checkout(tmp_path: Path) -> None:
    checkout = Path(__file__).resolve().parents[2]
    for name in ("qexport", "training", "graphs", "serving"):
        shutil.copytree(checkout / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    without_install = (
        "import sys, runpy;"
        "names = ('Editable', 'ScikitBuild');"
        "sys.meta_path[:] = [f for f in sys.meta_path if not any(n in type(f).__name__ for n in names)];"
        f"sys.path[:] = [{str(tmp_path)!r}, *[p for p in sys.path if p not in ('', {str(checkout)!r})]];"
        "sys.modules.pop('qexport', None);"
        "sys.argv[:] = ['qexport', 'methods', '--json'];"
        "runpy.run_module('qexport', run_name='__main__', alter_sys=True)"
    )
    done = subprocess.run(
        [sys.executable, "-c", without_install], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert "ternarybert" in done.stdout
