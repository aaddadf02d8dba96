"""The iOS bundle's Swift package: built and run on Linux, with a stand-in for ONNX Runtime's package."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from required import missing
from tiny_wordpiece import write_wordpiece
from tokenizers import Tokenizer

from qexport.serving.bundle.config import BundleConfig
from qexport.serving.bundle.contents import bundle

STAND_IN = Path(__file__).parents[2] / "support" / "swift"
RUNTIME = "onnxruntime-swift-package-manager"

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory, ternary_folder: Path) -> Path:
    """The bundle of a tiny classifier, its one dependency replaced by the stand-in."""
    work = tmp_path_factory.mktemp("swift")
    shutil.copytree(ternary_folder, work / "onnx")
    write_wordpiece(work / "onnx")
    bundle(BundleConfig(model=work / "onnx", target="ios", output=work / "box"))
    shutil.copytree(STAND_IN, work / RUNTIME)
    manifest = work / "box" / "Package.swift"
    text = manifest.read_text(encoding="utf-8")
    there = re.compile(rf'\.package\(url: "https://github\.com/microsoft/{RUNTIME}", exact: ".*"\)')
    text, replaced = there.subn(f'.package(path: "../{RUNTIME}")', text)
    assert replaced == 1
    manifest.write_text(text, encoding="utf-8")
    return work / "box"


@pytest.fixture(scope="module")
def run(package: Path) -> Run:
    """`swift run classify`, as the README says it, with these logits; optimised, and warnings are errors."""
    tool = shutil.which("swift")
    if tool is None:
        missing("there is no Swift: apt-get install swiftlang (Debian 13) or see swift.org")
    options = ["-c", "release", "-Xswiftc", "-warnings-as-errors"]
    built = subprocess.run(
        [tool, "build", *options], cwd=package, capture_output=True, text=True, check=False
    )
    assert built.returncode == 0, built.stdout + built.stderr
    # What SwiftPM itself finds wrong with the manifest: a file of the bundle that it does not name.
    assert "warning:" not in built.stdout + built.stderr

    def swift_run(*words: str, logits: str = "0 0") -> subprocess.CompletedProcess[str]:
        about = {"STAND_IN_LOGITS": logits, "STAND_IN_FEEDS": str(package.parent / "feeds")}
        command = [tool, "run", *options, "--skip-build", "classify", *words]
        return subprocess.run(
            command, cwd=package, capture_output=True, text=True, check=False, env={**os.environ, **about}
        )

    return swift_run


def feeds(package: Path) -> dict[str, str]:
    """What the last run fed, by input: element type, shape, numbers."""
    lines = (package.parent / "feeds").read_text(encoding="utf-8").splitlines()
    return dict(line.split(" ", 1) for line in lines)


@pytest.mark.slow
def test_package_feeds_hugging_faces_ids_and_answers_with_softmax(package: Path, run: Run) -> None:
    tokenizer = Tokenizer.from_file(str(package / "model" / "tokenizer.json"))
    for texts, logits in (
        (["A FÍNE, films"], [0.25, -1.5]),
        (["a dull plot", "fine é"], [-200.0, 300.0]),
        (["x"], [2.0, 2.0]),
        ([""], [1e-3, 0.0]),
    ):
        done = run(*texts, logits=" ".join(map(str, logits)))
        assert done.returncode == 0, done.stderr
        label, probability = done.stdout.split()
        assert label == f"LABEL_{logits.index(max(logits))}"
        total = sum(math.exp(value - max(logits)) for value in logits)
        assert float(probability) == pytest.approx(1 / total, rel=1e-6)
        row = tokenizer.encode(*texts)
        about = f"int64 [1, {len(row.ids)}]"
        assert feeds(package) == {
            "input_ids": f"{about} {row.ids}",
            "attention_mask": f"{about} {[1] * len(row.ids)}",
            "token_type_ids": f"{about} {row.type_ids}",
        }


@pytest.mark.slow
def test_program_takes_ids_and_says_what_is_wrong(package: Path, run: Run) -> None:
    done = run("--ids", "2,4,5,3", logits="0 3")
    assert done.stdout.split()[0] == "LABEL_1"
    assert feeds(package)["input_ids"] == "int64 [1, 4] [2, 4, 5, 3]"
    for words in ((), ("a", "b", "c"), ("--ids",), ("--ids", "2,x")):
        done = run(*words)
        assert (done.returncode, done.stdout) == (1, "") and "usage: classify" in done.stderr


@pytest.mark.slow
def test_package_compiles_in_the_language_mode_of_swift_6(package: Path, run: Run) -> None:
    mode = ["-Xswiftc", "-swift-version", "-Xswiftc", "6", "-Xswiftc", "-warnings-as-errors"]
    command = [shutil.which("swift") or "swift", "build", *mode, "--scratch-path", ".build/mode6"]
    done = subprocess.run(command, cwd=package, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_regression_and_a_model_without_wordpiece(package: Path, run: Run) -> None:
    """The resource of the built package is a copy of model/: another preprocessing.json is another model."""
    (resource,) = (package / ".build").resolve().glob("*/release/TextClassifier_TextClassifier.resources")
    path = resource / "model" / "preprocessing.json"
    about = path.read_text(encoding="utf-8")
    try:
        path.write_text(json.dumps({**json.loads(about), "kind": "regression", "labels": ["score"]}))
        assert run("a fine film", logits="3.25").stdout == "score 3.25\n"
        path.write_text(json.dumps({**json.loads(about), "tokenizer": None}))
        assert "call classify(ids:)" in run("a fine film").stderr
        assert run("--ids", "2,3").stdout == "LABEL_0 0.5\n"
        path.unlink()
        assert "preprocessing.json is missing from the package" in run("a").stderr
    finally:
        path.write_text(about, encoding="utf-8")
