"""`qexport bench` through the command line, on the tiny exports."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from required import missing

from qexport.cli import main
from qexport.errors import EnvironmentProblem
from qexport.serving import native
from qexport.serving.bench import files
from qexport.serving.bench.report import bench_schema

QUICK = (
    "--lengths",
    "8",
    "--batch-sizes",
    "1",
    "--threads",
    "1",
    "--rounds",
    "2",
    "--warmup",
    "0",
    "--repeats",
    "1",
)


def words(*values: object) -> list[str]:
    return ["bench", *map(str, values), *QUICK]


def needs(problem: object) -> None:
    """Nothing where `problem` is None; see `missing`."""
    if problem is not None:
        missing(str(problem))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("QEXPORT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_bench_measures_against_fp32_and_int8_and_prints_json(
    trail: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = words(
        trail.onnx, "--engines", "stock", "--fp32", trail.teacher_onnx, "-o", tmp_path / "out", "--json"
    )
    assert main(command) == 0
    output = capsys.readouterr()
    printed = json.loads(output.out)
    jsonschema.validate(printed, bench_schema())
    assert [engine["name"] for engine in printed["engines"]] == ["stock", "fp32", "int8"]
    assert printed == json.loads((tmp_path / "out" / "bench.json").read_text(encoding="utf-8"))
    assert printed["command"].startswith("qexport bench ") and printed["complete"] is True
    assert "8 tokens, batch 1, 1 thread: stock" in output.err
    assert (tmp_path / "out" / "bench.html").is_file()


def test_bench_writes_into_the_folder_of_the_model_and_shows_a_table(
    trail: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(trail.onnx, tmp_path / "onnx")
    assert main(words(folder, "--engines", "stock", "--against", "stock")) == 0
    assert (folder / "bench" / "bench.json").is_file()
    shown = capsys.readouterr().out
    assert "stock ONNX Runtime" in shown and "bench.html" in shown


def test_without_an_fp32_export_one_is_made_once(
    trail: Any, tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = words(trail.onnx, "--engines", "stock", "--against", "fp32", "-o", tmp_path / "out", "--json")
    assert main(command) == 0
    first = capsys.readouterr()
    assert "exporting an FP32 model of the same architecture" in first.err
    assert any("random weights" in note for note in json.loads(first.out)["notes"])
    (made,) = (cache / "bench").glob("fp32-*/model.onnx")
    stored, given = made.stat().st_size, (trail.teacher_onnx / "model.onnx").stat().st_size
    assert abs(stored - given) < 0.1 * given  # the same architecture
    assert main(command) == 0
    assert "exporting an FP32 model" not in capsys.readouterr().err


def test_a_bare_file_needs_an_fp32_export(
    trail: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = tmp_path / "bare.onnx"
    bare.write_bytes((trail.onnx / "model.onnx").read_bytes())
    assert main(words(bare, "--engines", "stock", "--against", "int8", "-o", tmp_path / "out")) == 2
    assert "give an FP32 export with --fp32" in capsys.readouterr().err


def test_an_fp32_export_that_does_not_fit_is_refused(
    trail: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ("--engines", "stock", "--against", "fp32", "--fp32")
    assert main(words(trail.onnx, *common, trail.onnx)) == 2
    assert "holds low-bit weights" in capsys.readouterr().err
    other = shutil.copytree(trail.teacher_onnx, tmp_path / "other")
    described = json.loads((other / "config.json").read_text(encoding="utf-8"))
    (other / "config.json").write_text(json.dumps({**described, "num_hidden_layers": 24}), encoding="utf-8")
    assert main(words(trail.onnx, *common, other)) == 2
    assert "num_hidden_layers is 24 there and 2 here" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "code", "text"),
    [
        (["--engines", "stok"], 2, "did you mean 'stock'"),
        (["--against", "openvin"], 2, "did you mean 'openvino'"),
        (["--isa", "avx"], 2, "unknown instruction set 'avx'"),
        (["--lengths", "8,many"], 2, "--lengths takes whole numbers"),
        (["--matmul", "768"], 2, "--matmul takes shapes such as 128x768x3072"),
    ],
)
def test_a_wrong_option_ends_in_one_sentence(
    changes: list[str], code: int, text: str, trail: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", str(trail.onnx), *changes]) == code
    error = capsys.readouterr().err
    assert text in error and len(error.splitlines()) == 1


def test_without_openvino_the_error_says_what_to_install(
    trail: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(files, "find_spec", lambda name: None)
    assert main(words(trail.onnx, "--engines", "stock", "--against", "openvino")) == 4
    assert 'pip install "qexport[bench]"' in capsys.readouterr().err


def test_without_a_library_native_ends_in_4_with_a_way_out(
    trail: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing() -> Any:
        raise EnvironmentProblem("no kernel library for this machine")

    monkeypatch.setattr(native, "_load", missing)
    assert main(words(trail.onnx, "--against", "fp32")) == 4
    error = capsys.readouterr().err
    assert "native cannot run here: no kernel library" in error and "--engines stock" in error


def test_a_folder_that_is_not_an_export_ends_in_5(
    trail: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words(trail.student, "--engines", "stock")) == 5
    assert "has no model.onnx" in capsys.readouterr().err
    assert main(words(tmp_path / "absent", "--engines", "stock")) == 5
    assert "does not exist" in capsys.readouterr().err


def test_native_is_timed_with_its_instruction_set_peak_and_profile(
    trail: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    needs(native.library_problem())
    command = words(
        trail.onnx, "--isa", "scalar", "--against", "", "-o", tmp_path / "out", "--profile", "--matmul",
        "4x64x32", "--json",
    )  # fmt: skip
    assert main(command) == 0
    printed = json.loads(capsys.readouterr().out)
    assert [engine["name"] for engine in printed["engines"]] == ["native", "stock", "native-scalar"]
    settings = {opening["engine"]: opening["settings"] for opening in printed["openings"]}
    assert settings["native-scalar"]["isa"] == "scalar" and settings["native"]["isa"]
    assert settings["stock"] == {}
    rooflines = printed["rooflines"]
    assert rooflines["native-scalar"]["isa"] == "scalar"
    assert rooflines["native"]["macs_per_s"] >= 0.5 * rooflines["native-scalar"]["macs_per_s"] > 0
    assert rooflines["native"]["copy_bytes_per_s"] > 1e8
    ours = next(profile for profile in printed["profiles"] if profile["engine"] == "native")
    product = next(row for row in ours["operators"] if row["operator"] == "TernaryMatMul")
    assert product["macs"] > 0 and product["roofline_share"] > 0
    assert all(cell["peak_share"] > 0 for cell in printed["matmuls"])


def test_a_file_without_our_operators_has_nothing_for_the_kernels(
    trail: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    needs(native.library_problem())
    assert main(words(trail.teacher_onnx, "--engines", "native")) == 5
    assert "no operator of ai.qexport" in capsys.readouterr().err


def test_openvino_int8_is_quantised_once_and_timed(
    trail: Any, tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = [name for name in ("openvino", "nncf") if find_spec(name) is None]
    needs(f"the extra bench: {missing}" if missing else None)
    command = words(
        trail.onnx, "--engines", "stock", "--against", "openvino,openvino-fp32", "--fp32", trail.teacher_onnx,
        "-o", tmp_path / "out", "--json",
    )  # fmt: skip
    assert main(command) == 0
    first = capsys.readouterr()
    assert "with NNCF" in first.err
    printed = json.loads(first.out)
    opening = next(one for one in printed["openings"] if one["engine"] == "openvino")
    assert opening["settings"]["INFERENCE_NUM_THREADS"] == "1"
    assert opening["settings"]["products"] and "undef" not in opening["settings"]["products"]
    assert printed["environment"]["versions"].keys() >= {"openvino", "nncf"}
    assert main(command) == 0
    assert "with NNCF" not in capsys.readouterr().err


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_ctrl_c_keeps_what_was_measured_and_ends_in_130(trail: Any, tmp_path: Path) -> None:
    command = [
        sys.executable, "-m", "qexport", "bench", str(trail.onnx), "--engines", "stock", "--against", "stock",
        "--lengths", "4,32", "--batch-sizes", "1", "--threads", "1", "--rounds", "5000", "--warmup", "0",
        "--repeats", "1", "-o", str(tmp_path / "out"),
    ]  # fmt: skip
    child = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "NO_COLOR": "1"})
    assert child.stderr is not None
    lines = []
    for line in child.stderr:
        lines.append(line)
        if line.startswith("4 tokens"):
            child.send_signal(signal.SIGINT)
            break
    lines += child.stderr.readlines()
    assert child.wait(timeout=60) == 130, lines
    assert "benchmark stopped; 1 finished cell in" in lines[-1]
    written = json.loads((tmp_path / "out" / "bench.json").read_text(encoding="utf-8"))
    assert written["complete"] is False and [cell["length"] for cell in written["cells"]] == [4]
